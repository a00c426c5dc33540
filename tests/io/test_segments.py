"""The sink as a transform: shards, file sizes, and a store that fails while others read what is there."""

import json
import random
import threading
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from beamrec.io import segments
from beamrec.io.ledger import Settings, account, fix_settings, missing_segments
from beamrec.io.segment_files import SegmentFormat
from beamrec.io.segments import WriteSegments, split_shards
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import LocalStore, Store, open_store
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError
from beamrec.schemas.events import OUTCOMES
from beamrec.transforms.windows import WindowBatches

HOUR = datetime(2026, 11, 22, 7, tzinfo=UTC)
SHARDS = 3
LINES = SegmentFormat()


def batch(first: int, count: int, padding: int = 0) -> pa.RecordBatch:
    """Events `first` and on, one in ten with the id of the one before it."""
    numbers = range(first, first + count)
    lines = [json.dumps({"id": n, "padding": "x" * padding}).encode() for n in numbers]
    columns = {
        "source": ["file:a"] * count,
        "after": list(numbers),
        "position": [n + 1 for n in numbers],
        "event_id": [f"id{n - (n % 10 == 9)}" for n in numbers],
        "fate": ["visible"] * count,
        "folder": [f"recommendations/hour={7 + n % 2:02d}" for n in numbers],
        "hour": [HOUR] * count,
        "line": lines,
        "event_time": [HOUR] * count,
        "arrival": [HOUR] * count,
    }
    return pa.RecordBatch.from_pydict(columns, schema=OUTCOMES)


def write(store: Store, uri: str, batches: list[pa.RecordBatch], **options: Any) -> None:
    """Runs the sink over batches that one part of a source holds."""
    SourceLog(store).seal([Part("file:a", 0, batches[-1]["position"][-1].as_py(), _rows(batches), 0)])
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create(batches, reshuffle=False).with_output_types(pa.RecordBatch)
            | WindowBatches(60)
            | WriteSegments(uri, SHARDS, **options)
        )


def _rows(batches: list[pa.RecordBatch]) -> int:
    return sum(piece.num_rows for piece in batches)


def test_an_id_has_the_same_shard_for_ever_and_each_row_is_in_one():
    outcomes = batch(0, 500)
    pieces = dict(split_shards(outcomes, 8))
    for shard, piece in pieces.items():
        assert {zlib.crc32(i.encode()) % 8 for i in piece["event_id"].to_pylist()} == {shard}
    positions = [p for piece in pieces.values() for p in piece["position"].to_pylist()]
    assert sorted(positions) == list(range(1, 501))
    assert all(
        piece["position"].to_pylist() == sorted(piece["position"].to_pylist()) for piece in pieces.values()
    )
    assert split_shards(outcomes.slice(0, 0), 8) == []


def logs(root: Path, shards: int, form: SegmentFormat = LINES) -> segments._Logs:
    """The sink in a worker."""
    return segments._Logs(segments._Sink(str(root), shards, 24, form, 1 << 26, 30))


def commit(sink: segments._Logs, outcomes: pa.RecordBatch, shards: int) -> None:
    """What a bundle of the sink does with outcomes."""
    for number, piece in split_shards(outcomes, shards):
        sink.commit(number, pa.Table.from_batches([piece]))


def test_any_pipeline_keeps_the_number_of_shards_and_the_format(tmp_path: Path) -> None:
    """The same rows by another number of shards would be new to most of them, and be written twice."""
    store, outcomes = LocalStore(tmp_path), batch(0, 100)
    SourceLog(store).seal([Part("file:a", 0, 100, 100, 0)])
    commit(logs(tmp_path, 8), outcomes, 8)
    with pytest.raises(UsageError, match="begun with shards = 8 and cannot go on with 4"):
        commit(logs(tmp_path, 4), outcomes, 4)
    with pytest.raises(UsageError, match=r"begun with format = 'jsonl' and .* 'jsonl\.gz'"):
        commit(logs(tmp_path, 8, SegmentFormat("jsonl.gz")), outcomes, 8)
    commit(logs(tmp_path, 8), outcomes, 8)
    assert account(store).reconciled
    assert account(store).counts.out == 90


def test_any_pipeline_keeps_the_columns_of_its_parquet_files(tmp_path: Path) -> None:
    one, two = (SegmentFormat("parquet", pa.schema([("id", kind)])) for kind in (pa.int64(), pa.string()))
    commit(logs(tmp_path, 8, one), batch(0, 10), 8)
    with pytest.raises(UsageError, match="begun with columns = "):
        commit(logs(tmp_path, 8, two), batch(10, 10), 8)


def test_a_folder_without_a_record_of_its_sink_takes_one_that_fits(tmp_path: Path) -> None:
    """As an older version has begun it: by its stream's settings, or else by the shards that are there."""
    store, outcomes = LocalStore(tmp_path), batch(0, 100)
    fix_settings(store, Settings(8, "/in", None, "films"))
    with pytest.raises(UsageError, match="begun with shards = 8 and cannot go on with 16"):
        commit(logs(tmp_path, 16), outcomes, 16)
    commit(logs(tmp_path, 8), outcomes, 8)
    for name in ("settings", "sink"):
        (tmp_path / f"_ledger/{name}.json").unlink()
    with pytest.raises(UsageError, match="begun with shards = more than 7 and cannot go on with 4"):
        commit(logs(tmp_path, 4), outcomes, 4)
    commit(logs(tmp_path, 8), outcomes, 8)
    (tmp_path / "_ledger/sink.json").write_bytes(b"{")
    with pytest.raises(BeamrecError, match=r"_ledger/sink\.json of the output folder is damaged"):
        commit(logs(tmp_path, 8), outcomes, 8)


def test_a_window_that_holds_much_gets_several_files_of_limited_size(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write(store, str(tmp_path), [batch(0, 300, 20_000), batch(300, 1, 3 << 20)], max_file_mb=1)
    sizes = store.sizes("recommendations")
    assert sum(size > 1 << 20 for size in sizes.values()) == 1, "only a single row may be larger"
    assert len(sizes) > 6
    assert account(store).reconciled


class _Flaky(LocalStore):
    """A store that fails some of its changes, before or after they are made."""

    rate = 0.3
    failed = 0

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self._draw = random.Random(5)

    def _change(self, name: str, *args: Any) -> Any:
        chance, before = self._draw.random(), self._draw.random() < 0.5
        if chance < type(self).rate and before:
            raise self._error()
        result = getattr(LocalStore, name)(self, *args)
        if chance < type(self).rate:
            raise self._error()
        return result

    def _error(self) -> UnavailableError:
        type(self).failed += 1
        return UnavailableError("the disk says no")

    def create(self, path: str, data: bytes) -> bool:
        return self._change("create", path, data)

    def stage(self, data: bytes) -> str:
        return self._change("stage", data)

    def publish(self, staged: str, path: str) -> bool:
        return self._change("publish", staged, path)


class _Watcher(threading.Thread):
    """Lists the folder again and again; a file that was seen must be whole, and stay as it was."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self._root, self._stopped = root, threading.Event()
        self.seen: dict[Path, bytes] = {}
        self.faults: list[str] = []

    def run(self) -> None:
        while not self._stopped.wait(0.005):
            for path in (self._root / "recommendations").rglob("*"):
                if path.is_file():
                    self._check(path, path.read_bytes())

    def _check(self, path: Path, data: bytes) -> None:
        if not data.endswith(b"\n") or not all(json.loads(line) for line in data.splitlines()):
            self.faults.append(f"{path} is not whole")
        if self.seen.setdefault(path, data) != data:
            self.faults.append(f"{path} has changed")

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def test_a_sink_that_fails_a_third_of_its_writes_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("beamrec.io.segments.open_store", _Flaky)
    monkeypatch.setattr(_Flaky, "failed", 0)
    watcher = _Watcher(tmp_path)
    watcher.start()
    store = LocalStore(tmp_path)
    batches = [batch(first, 100) for first in range(0, 2000, 100)]
    write(store, str(tmp_path), batches, max_file_mb=1)
    for again in (batches[3:9], batches[:5]):
        write(store, str(tmp_path), again)
    watcher.stop()
    assert _Flaky.failed > 5
    assert watcher.seen
    assert watcher.faults == []
    ids = [json.loads(line)["id"] for data in files(tmp_path).values() for line in data.splitlines()]
    assert sorted(ids) == [n for n in range(2000) if n % 10 != 9]
    assert watcher.seen.items() <= files(tmp_path).items()
    found = account(store)
    assert found.reconciled, found
    assert (found.counts.out, found.counts.duplicates) == (1800, 200)
    assert missing_segments(store) == []


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (root / "recommendations").rglob("*") if path.is_file()}


def test_a_sink_that_fails_all_of_its_writes_fails_the_job_and_the_account_shows_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beamrec.io.segments.open_store", _Flaky)
    monkeypatch.setattr(_Flaky, "rate", 1.0)
    store = LocalStore(tmp_path)
    with pytest.raises(Exception, match="the disk says no"):
        write(store, str(tmp_path), [batch(0, 100)], patience_seconds=0.3)
    found = account(store)
    assert not found.reconciled
    assert "no fate" in found.faults[0]
    monkeypatch.setattr(_Flaky, "rate", 0.0)
    write(store, str(tmp_path), [batch(0, 100)])
    assert account(store).reconciled


def test_an_object_store_that_refuses_a_third_of_all_requests(s3: Any) -> None:
    store = open_store(s3.uri)
    batches = [batch(first, 50) for first in range(0, 200, 50)]
    form = SegmentFormat("jsonl.gz")
    with s3.faults(0.3):
        write(store, s3.uri, batches, form=form)
        write(store, s3.uri, batches[1:3], form=form)
        found = account(store)
    assert found.reconciled, found
    assert (found.counts.out, found.counts.duplicates) == (180, 20)
    assert missing_segments(store) == []
    assert all(key.endswith(".jsonl.gz") for key in s3.objects("lake/recommendations/"))


def test_a_store_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamrec.io.segments.open_store", _Flaky)
    monkeypatch.setattr(_Flaky, "rate", 1.0)
    store = LocalStore(tmp_path)

    def mend() -> None:
        while _Flaky.failed < 3:
            time.sleep(0.01)
        _Flaky.rate = 0.0

    monkeypatch.setattr(_Flaky, "failed", 0)
    threading.Thread(target=mend, daemon=True).start()
    write(store, str(tmp_path), [batch(0, 100)], patience_seconds=120)
    assert account(store).reconciled
