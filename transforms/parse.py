"""From raw bytes to event columns: one bad record never harms its batch."""

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import Fate, event_schema, rfc3339
from beamrec.schemas.shop import Shop
from beamrec.transforms import metrics
from beamrec.transforms.outcomes import outcomes, position_of
from beamrec.transforms.parse_columns import parse_columns
from beamrec.transforms.parse_record import InvalidError, RecordParser

__all__ = ["ParseEvents", "count_parsed", "parse_events", "parsed_outputs"]


def parse_events(
    raw: pa.RecordBatch,
    shop: Shop,
    dedupe_key: str | None = None,
    future_tolerance_seconds: float = 300.0,
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Parses and validates a batch of events.

    Plainly good events become columns together, the others one by one.

    Args:
      raw: schema RAW_EVENTS.
      shop: how an event maps to customer, products, time and id.
      dedupe_key: payload field that stands for a missing event id.
      future_tolerance_seconds: an event time further than this beyond arrival is a dead letter.

    Returns:
      (events of `event_schema(shop)`, outcomes of OUTCOMES for the dead letters); together they hold
      each row of `raw` once, in its order.
    """
    tolerance = timedelta(seconds=future_tolerance_seconds)
    places, plain = parse_columns(raw, shop, dedupe_key, tolerance // timedelta(microseconds=1))
    others = np.setdiff1d(np.arange(raw.num_rows), places)
    if not len(others):
        return plain, outcomes([], Fate.DEAD_LETTER)
    parser = RecordParser(shop, dedupe_key, tolerance)
    good: list[dict[str, Any]] = []
    good_places: list[int] = []
    dead: list[tuple[dict[str, Any], str | None, DeadLetter]] = []
    for place, row in zip(others.tolist(), raw.take(pa.array(others)).to_pylist(), strict=True):
        try:
            good.append(row | parser.parse(row))
            good_places.append(place)
        except InvalidError as error:
            dead.append((row, None, _dead_letter(row, error)))
    odd = pa.RecordBatch.from_pylist(good, schema=event_schema(shop))
    return _merged(plain, places, odd, good_places), outcomes(dead, Fate.DEAD_LETTER)


def _dead_letter(row: dict[str, Any], error: InvalidError) -> DeadLetter:
    return DeadLetter(
        stage="parse",
        error_type=error.rule,
        error_message=str(error),
        payload=row["payload"],
        source=position_of(row),
        first_seen=rfc3339(row["arrival"]),
    )


def _merged(
    plain: pa.RecordBatch, plain_places: "np.ndarray[Any, Any]", odd: pa.RecordBatch, odd_places: list[int]
) -> pa.RecordBatch:
    """The rows of both in the order of their places."""
    if not odd.num_rows:
        return plain
    order = pa.array(np.argsort(np.concatenate([plain_places, odd_places]), kind="stable"))
    columns = (pa.concat_arrays(pair).take(order) for pair in zip(plain.columns, odd.columns, strict=True))
    return pa.RecordBatch.from_arrays(list(columns), schema=plain.schema)


class _ParseDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, options: "ParseEvents") -> None:
        self._options = options

    def process(self, raw: pa.RecordBatch) -> Iterator[Any]:
        events, dead = parse_events(
            raw, self._options.shop, self._options.dedupe_key, self._options.future_tolerance_seconds
        )
        count_parsed(events, dead)
        yield from parsed_outputs(raw, events, dead)


def count_parsed(events: pa.RecordBatch, dead: pa.RecordBatch) -> None:
    """Metrics of a batch that was parsed."""
    metrics.count("parsed", events.num_rows)
    metrics.count("parse_dead_letters", dead.num_rows)


def parsed_outputs(batch: pa.RecordBatch, events: pa.RecordBatch, dead: pa.RecordBatch) -> Iterator[Any]:
    """What a DoFn yields that parsed a batch: `events`, and with the tag `dead` OUTCOMES; nothing empty."""
    if events.num_rows:
        yield events
    if dead.num_rows:
        # By arrival, which the watermark has not passed: a dead letter is never late.
        arrival = batch.column("arrival").cast(pa.int64())[0].as_py()
        yield beam.pvalue.TaggedOutput("dead", beam.window.TimestampedValue(dead, Timestamp(micros=arrival)))


@dataclasses.dataclass(eq=False)
class ParseEvents(beam.PTransform):  # type: ignore[misc]
    """`parse_events` on a PCollection of RAW_EVENTS; outputs `events` and `dead` (OUTCOMES)."""

    shop: Shop
    dedupe_key: str | None = None
    future_tolerance_seconds: float = 300.0

    def expand(self, raw: beam.PCollection) -> Any:
        """[RAW_EVENTS] -> events: [event_schema], dead: [OUTCOMES]."""
        return raw | "Parse" >> beam.ParDo(_ParseDoFn(self)).with_outputs(
            "dead", main="events"
        ).with_output_types(pa.RecordBatch)
