"""The effect-once sink: outcomes become numbered segments of hour and shard, each row exactly once.

The only shuffle of the streaming pipeline lies here, by shard and window; what follows it is a commit
to the shard's log, which any number of writers may repeat.
"""

import collections
import dataclasses
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import BoundedWindow
from apache_beam.utils import shared
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.bookkeeping import keep_books
from beamrec.io.floors import Floors
from beamrec.io.patience import patiently
from beamrec.io.segment_files import SegmentFormat
from beamrec.io.shard_log import CommitResult, ShardLog
from beamrec.io.sink_settings import SinkSettings, fix_sink
from beamrec.io.store import open_store
from beamrec.schemas.events import OUTCOMES, Fate
from beamrec.transforms import metrics

__all__ = ["WriteSegments", "split_shards"]

_ROWS_A_COMMIT = 50_000
# A window closes for all shards at once, and a commit waits for the disk half of its time. With four, events
# that come meanwhile wait longer for their recommendations.
_COMMITS_AT_A_TIME = 2


def split_shards(outcomes: pa.RecordBatch, shards: int) -> list[tuple[int, pa.RecordBatch]]:
    """Splits outcomes by the hash of their `event_id`; the hash is stable across versions and machines."""
    ids = outcomes.column("event_id").cast(pa.binary()).to_pylist()
    shard = np.fromiter(map(zlib.crc32, ids), np.uint32, len(ids)) % shards
    order = np.argsort(shard, kind="stable")
    sorted_outcomes, ends = outcomes.take(pa.array(order)), np.cumsum(np.bincount(shard, minlength=shards))
    begins = [0, *ends[:-1].tolist()]
    return [
        (number, sorted_outcomes.slice(begin, end - begin))
        for number, (begin, end) in enumerate(zip(begins, ends.tolist(), strict=True))
        if end > begin
    ]


def _tables(batches: Iterable[pa.RecordBatch], max_bytes: int) -> Iterator[pa.Table]:
    """Joins batches up to what one commit, and so one file, holds; a window of a backfill may hold more."""
    joined: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        for piece, piece_size in _pieces(batch, max_bytes):
            if joined and (rows + piece.num_rows > _ROWS_A_COMMIT or size + piece_size > max_bytes):
                yield pa.Table.from_batches(joined, OUTCOMES)
                joined, rows, size = [], 0, 0
            joined.append(piece)
            rows, size = rows + piece.num_rows, size + piece_size
    if joined:
        yield pa.Table.from_batches(joined, OUTCOMES)


def _pieces(batch: pa.RecordBatch, max_bytes: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Halves of halves of a batch, as large as allowed, with their sizes; a single row may be larger."""
    # The buffers of a batch, which is what a slice shares, can be added up in a tenth of the time.
    size = batch.get_total_buffer_size()
    if size > max_bytes:
        size = batch.nbytes
    if size <= max_bytes or batch.num_rows < 2:
        yield batch, size
        return
    middle = batch.num_rows // 2
    yield from _pieces(batch.slice(0, middle), max_bytes)
    yield from _pieces(batch.slice(middle), max_bytes)


@dataclasses.dataclass(frozen=True)
class _Sink:
    """What the logs of a process need to know; hashable, since the process shares them by it."""

    output: str
    shards: int
    horizon_hours: int
    form: SegmentFormat
    max_bytes: int
    patience_seconds: float


@dataclasses.dataclass(frozen=True)
class _Committed:
    """A commit that is done: the rows that got their fate by it, and how long it took."""

    result: CommitResult
    rows: pa.Table
    seconds: float


class _Logs:
    """The shard logs of one output in this process, each behind a lock of its own."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._store = open_store(sink.output)
        self._floors = Floors(self._store)
        keep_books(self._store, owner=self)
        self._lock = threading.Lock()
        self._checked = False
        self._logs: dict[int, tuple[threading.Lock, ShardLog]] = {}
        self._threads = ThreadPoolExecutor(_COMMITS_AT_A_TIME, "commit")

    def submit(self, shard: int, outcomes: pa.Table) -> "Future[_Committed]":
        """`commit` in a thread of its own; the answer raises what it raises."""
        return self._threads.submit(self._timed, shard, outcomes)

    def _timed(self, shard: int, outcomes: pa.Table) -> _Committed:
        began = time.perf_counter()
        result, rows = self.commit(shard, outcomes)
        return _Committed(result, rows, time.perf_counter() - began)

    def commit(self, shard: int, outcomes: pa.Table) -> tuple[CommitResult, pa.Table]:
        """`ShardLog.commit_rows`; waits out a store that is away, up to the sink's patience.

        Raises:
          UnavailableError: it is away for longer.
          UsageError: the folder was begun with another number of shards or another format.
        """
        with self._lock:
            if not self._checked:
                form = self._sink.form
                settings = SinkSettings(self._sink.shards, form.name, form.columns)
                patiently(lambda: fix_sink(self._store, settings), self._sink.patience_seconds)
                self._checked = True
            if shard not in self._logs:
                log = ShardLog(self._store, shard, self._sink.horizon_hours, self._sink.form, self._floors)
                self._logs[shard] = (threading.Lock(), log)
            lock, log = self._logs[shard]
        with lock:
            # What a commit that failed has done already is a replay then.
            return patiently(lambda: log.commit_rows(outcomes), self._sink.patience_seconds)


def _measure(done: _Committed) -> None:
    """The metrics of a commit, of the rows that got their fate by it."""
    metrics.observe_seconds("commit_us", done.seconds)
    metrics.distribute("commit_batch", done.rows.num_rows)
    metrics.count("replays", done.result.replays)
    metrics.count_values("committed", done.rows["fate"])
    visible = done.rows.filter(pc.equal(done.rows["fate"], Fate.VISIBLE.value))
    metrics.observe_since("event_to_file_us", visible["event_time"])
    metrics.observe_since("arrival_to_file_us", visible["arrival"])


class _CommitDoFn(beam.DoFn):  # type: ignore[misc]
    """Commits the groups of a bundle side by side; the bundle ends behind the last of them.

    What a bundle that failed has left running is as good as a commit of another writer: the repetition finds
    its rows there.
    """

    # Threads of one worker share what they know of a shard; a second copy would only cost memory.
    _shared = shared.Shared()

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink

    def setup(self) -> None:
        self._logs = self._shared.acquire(lambda: _Logs(self._sink), tag=self._sink)

    def start_bundle(self) -> None:
        metrics.start_bundle()
        self._open: collections.deque[tuple[Future[_Committed], WindowedValue]] = collections.deque()

    def process(
        self,
        group: tuple[int, Iterable[pa.RecordBatch]],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: BoundedWindow = beam.DoFn.WindowParam,
    ) -> Iterator[WindowedValue]:
        shard, batches = group
        where = WindowedValue(None, timestamp, (window,))
        for table in _tables(batches, self._sink.max_bytes):
            if len(self._open) >= _COMMITS_AT_A_TIME:
                yield self._finish_first()
            self._open.append((self._logs.submit(shard, table), where))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._open:
            yield self._finish_first()

    def _finish_first(self) -> WindowedValue:
        answer, where = self._open.popleft()
        done = answer.result()
        _measure(done)
        return where.with_value(done.result)


@dataclasses.dataclass(eq=False)
class WriteSegments(beam.PTransform):  # type: ignore[misc]
    """Writes windowed outcomes below `output`, effect once.

    A file becomes visible when its window closes, and is never held back to grow: rows without a file have
    no fate, so a restart would read them again, and `--window-seconds` is how old they may get. Many small
    files of an hour become one by `beamrec compact`.

    Attributes:
      output: URI of the output folder.
      shards: number of shards; stored with the output and never changed, or the job fails.
      horizon_hours: how far back ids are remembered.
      form: how recommendations are written; stored with the output like the number of shards.
      max_file_mb: most data of one file, before it is compressed; a window that holds more gets several.
      patience_seconds: how long a store that is away is waited for before the job fails.
    """

    output: str
    shards: int = 8
    horizon_hours: int = 24
    form: SegmentFormat = dataclasses.field(default_factory=SegmentFormat)
    max_file_mb: int = 64
    patience_seconds: float = 300.0

    def expand(self, outcomes: beam.PCollection) -> beam.PCollection:
        """[OUTCOMES] -> one CommitResult a commit."""
        max_bytes = self.max_file_mb << 20
        sink = _Sink(
            self.output, self.shards, self.horizon_hours, self.form, max_bytes, self.patience_seconds
        )
        return (
            outcomes
            | "ByShard"
            >> beam.FlatMap(split_shards, self.shards).with_output_types(tuple[int, pa.RecordBatch])
            | "Group" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(_CommitDoFn(sink))
        )
