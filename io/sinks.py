"""Sinks beside the files: streams that take the same recommendation lines.

A sink's module (see `io.registry`, kind `sinks`) has `open_sink(uri)`, which returns a transform of OUTCOMES.
It writes at least once, under the event id as key, and waits outages out.
"""

import abc
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics

from beamrec.io.registry import backend
from beamrec.schemas.events import Fate

__all__ = ["SendLinesDoFn", "open_sink"]

_LOGGER = logging.getLogger(__name__)


def open_sink(uri: str) -> beam.PTransform:
    """The transform that writes to a stream; raises UsageError if there is no such scheme or stream."""
    return backend("sinks", uri, "--also").open_sink(uri)


class SendLinesDoFn(beam.DoFn, abc.ABC):  # type: ignore[misc]
    """Sends the lines of visible outcomes; yields how many, a number a batch.

    Args:
      where: the stream, for the log.
      system, sent: namespace and name of the counter of what was sent.
      limit: who says what is too large, for the log.
    """

    def __init__(self, where: str, system: str, sent: str, limit: str) -> None:
        self._where, self._limit = where, limit
        self._system, self._sent = system, sent

    @abc.abstractmethod
    def send(self, lines: Sequence[tuple[str, bytes]]) -> int:
        """Sends lines under their keys; returns how many were left out because they are too large."""

    def process(self, outcomes: pa.RecordBatch) -> Iterator[int]:
        columns: Any = (outcomes.column(name).to_pylist() for name in ("event_id", "fate", "line"))
        lines = [(key, line) for key, fate, line in zip(*columns, strict=True) if fate == Fate.VISIBLE]
        too_large = self.send(lines)
        Metrics.counter(self._system, self._sent).inc(len(lines) - too_large)
        if too_large:
            Metrics.counter(self._system, "too_large").inc(too_large)
            _LOGGER.error("%s: %d records are too large for %s", self._where, too_large, self._limit)
        yield len(lines) - too_large
