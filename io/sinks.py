"""Sinks beside the files: streams that take the same recommendation lines.

A sink's module (see `io.registry`, kind `sinks`) has `open_sink(uri)`, which returns a transform of OUTCOMES.
It writes at least once, under the event id as key, and waits outages out.
"""

import abc
import logging
from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.registry import backend
from beamrec.schemas.events import Fate
from beamrec.transforms import metrics

__all__ = ["SendLinesDoFn", "open_sink"]

_LOGGER = logging.getLogger(__name__)


def open_sink(uri: str) -> beam.PTransform:
    """The transform that writes to a stream; raises UsageError if there is no such scheme or stream."""
    return backend("sinks", uri, "--also").open_sink(uri)


class SendLinesDoFn(beam.DoFn, abc.ABC):  # type: ignore[misc]
    """Sends the lines of visible outcomes; yields how many, a number a batch.

    Args:
      where: the stream, for the log.
      system: its scheme, for the metrics.
      limit: who says what is too large, for the log.
    """

    def __init__(self, where: str, system: str, limit: str) -> None:
        self._where, self._system, self._limit = where, system, limit

    def start_bundle(self) -> None:
        """Also lets go of the metrics of the bundle before."""
        metrics.start_bundle()

    @abc.abstractmethod
    def send(self, lines: Sequence[tuple[str, bytes]]) -> int:
        """Sends lines under their keys; returns how many were left out because they are too large."""

    def process(self, outcomes: pa.RecordBatch) -> Iterator[int]:
        visible = outcomes.filter(pc.equal(outcomes.column("fate"), Fate.VISIBLE.value))
        columns = (visible.column(name).to_pylist() for name in ("event_id", "line"))
        lines = list(zip(*columns, strict=True))
        too_large = self.send(lines)
        metrics.count("sent", len(lines) - too_large, self._system)
        metrics.observe_since("event_to_stream_us", visible.column("event_time"))
        metrics.observe_since("arrival_to_stream_us", visible.column("arrival"))
        if too_large:
            metrics.count("too_large", too_large, self._system)
            _LOGGER.error("%s: %d records are too large for %s", self._where, too_large, self._limit)
        yield len(lines) - too_large
