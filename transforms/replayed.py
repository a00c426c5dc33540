"""Parsing of events that were read before: the same rules, and nothing of what was known of them is lost."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import RAW_EVENTS
from beamrec.schemas.shop import Shop
from beamrec.transforms.parse import count_parsed, parse_events, parsed_outputs
from beamrec.transforms.parse_record import payload_id

__all__ = ["ParseReplayed", "parse_replayed"]


def parse_replayed(
    batch: pa.RecordBatch,
    shop: Shop,
    dedupe_key: str | None = None,
    future_tolerance_seconds: float = 300.0,
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """`parse_events` of a batch of REPLAYED.

    An event without an id of its own has the one that it had, or would have had at the position where it was
    first read; one that was visible keeps the id that it had then. What is still bad is a dead letter of its
    first position, with one attempt more.

    Args:
      batch: schema REPLAYED; a position appears once.

    Returns:
      As `parse_events`.
    """
    events, dead = parse_events(batch.select(RAW_EVENTS.names), shop, dedupe_key, future_tolerance_seconds)
    rows = {(row["source"], row["position"]): row for row in batch.to_pylist()}
    return _with_ids(events, rows), _as_next_attempt(dead, rows)


_Rows = dict[tuple[str, int], dict[str, Any]]


def _rows_of(batch: pa.RecordBatch, rows: _Rows) -> list[dict[str, Any]]:
    """The rows that those of a batch were made of."""
    keys = zip(batch.column("source").to_pylist(), batch.column("position").to_pylist(), strict=True)
    return [rows[key] for key in keys]


def _with_ids(events: pa.RecordBatch, rows: _Rows) -> pa.RecordBatch:
    pairs = zip(events.column("event_id").to_pylist(), _rows_of(events, rows), strict=True)
    ids = pa.array([_id(event_id, row) for event_id, row in pairs], pa.string())
    place = events.schema.get_field_index("event_id")
    return events.set_column(place, events.schema.field(place), ids)


def _id(event_id: str, row: dict[str, Any]) -> str:
    if row["origin"] is None:
        return row["known_id"] or event_id
    if event_id != payload_id(row["payload"], row["source"], row["position"]):
        return event_id  # its own
    if row["known_id"] is not None:
        return str(row["known_id"])
    origin = json.loads(row["origin"])
    return payload_id(row["payload"], f"{origin['system']}:{origin['name']}", origin["position"])


def _as_next_attempt(dead: pa.RecordBatch, rows: _Rows) -> pa.RecordBatch:
    pairs = zip(dead.column("line").to_pylist(), _rows_of(dead, rows), strict=True)
    lines = pa.array([_next_attempt(line, row) for line, row in pairs], pa.binary())
    place = dead.schema.get_field_index("line")
    return dead.set_column(place, dead.schema.field(place), lines)


def _next_attempt(line: bytes, row: dict[str, Any]) -> bytes:
    if row["origin"] is None:
        return line
    letter = DeadLetter.from_json(line)
    origin, event_id = json.loads(row["origin"]), letter.event_id or row["known_id"]
    again = dataclasses.replace(letter, source=origin, event_id=event_id, attempt=row["attempt"] + 1)
    return again.to_json()


class _ParseDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, options: "ParseReplayed") -> None:
        self._options = options

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        options = self._options
        events, dead = parse_replayed(
            batch, options.shop, options.dedupe_key, options.future_tolerance_seconds
        )
        count_parsed(events, dead)
        yield from parsed_outputs(batch, events, dead)


@dataclasses.dataclass(eq=False)
class ParseReplayed(beam.PTransform):  # type: ignore[misc]
    """`parse_replayed` on a PCollection of REPLAYED; outputs `events` and `dead` (OUTCOMES)."""

    shop: Shop
    dedupe_key: str | None = None
    future_tolerance_seconds: float = 300.0

    def expand(self, batches: beam.PCollection) -> Any:
        """[REPLAYED] -> events: [event_schema], dead: [OUTCOMES]."""
        return batches | "Parse" >> beam.ParDo(_ParseDoFn(self)).with_outputs(
            "dead", main="events"
        ).with_output_types(pa.RecordBatch)
