"""Which run an output folder is in: what readers from a runner's savepoint of an earlier run go by."""

import dataclasses
from pathlib import Path

from apache_beam.utils.timestamp import MAX_TIMESTAMP

from beamrec.io.begun import begin_run, current_options, ended_readers, last_splits
from beamrec.io.event_files import EventFiles
from beamrec.io.events import SourceOptions
from beamrec.io.ledger import request_drain
from beamrec.io.reader import LedgerReader
from beamrec.io.store import LocalStore


def options(folder: Path, run: str, **more: object) -> SourceOptions:
    return dataclasses.replace(SourceOptions(str(folder / "out"), run, splits=2), **more)


def reader_of(folder: Path, given: SourceOptions) -> LedgerReader:
    (folder / "in").mkdir(exist_ok=True)
    return EventFiles(str(folder / "in"), given, 1).create_reader(None, None)


def ends(reader: LedgerReader) -> bool:
    """Whether it reports its end, polled for a while."""
    for _ in range(100):
        if reader.advance():
            continue
        reader._ended_at = reader._ended_at and 0.0  # the hold before the last watermark is over
        if reader.get_watermark() == MAX_TIMESTAMP:
            return True
    return False


def test_a_run_that_never_began_has_its_own_options(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    assert last_splits(store) is None
    assert current_options(store, options(tmp_path, "archive")) is None
    begin_run(store, options(tmp_path, "a"))
    assert current_options(store, options(tmp_path, "archive")) is None


def test_the_options_of_the_run_that_began_last_count_but_not_what_says_what_is_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    first = options(tmp_path, "b", max_delay_seconds=1.0)
    begin_run(store, first)
    assert current_options(store, first) == first
    begin_run(store, options(tmp_path, "a", max_delay_seconds=3.0, stop_when_idle_seconds=5.0, splits=4))
    wanted = dataclasses.replace(first, run="a", max_delay_seconds=3.0, stop_when_idle_seconds=5.0)
    assert current_options(store, first) == wanted
    assert last_splits(store) == 4


def test_a_reader_of_an_earlier_run_drains_with_the_one_that_began_last(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    for run in ("a", "b"):
        begin_run(store, options(tmp_path, run))
    request_drain(store, "a")
    reader = reader_of(tmp_path, options(tmp_path, "a"))
    assert not ends(reader), "the drain of the run before is over"
    request_drain(store, "b")
    assert ends(reader)
    assert ended_readers(store, "b") == {1}


def test_a_reader_that_has_ended_ends_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    given = options(tmp_path, "a", stop_when_idle_seconds=0.0)
    begin_run(store, given)
    assert ends(reader_of(tmp_path, given))
    (tmp_path / "in" / "late.jsonl").write_text('{"event_id": "e1"}\n')
    again = reader_of(tmp_path, dataclasses.replace(given, splits=1))
    assert ends(again)
    assert store.names("_ledger/sources") == [], "nothing new was sealed"


def test_without_runs_a_name_may_be_used_again(tmp_path: Path) -> None:
    given = options(tmp_path, "archive", stop_when_idle_seconds=0.0)
    assert ends(reader_of(tmp_path, given))
    assert ended_readers(LocalStore(tmp_path / "out"), "archive") == set()
