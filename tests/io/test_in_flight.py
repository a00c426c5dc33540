"""A reader pauses while what it has read waits for the sink, and never waits for itself."""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from beamrec.io import in_flight
from beamrec.io.event_files import open_sources
from beamrec.io.events import SourceOptions
from beamrec.io.in_flight import InFlight
from beamrec.io.ledger import account
from beamrec.io.patience import patient, patiently
from beamrec.io.reader import LedgerReader, raw_events
from beamrec.io.shard_log import ShardLog
from beamrec.io.source_log import Part
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.events import OUTCOMES

MINUTE_US = 60_000_000
PAYLOAD = b"x" * 1000


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(in_flight, "_GRACE_SECONDS", 0.0)


def batch(first: int, count: int, arrival_us: int = 0, source: str = "file:a") -> pa.RecordBatch:
    return raw_events([(source, n, n + 1, arrival_us, PAYLOAD) for n in range(first, first + count)])


def fate(store: LocalStore, batch: pa.RecordBatch, shard: int = 0) -> None:
    """What the sink does with rows that were read."""
    rows = [
        {name: row[name] for name in ("source", "after", "position")}
        | {"event_id": f"{row['source']}{row['position']}", "fate": "visible", "folder": "recommendations"}
        | {"hour": row["arrival"], "line": b"{}"}
        for row in batch.to_pylist()
    ]
    ShardLog(store, shard, 24).commit(pa.Table.from_pylist(rows, schema=OUTCOMES))


def test_what_lies_in_closed_windows_is_waited_for_until_all_of_it_has_a_fate(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    flight = InFlight(store, 60, 400_000)
    first, second = batch(0, 100), batch(100, 100)
    for each in (first, second):
        flight.emitted(each)
    assert not flight.too_much(None)
    assert not flight.too_much(MINUTE_US - 1), "its window is open: its rows wait for the reader"
    assert flight.too_much(MINUTE_US)
    fate(store, second, shard=1)
    assert flight.too_much(MINUTE_US), "the first half waits still"
    fate(store, first)
    assert not flight.too_much(MINUTE_US)


def test_a_gap_that_was_there_before_holds_nothing_back(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    flight = InFlight(store, 60, 400_000)
    rows = batch(1_000, 200)
    flight.emitted(rows)
    fate(store, rows)
    assert not flight.too_much(MINUTE_US)


def test_of_several_sources_each_has_to_be_written(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    flight = InFlight(store, 60, 400_000)
    both = [batch(0, 100, source="file:a"), batch(50, 100, source="file:b")]
    flight.emitted(pa.Table.from_batches(both).combine_chunks().to_batches()[0])
    fate(store, both[0])
    assert flight.too_much(MINUTE_US)
    fate(store, both[1])
    assert not flight.too_much(MINUTE_US)


def test_rows_between_those_of_a_closed_window_belong_to_one_that_waits_for_the_reader(
    tmp_path: Path,
) -> None:
    """A partition that two producers write to whose clocks differ by more than a window."""
    store = LocalStore(tmp_path)
    flight = InFlight(store, 60, 400_000)
    behind, ahead = [], []
    for first in range(0, 400, 100):
        behind.append(batch(first, 50))
        ahead.append(batch(first + 50, 50, arrival_us=2 * MINUTE_US))
        flight.emitted(behind[-1])
        flight.emitted(ahead[-1])
    assert flight.close_at() == 3 * MINUTE_US
    assert flight.too_much(MINUTE_US)
    for each in behind[:-1]:
        fate(store, each)
    assert flight.too_much(MINUTE_US), "one batch waits still"
    fate(store, behind[-1])
    assert not flight.too_much(MINUTE_US), "all that could be written is: the rest waits for the reader"
    assert flight.close_at() is None
    assert flight.too_much(3 * MINUTE_US)
    for each in ahead:
        fate(store, each)
    assert not flight.too_much(3 * MINUTE_US)


def test_a_batch_need_not_hold_what_lies_between_its_rows(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    flight = InFlight(store, 60, 400_000)
    rows = batch(0, 400)
    even = rows.take(pa.array(range(398, -2, -2)))
    flight.emitted(even)
    assert flight.too_much(MINUTE_US)
    fate(store, even)
    assert not flight.too_much(MINUTE_US)


class _TwoClocks(LedgerReader):
    """One partition: each second batch comes from a producer whose clock is two minutes ahead."""

    ROWS = 100

    def __init__(self, options: SourceOptions, arrivals: list[int]) -> None:
        super().__init__(options)
        self._arrivals, self._next, self._front = arrivals, 0, 0

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        if self._next == len(self._arrivals):
            return None
        # As Kafka's: by the latest that was handed out.
        self.advance_watermark(self._front / 1e6)
        arrival, first = self._arrivals[self._next], self._next * self.ROWS
        self.log.seal([Part("file:a", first, first + self.ROWS, self.ROWS, arrival)])
        self._next, self._front = self._next + 1, max(self._front, arrival)
        return iter([batch(first, self.ROWS, arrival)])


def test_a_reader_of_producers_with_different_clocks_comes_to_its_end(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    arrivals = [1, 2 * MINUTE_US] + [3, 2 * MINUTE_US + 3] * 4
    reader = _TwoClocks(SourceOptions(str(tmp_path), "run"), arrivals)
    reader._in_flight = InFlight(store, 60, 600_000)
    waiting: list[pa.RecordBatch] = []
    read = idle = 0
    while read < len(arrivals):
        if reader.advance():
            read, idle = read + 1, 0
            waiting.append(reader.get_current())
        else:
            idle += 1
        assert idle < 10, f"{read} batches were read, and all that could be written is"
        # The sink writes each window that the watermark has passed.
        passed = reader.get_watermark().micros
        ends = [
            (pc.max(each["arrival"].cast(pa.int64())).as_py() // MINUTE_US + 1) * MINUTE_US
            for each in waiting
        ]
        for each in [each for each, end in zip(waiting, ends, strict=True) if end <= passed]:
            fate(store, each)
        waiting = [each for each, end in zip(waiting, ends, strict=True) if end > passed]


def test_a_window_that_holds_too_much_closes_early(tmp_path: Path) -> None:
    flight = InFlight(LocalStore(tmp_path), 60, 150_000)
    flight.emitted(batch(0, 100, arrival_us=5))
    assert flight.close_at() is None
    flight.emitted(batch(100, 100, arrival_us=MINUTE_US + 5))
    assert flight.close_at() == 2 * MINUTE_US
    assert flight.too_much(2 * MINUTE_US)


@pytest.fixture
def reader(tmp_path: Path) -> Any:
    """A reader of 3 MB of events that arrived a minute ago, with room for 1 MiB on their way."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = (json.dumps({"n": n, "note": "x" * 1000}).encode() for n in range(3000))
    (folder / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    minute_ago = time.time() - 60
    os.utime(folder / "a.jsonl", (minute_ago, minute_ago))
    options = SourceOptions(str(tmp_path / "out"), "run", stop_when_idle_seconds=0, max_in_flight_mb=1)
    return open_sources(str(folder), options)[0].create_reader(None, None)


def test_a_reader_stops_where_the_sink_does_not_follow_and_goes_on_with_it(
    reader: Any, tmp_path: Path
) -> None:
    store, read = LocalStore(tmp_path / "out"), []
    pauses = 0
    for _ in range(20):
        while reader.advance():
            read.append(reader.get_current())
            assert sum(b.nbytes for b in read) < 2 << 20, "more than a batch beyond what there is room for"
        pauses += bool(read)
        for each in read:
            fate(store, each)
        read = []
    assert pauses >= 3
    found = account(store)
    assert found.reconciled, found
    assert found.counts.out == 3000


def test_a_reader_without_a_bound_waits_for_no_fates(reader: Any) -> None:
    options = dataclasses.replace(reader.options, max_in_flight_mb=None)
    unbounded = open_sources(reader.source.folder, options)[0].create_reader(None, None)
    read = 0
    while unbounded.advance():
        read += unbounded.get_current().num_rows
    assert read == 3000


class _Away(LocalStore):
    """A folder that cannot be reached for a while."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_away = True
        self.asked = 0

    def create(self, path: str, data: bytes) -> bool:
        self.asked += 1
        if self.is_away:
            raise UnavailableError("nobody answers")
        return super().create(path, data)


def test_a_store_that_is_away_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    store = _Away(tmp_path)
    with pytest.raises(UnavailableError, match="nobody answers"):
        patient(store, 0.2).create("a", b"1")
    assert store.asked > 1

    def come_back() -> None:
        while store.asked < 6:
            time.sleep(0.01)
        store.is_away = False

    threading.Thread(target=come_back, daemon=True).start()
    assert patient(store, 120).create("a", b"2")
    assert patient(store, 0).read("a") == b"2"
    assert patient(store, 0).uri == str(tmp_path)


def test_what_is_no_outage_is_not_waited_for(tmp_path: Path) -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise FileNotFoundError("a")

    with pytest.raises(FileNotFoundError):
        patiently(ask, 60)
    assert len(asked) == 1
