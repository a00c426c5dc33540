"""The serving table as a sink: the newest recommendations of each customer, a batch a statement."""

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import BoundedWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.retrieval import StoreDoFn
from beamrec.schemas.events import SERVING
from beamrec.transforms import metrics

__all__ = ["UpsertServing"]


@dataclasses.dataclass(frozen=True)
class _Upsert:
    """A batch on its way into the table.

    Attributes:
      answer: (rows changed, seconds that it took, when it was done in microseconds since the epoch).
      times: `event_time` and `arrival` of its rows.
      where: makes the output of the same window and time.
    """

    answer: "Future[tuple[int, float, int]]"
    times: tuple[pa.Array, pa.Array]
    where: WindowedValue


class _UpsertDoFn(StoreDoFn):
    """The server takes one batch while the worker makes the next; a bundle ends behind its last one.

    The job waits for this statement more than a quarter of its time if it does nothing else meanwhile.
    """

    def setup(self) -> None:
        super().setup()
        self._thread = ThreadPoolExecutor(1, "upsert")

    def teardown(self) -> None:
        self._thread.shutdown()

    def start_bundle(self) -> None:
        super().start_bundle()
        # What a bundle that failed has left may come later than its repetition: the newest row wins.
        self._pending: _Upsert | None = None

    def process(
        self,
        batch: pa.RecordBatch,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: BoundedWindow = beam.DoFn.WindowParam,
    ) -> Iterator[WindowedValue]:
        yield from self.finish_bundle()  # one at a time, in their order
        times = batch.column("event_time"), batch.column("arrival")
        answer = self._thread.submit(self._upsert, batch.select(SERVING.names))
        self._pending = _Upsert(answer, times, WindowedValue(None, timestamp, (window,)))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        changed, seconds, at_us = done.answer.result()
        metrics.observe_seconds("upsert_us", seconds)
        metrics.count("upserted", changed)
        metrics.observe_since("event_to_serving_us", done.times[0], at_us)
        metrics.observe_since("arrival_to_serving_us", done.times[1], at_us)
        yield done.where.with_value(changed)

    def _upsert(self, rows: pa.RecordBatch) -> tuple[int, float, int]:
        began = time.perf_counter()
        changed = self._releases.store.upsert_serving(rows)
        return changed, time.perf_counter() - began, time.time_ns() // 1000


@dataclasses.dataclass(eq=False)
class UpsertServing(beam.PTransform):  # type: ignore[misc]
    """Keeps the newest recommendations of each customer in the serving table."""

    vector_db: str

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[SERVED] -> number of rows written, a batch each."""
        return batches | "Upsert" >> beam.ParDo(_UpsertDoFn(self.vector_db)).with_output_types(int)
