"""How fast the checkpoints of a job on Flink grow that does nothing but read, by how it reads.

The workers are this process, so the bundles that a read took are counted: what each leaves behind does not
depend on how fast the machine is.
"""

import dataclasses
import os
import threading
import time
import uuid
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader, UnboundedSource
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.timestamp import Timestamp
from jobs import Checkpoints

from beamrec.io.events import ReadEvents
from beamrec.runners.flink_cluster import Cluster
from beamrec.runners.flink_jobs import FlinkJobs
from beamrec.runners.preset import launch

__all__ = ["RATES", "READS", "SPLITS", "measure_growth"]

SPLITS = 2
RATES = (0.0, 50.0)
_START_SECONDS = 600.0

READS = {
    "10 ms, a bundle a poll": ((0.01, 0.01, 0.0), 10),
    "100 ms, a bundle a poll": ((0.1, 0.1, 0.0), 100),
    "1 s, a bundle a poll": ((1.0, 1.0, 0.0), 1000),
    "10 ms, bundles of 2 to 5 s": ((0.01, 2.0, 5.0), 100),
    "100 ms, bundles of 2 to 5 s": ((0.1, 2.0, 5.0), 100),
    "1 s, bundles of 2 to 5 s": ((1.0, 2.0, 5.0), 100),
}
"""Added latency -> (poll, read and hold seconds, longest time of a bundle [ms])."""

_BATCH = pa.record_batch({"number": [1]})
_BUNDLES: dict[str, int] = {}
_LOCK = threading.Lock()


class _Mark(CheckpointMark):  # type: ignore[misc]
    pass


@dataclasses.dataclass(frozen=True)
class _Source(UnboundedSource):  # type: ignore[misc]
    """A number every so often, or never: `rate` a second."""

    job: str
    number: int
    rate: float

    def split(self, desired_num_splits: int, options: Any = None) -> "list[_Source]":
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        return _Reader(self)

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        return coders.PickleCoder()


class _Reader(UnboundedReader):  # type: ignore[misc]
    def __init__(self, source: _Source) -> None:
        self._source, self._next = source, time.monotonic()

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        if not self._source.rate or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + 1 / self._source.rate
        return True

    def get_current(self) -> pa.RecordBatch:
        return _BATCH

    def get_current_timestamp(self) -> Timestamp:
        return Timestamp.now()

    def get_watermark(self) -> Timestamp:
        return Timestamp.now()

    def get_checkpoint_mark(self) -> CheckpointMark:
        with _LOCK:
            _BUNDLES[self._source.job] = _BUNDLES.get(self._source.job, 0) + 1
        return _Mark()


def measure_growth(cluster: Cluster, setting: str, rate: float, seconds: float) -> dict[str, Any]:
    """One job for that long, from its first checkpoint on."""
    reads, bundle_millis = READS[setting]
    name = f"growth-{uuid.uuid4().hex[:8]}"
    flags = ["--environment_type=LOOPBACK", "--parallelism=1", f"--job_name={name}"]
    flags += [f"--max_bundle_time_mills={bundle_millis}", "--checkpointing_interval=5000"]
    jobs, checkpoints = FlinkJobs(cluster.dashboard, 60), Checkpoints(cluster.dashboard)
    before = set(jobs.states())
    with launch("flink", [*flags, "--min_pause_between_checkpoints=2000"]) as (_, args):
        pipeline = beam.Pipeline(options=PipelineOptions(args))
        sources = [_Source(name, number, rate) for number in range(SPLITS)]
        rows = pipeline | ReadEvents(sources, *reads) | beam.Map(lambda batch: batch.num_rows)
        _ = rows | beam.Reshuffle() | beam.Map(lambda row: None)
        threading.Thread(target=pipeline.run, daemon=True).start()
        deadline = time.monotonic() + _START_SECONDS
        while not checkpoints.sizes:
            if time.monotonic() > deadline:
                raise SystemExit(f"no checkpoint of {setting}: see {cluster.folder}/logs")
            time.sleep(2)
            checkpoints.look()
        bundles = [(time.time(), _BUNDLES.get(name, 0))]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(5)
            checkpoints.look()
            bundles.append((time.time(), _BUNDLES.get(name, 0)))
    for job in set(jobs.running()) - before:
        jobs.cancel(job)
    taken = (bundles[-1][1] - bundles[0][1]) / (bundles[-1][0] - bundles[0][0])
    grown = checkpoints.bytes_per_hour()
    return {
        "bytes_per_hour": grown,
        "bundles_per_second": taken,
        "bytes_per_bundle": None if grown is None or not taken else grown / 3600 / taken,
        "splits": SPLITS,
        "checkpoints": len(checkpoints.sizes),
        "most_ms": max(millis for _, _, millis in checkpoints.sizes),
        "last_bytes": checkpoints.sizes[-1][1],
        "load": os.getloadavg()[0],
    }
