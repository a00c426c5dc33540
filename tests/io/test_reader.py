"""A reader goes on over bundles, on whichever instance of Beam's DoFn the next one runs."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.event_files import EventFiles
from beamrec.io.events import SourceOptions


@pytest.fixture
def source(tmp_path: Path) -> EventFiles:
    (tmp_path / "in").mkdir()
    put(tmp_path, 0)
    return EventFiles(str(tmp_path / "in"), SourceOptions(str(tmp_path / "out"), "run"))


def put(root: Path, number: int) -> None:
    """A file of one event, long there."""
    path = root / "in" / f"{number}.jsonl"
    path.write_text(json.dumps({"number": number}) + "\n")
    os.utime(path, (1.7e9, 1.7e9))


def numbers(reader: Any, seconds: float = 60) -> list[int]:
    """What the reader gives first."""
    deadline = time.monotonic() + seconds
    while not reader.advance():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [json.loads(payload)["number"] for payload in reader.get_current()["payload"].to_pylist()]


def test_the_reader_that_cut_a_mark_goes_on_from_it(source: EventFiles, tmp_path: Path) -> None:
    reader = source.create_reader(None, None)
    assert numbers(reader) == [0]
    coder = source.get_checkpoint_mark_coder()
    mark = coder.decode(coder.encode(reader.get_checkpoint_mark()))
    put(tmp_path, 1)
    assert numbers(source.create_reader(None, mark)) == [1], "what is on its way is not emitted again"


def test_a_reader_that_has_gone_on_since_is_left_alone(source: EventFiles) -> None:
    reader = source.create_reader(None, None)
    mark = reader.get_checkpoint_mark()
    assert numbers(reader) == [0]
    assert source.create_reader(None, mark) is not reader
    later = reader.get_checkpoint_mark()
    assert source.create_reader(None, mark) is not reader
    assert source.create_reader(None, later) is reader
    assert source.create_reader(None, later) is not reader, "two bundles would drive it"


def test_a_closed_reader_is_not_taken(source: EventFiles) -> None:
    reader = source.create_reader(None, None)
    mark = reader.get_checkpoint_mark()
    reader.close()
    assert numbers(source.create_reader(None, mark)) == [0]


def test_a_reader_is_released_with_its_last_user(source: EventFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam closes it in each instance that had it."""
    released: list[bool] = []
    reader = source.create_reader(None, None)
    monkeypatch.setattr(reader, "release", lambda: released.append(True))
    assert source.create_reader(None, reader.get_checkpoint_mark()) is reader
    reader.close()
    assert released == []
    reader.close()
    assert released == [True]


def test_an_instance_that_forgets_a_reader_leaves_it_to_the_one_that_has_it(source: EventFiles) -> None:
    """Beam closes what was parked with an instance for a minute, though other instances read on."""
    reader = source.create_reader(None, None)
    first = reader.get_checkpoint_mark()
    assert source.create_reader(None, first) is reader
    assert numbers(reader) == [0]
    mark = reader.get_checkpoint_mark()
    reader.close()
    assert source.create_reader(None, mark) is reader
