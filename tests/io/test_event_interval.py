"""A past interval of an input: its own module says what that is, and one that cannot is refused."""

import sys
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from beamrec.io import registry
from beamrec.io.event_interval import bounded_sources, with_bounds
from beamrec.io.events import SourceOptions
from beamrec.schemas.errors import UsageError

BEGIN, END = (datetime(2026, 11, 22, hour, tzinfo=UTC) for hour in (7, 8))
OPTIONS = SourceOptions("/nowhere", "run")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A source of `clicks://`, as somebody else would write one."""
    found = types.ModuleType("clicks_source")
    found.open_sources = lambda uri, options: ["everything"]  # type: ignore[attr-defined]
    found.identity = lambda uri: uri  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setitem(registry._MODULES["events"], "clicks", found.__name__)
    return found


def test_a_source_that_knows_no_intervals_is_refused_and_never_read_as_a_whole(module: Any) -> None:
    with pytest.raises(UsageError, match="clicks:// cannot be read from one time to another"):
        bounded_sources("clicks://a", OPTIONS, BEGIN, END)


def test_a_source_is_opened_as_its_module_says(module: Any) -> None:
    module.open_interval = lambda *given: [given]
    assert bounded_sources("clicks://a", OPTIONS, BEGIN, END) == [("clicks://a", OPTIONS, BEGIN, END)]


@pytest.mark.parametrize("scheme", registry._MODULES["events"])
def test_every_source_here_can_be_read_from_one_time_to_another(scheme: str) -> None:
    assert callable(registry.backend("events", f"{scheme}://a" if scheme else "a", "--input").open_interval)


def test_of_a_folder_what_was_written_then_is_read(tmp_path: Path) -> None:
    (source,) = bounded_sources(str(tmp_path), OPTIONS, BEGIN, END)
    assert source.options.written_us == (int(BEGIN.timestamp() * 1e6), int(END.timestamp() * 1e6))
    assert source.options.stop_when_idle_seconds is not None


def test_a_stream_is_told_start_and_end_and_says_neither_itself() -> None:
    bounds = "start=2026-11-22T07:00:00Z&end=2026-11-22T08:00:00Z"
    assert with_bounds("kafka://h:1/t", BEGIN, END) == f"kafka://h:1/t?{bounds}"
    assert with_bounds("kafka://h:1/t?lost=skip", BEGIN, END) == f"kafka://h:1/t?lost=skip&{bounds}"
    for uri in ("kafka://h:1/t?start=latest", "kinesis://s?region=x&end=2026-11-22T07:00:00Z"):
        with pytest.raises(UsageError, match=r"leave (start|end)= out"):
            bounded_sources(uri, OPTIONS, BEGIN, END)
