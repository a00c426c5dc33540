"""The effect-once sink: outcomes become numbered segments of hour and shard, each row exactly once.

The only shuffle of the streaming pipeline lies here, by shard and window; what follows it is a commit
to the shard's log, which any number of writers may repeat.
"""

import dataclasses
import threading
import zlib
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils import shared

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.shard_log import CommitResult, ShardLog
from beamrec.io.store import open_store
from beamrec.schemas.events import OUTCOMES

__all__ = ["WriteSegments", "split_shards"]

_ROWS_A_COMMIT = 50_000


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


def _tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Joins batches up to what one commit holds in memory; a window of a backfill may hold much more."""
    joined: list[pa.RecordBatch] = []
    for batch in batches:
        joined.append(batch)
        if sum(part.num_rows for part in joined) >= _ROWS_A_COMMIT:
            yield pa.Table.from_batches(joined, OUTCOMES)
            joined = []
    if joined:
        yield pa.Table.from_batches(joined, OUTCOMES)


class _Logs:
    """The shard logs of one output in this process, each behind a lock of its own."""

    def __init__(self, output: str, horizon_hours: int) -> None:
        self._store = open_store(output)
        self._horizon_hours = horizon_hours
        self._lock = threading.Lock()
        self._logs: dict[int, tuple[threading.Lock, ShardLog]] = {}

    def commit(self, shard: int, outcomes: pa.Table) -> CommitResult:
        with self._lock:
            if shard not in self._logs:
                log = ShardLog(self._store, shard, self._horizon_hours)
                self._logs[shard] = (threading.Lock(), log)
            lock, log = self._logs[shard]
        with lock:
            return log.commit(outcomes)


class _CommitDoFn(beam.DoFn):  # type: ignore[misc]
    # Threads of one worker share what they know of a shard; a second copy would only cost memory.
    _shared = shared.Shared()

    def __init__(self, output: str, horizon_hours: int) -> None:
        self._output = output
        self._horizon_hours = horizon_hours

    def setup(self) -> None:
        self._logs = self._shared.acquire(
            lambda: _Logs(self._output, self._horizon_hours), tag=(self._output, self._horizon_hours)
        )

    def process(self, group: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[CommitResult]:
        shard, batches = group
        for table in _tables(batches):
            result = self._logs.commit(shard, table)
            for field in dataclasses.fields(result):
                Metrics.counter("segments", field.name).inc(getattr(result, field.name))
            yield result


@dataclasses.dataclass(eq=False)
class WriteSegments(beam.PTransform):  # type: ignore[misc]
    """Writes windowed outcomes below `output`, effect once.

    Attributes:
      output: URI of the output folder.
      shards: number of shards; stored with the output and never changed.
      horizon_hours: how far back ids are remembered.
    """

    output: str
    shards: int = 8
    horizon_hours: int = 24

    def expand(self, outcomes: beam.PCollection) -> beam.PCollection:
        """[OUTCOMES] -> one CommitResult a commit."""
        return (
            outcomes
            | "ByShard"
            >> beam.FlatMap(split_shards, self.shards).with_output_types(tuple[int, pa.RecordBatch])
            | "Group" >> beam.GroupByKey()
            | "Commit" >> beam.ParDo(_CommitDoFn(self.output, self.horizon_hours))
        )
