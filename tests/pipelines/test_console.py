"""What a human sees: a live line on a terminal, plain lines elsewhere."""

import io
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from beamrec.pipelines.console import Console
from beamrec.pipelines.runs import load_run, start_run


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """A real pseudo-terminal: the end that a person looks at, and the stream to write to."""
    monkeypatch.setenv("TERM", "xterm")
    looked_at, written = os.openpty()
    with open(written, "w", encoding="utf-8") as stream:
        yield looked_at, stream
    os.close(looked_at)


def _seen(terminal: int, last: str) -> str:
    """All that came, up to `last` or for two minutes: one read may give only the first of it."""
    shown, deadline = b"", time.monotonic() + 120
    while (
        last.encode() not in shown
        and select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]
    ):
        shown += os.read(terminal, 65536)
    return shown.decode()


def test_without_a_terminal_steps_are_lines_of_their_own() -> None:
    out, err = io.StringIO(), io.StringIO()
    console = Console(out=out, err=err)
    console.status("reading")
    console.print("42 rows")
    console.status("writing")
    assert out.getvalue() == "42 rows\n"
    assert err.getvalue() == "reading\nwriting\n"


def test_without_a_terminal_progress_is_repeated_only_when_it_changed() -> None:
    err = io.StringIO()
    console = Console(err=err)
    for text in ("read 1", "read 1", "read 2", "read 2"):
        console.progress(text)
    assert err.getvalue() == "read 1\nread 2\n"


def test_on_a_terminal_the_line_is_live_and_gone_when_text_is_printed(terminal: tuple[int, TextIO]) -> None:
    looked_at, stream = terminal
    console = Console(out=stream, err=stream)
    console.status("reading")
    console.progress("reading [bold]half of it")
    console.print("42 rows")
    shown = _seen(looked_at, last="42 rows")
    assert "reading [bold]half of it" in shown, "text is not markup"
    assert "42 rows" in shown
    assert "\x1b[2K" in shown, "the live line was wiped"
    assert shown.index("\x1b[2K") < shown.index("42 rows")
    console.close()


def test_with_json_text_goes_to_standard_error() -> None:
    out, err = io.StringIO(), io.StringIO()
    Console(json=True, out=out, err=err).print("42 rows")
    assert (out.getvalue(), err.getvalue()) == ("", "42 rows\n")


def test_home_is_absolute_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEAMREC_HOME", "somewhere")
    assert Console().home == tmp_path / "somewhere"
    assert Console("elsewhere").home == tmp_path / "elsewhere"
    monkeypatch.setenv("BEAMREC_HOME", "")
    assert Console().home == tmp_path / ".beamrec"


def test_counts_of_a_recorded_run_are_kept_and_else_nothing_happens(tmp_path: Path) -> None:
    console = Console(tmp_path)
    console.record({"in": 1})
    console.run = start_run(tmp_path, "stream", [])
    console.record({"in": 2})
    assert load_run(tmp_path, console.run.record.id).counts == {"in": 2}
