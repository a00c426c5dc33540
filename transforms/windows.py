"""Event-time windows on batches, and the one place that decides what is late and what has expired."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.utils.timestamp import Duration, Timestamp

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import Fate, rfc3339
from beamrec.transforms import metrics
from beamrec.transforms.outcomes import outcomes, position_of

__all__ = ["SplitWindows", "WindowBatches", "split_windows"]

# GroupByKey drops what it finds too late without a trace, so it must never find anything too late:
# lateness is decided here, per row, and every row has its fate.
_NEVER_TOO_LATE = Duration(seconds=100 * 365 * 86_400)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def split_windows(
    events: pa.RecordBatch, window_seconds: int, allowed_lateness_seconds: float, max_delay_seconds: float
) -> tuple[list[tuple[int, pa.RecordBatch]], pa.RecordBatch]:
    """Splits a batch so that each piece lies in one window.

    The watermark that a row meets is its arrival less `max_delay_seconds`: stored with the row, so a
    replay decides alike. A row whose window had ended by then is late and goes with the window of its
    arrival (its hour stays that of its event time): it is written with the next batch rather than in a
    file of its own. So does one that is dated after its arrival, lest it wait for a time to come: no row is
    held back beyond the window of its arrival. Beyond `allowed_lateness_seconds` it has expired; with
    `math.inf` none has.

    Args:
      events: rows with `event_time` and `arrival`.
      window_seconds: length of the fixed windows, aligned to the epoch.

    Returns:
      ([(timestamp in microseconds, piece)], outcomes of OUTCOMES for the expired rows). The timestamp
      lies in the piece's window and is never behind the watermark for a row that is on time.
    """
    width = window_seconds * 1_000_000
    event_time = _micros(events.column("event_time"))
    arrival = _micros(events.column("arrival"))
    watermark = arrival - int(max_delay_seconds * 1e6)
    window_end = (event_time // width + 1) * width
    expired = watermark - window_end >= allowed_lateness_seconds * 1e6
    stamp = np.where(window_end <= watermark, arrival, np.minimum(event_time, arrival))
    window = stamp // width
    pieces = []
    for key in np.unique(window[~expired]):
        index = np.flatnonzero((window == key) & ~expired)
        piece = events if len(index) == events.num_rows else events.take(pa.array(index))
        pieces.append((int(stamp[index].min()), piece))
    return pieces, _expired(events.filter(pa.array(expired)), window_seconds, allowed_lateness_seconds)


def _micros(column: pa.Array) -> np.ndarray:
    return np.asarray(column.cast(pa.int64()))


def _expired(events: pa.RecordBatch, window_seconds: int, allowed_lateness_seconds: float) -> pa.RecordBatch:
    letters, width = [], timedelta(seconds=window_seconds)
    for row in events.to_pylist():
        time = row["event_time"]
        end = time - (time - _EPOCH) % width + width
        message = (
            f"event time {time.isoformat()}: its window ended at {end.isoformat()}, more than "
            f"{allowed_lateness_seconds:g} s before it arrived at {row['arrival'].isoformat()}"
        )
        letter = DeadLetter(
            stage="expired",
            error_type="expired",
            error_message=message,
            payload=row["payload"],
            source=position_of(row),
            first_seen=rfc3339(row["arrival"]),
            event_id=row["event_id"],
        )
        letters.append((row, row["event_id"], letter))
    return outcomes(letters, Fate.EXPIRED)


def _late(piece: pa.RecordBatch, stamp_us: int, window_seconds: int) -> int:
    """How many rows go with another window than that of their event time."""
    width = window_seconds * 1_000_000
    return int((_micros(piece.column("event_time")) // width != stamp_us // width).sum())


class _SplitDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, options: "SplitWindows") -> None:
        self._options = options

    def process(self, events: pa.RecordBatch) -> Iterator[Any]:
        options = self._options
        pieces, expired = split_windows(
            events, options.window_seconds, options.allowed_lateness_seconds, options.max_delay_seconds
        )
        metrics.count("expired", expired.num_rows)
        metrics.count("late", sum(_late(piece, micros, options.window_seconds) for micros, piece in pieces))
        for micros, piece in pieces:
            yield beam.window.TimestampedValue(piece, Timestamp(micros=micros))
        if expired.num_rows:
            arrival = int(_micros(events.column("arrival")).min())
            yield beam.pvalue.TaggedOutput(
                "expired", beam.window.TimestampedValue(expired, Timestamp(micros=arrival))
            )


@dataclasses.dataclass(eq=False)
class SplitWindows(beam.PTransform):  # type: ignore[misc]
    """`split_windows`; outputs `events`, stamped with their times, and `expired` (OUTCOMES)."""

    window_seconds: int = 60
    allowed_lateness_seconds: float = 3600.0
    max_delay_seconds: float = 2.0

    def expand(self, events: beam.PCollection) -> Any:
        """[event_schema] -> events: [event_schema], expired: [OUTCOMES]."""
        split = beam.ParDo(_SplitDoFn(self)).with_outputs("expired", main="events")
        return events | "Split" >> split.with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class WindowBatches(beam.PTransform):  # type: ignore[misc]
    """Fixed windows that fire at the watermark, and again for each batch that comes after it."""

    window_seconds: int = 60

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[any batch] -> the same, windowed by its timestamp."""
        return batches | "Fixed" >> beam.WindowInto(
            beam.window.FixedWindows(self.window_seconds),
            trigger=AfterWatermark(late=AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            allowed_lateness=_NEVER_TOO_LATE,
        )
