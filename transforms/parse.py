"""From raw bytes to event columns: one bad record never harms its batch."""

import dataclasses
import hashlib
import math
import re
import reprlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import RESERVED_FIELDS, Fate, event_schema, rfc3339
from beamrec.schemas.shop import Feature, Shop
from beamrec.transforms.outcomes import outcomes, position_of

__all__ = ["ParseEvents", "parse_events"]

# RFC 3339 with its mandatory offset; `datetime.fromisoformat` alone would take dates and week dates too.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_INTEGER = re.compile(r"[+-]?\d{1,19}")
_MAX_ID_CHARACTERS = 256


class _InvalidError(Exception):
    """A rule that the record breaks: a short stable name, and what was expected and what came."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def parse_events(
    raw: pa.RecordBatch,
    shop: Shop,
    dedupe_key: str | None = None,
    future_tolerance_seconds: float = 300.0,
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Parses and validates a batch of events.

    Args:
      raw: schema RAW_EVENTS.
      shop: how an event maps to customer, products, time and id.
      dedupe_key: payload field that stands for a missing event id.
      future_tolerance_seconds: an event time further than this beyond arrival is a dead letter.

    Returns:
      (events of `event_schema(shop)`, outcomes of OUTCOMES for the dead letters); together they hold
      each row of `raw` once.
    """
    parser = _Parser(shop, dedupe_key, timedelta(seconds=future_tolerance_seconds))
    good: list[dict[str, Any]] = []
    dead: list[tuple[dict[str, Any], str | None, DeadLetter]] = []
    for row in raw.to_pylist():
        try:
            good.append(row | parser.parse(row))
        except _InvalidError as error:
            letter = DeadLetter(
                stage="parse",
                error_type=error.rule,
                error_message=str(error),
                payload=row["payload"],
                source=position_of(row),
                first_seen=rfc3339(row["arrival"]),
            )
            dead.append((row, None, letter))
    events = pa.RecordBatch.from_pylist(good, schema=event_schema(shop))
    return events, outcomes(dead, Fate.DEAD_LETTER)


class _Parser:
    def __init__(self, shop: Shop, dedupe_key: str | None, tolerance: timedelta) -> None:
        self._shop = shop
        self._map = shop.events
        self._dedupe_key = dedupe_key
        self._tolerance = tolerance
        self._customer: Callable[[Any, str], Any] = _KEYS[shop.customers.key_type]
        self._product: Callable[[Any, str], Any] = _KEYS[shop.products.key_type]

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        event = _json_object(row["payload"])
        columns = {
            "event_id": self._event_id(event, row),
            "event_time": self._event_time(event, row["arrival"]),
            "history": self._history(event),
            self._shop.customers.key: self._customer(event.get(self._map.customer), self._map.customer),
        }
        for feature in self._shop.user_features:
            columns[feature.column] = _feature(feature, event.get(str(feature.event_field)))
        columns["fields"] = _fields(event)
        return columns

    def _event_id(self, event: dict[str, Any], row: dict[str, Any]) -> str:
        for name in filter(None, (self._map.event_id, self._dedupe_key)):
            value = event.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise _InvalidError("event_id_invalid", f"{name}: expected a string, got {_show(value)}")
            if "\0" in str(value):
                raise _InvalidError("event_id_invalid", f"{name}: holds a NUL character")
            if len(str(value)) > _MAX_ID_CHARACTERS:
                raise _InvalidError(
                    "event_id_invalid", f"{name}: longer than {_MAX_ID_CHARACTERS} characters"
                )
            return str(value)
        # Without an id of its own a producer's retry cannot be told from a second event.
        return payload_id(row)

    def _event_time(self, event: dict[str, Any], arrival: datetime) -> datetime:
        value = event.get(self._map.event_time)
        if value is None:
            return arrival
        time = _rfc3339(value, self._map.event_time)
        if time > arrival + self._tolerance:
            raise _InvalidError(
                "event_time_in_future", f"{self._map.event_time}: {value} is after its arrival at {arrival}"
            )
        return time

    def _history(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        if self._map.shape == "click":
            return [self._entry(event, "event")] if event.get(self._map.product) is not None else []
        name = self._map.history
        entries = event.get(name)
        if entries is None:
            return []
        if not isinstance(entries, list):
            raise _InvalidError("history_invalid", f"{name}: expected a list, got {_show(entries)}")
        return [self._entry(entry, f"{name}[{i}]") for i, entry in enumerate(entries)]

    def _entry(self, entry: Any, where: str) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise _InvalidError("history_invalid", f"{where}: expected an object, got {_show(entry)}")
        product = self._product(entry.get(self._map.product), f"{where}.{self._map.product}")
        if product is None or product == "":
            raise _InvalidError("history_invalid", f"{where}.{self._map.product}: missing")
        _integer(entry.get(self._map.quantity), f"{where}.{self._map.quantity}")
        in_cart = entry.get(self._map.in_cart)
        if in_cart is not None and not isinstance(in_cart, bool):
            raise _InvalidError(
                "history_invalid", f"{where}.{self._map.in_cart}: expected a boolean, got {_show(in_cart)}"
            )
        return {"product": product, "in_cart": bool(in_cart)}


def payload_id(row: dict[str, Any]) -> str:
    """Identity of an event without an id of its own: a hash of payload and source position."""
    digest = hashlib.blake2b(row["payload"], digest_size=16)
    digest.update(f"\0{row['source']}\0{row['position']}".encode())
    return digest.hexdigest()


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _InvalidError("json_invalid", f"expected a JSON object in UTF-8: {error}") from None
    if not isinstance(event, dict):
        raise _InvalidError("json_invalid", f"expected a JSON object, got {_show(event)}")
    return event


def _fields(event: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps({k: v for k, v in event.items() if k not in RESERVED_FIELDS})
    except orjson.JSONEncodeError as error:
        raise _InvalidError("json_invalid", f"cannot be written as JSON again: {error}") from None


def _rfc3339(value: Any, where: str) -> datetime:
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise _InvalidError(
            "event_time_invalid", f"{where}: expected RFC 3339 with an offset, got {_show(value)}"
        )
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _InvalidError("event_time_invalid", f"{where}: {_show(value)}: {error}") from None


def _integer(value: Any, where: str) -> int | None:
    """A 64-bit integer, from a number or a string of digits; None stays None."""
    if value is None:
        return None
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise _InvalidError("integer_invalid", f"{where}: expected a 64-bit integer, got {_show(value)}")
    return value


def _string(value: Any, where: str) -> str | None:
    if isinstance(value, str) and "\0" in value:
        # No database takes it, in no text.
        raise _InvalidError("string_invalid", f"{where}: holds a NUL character")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise _InvalidError("string_invalid", f"{where}: expected a string, got {_show(value)}")


_KEYS: dict[str, Callable[[Any, str], Any]] = {"int": _integer, "string": _string}


def _feature(feature: Feature, value: Any) -> float | str | None:
    if feature.kind != "number":
        return _string(value, str(feature.event_field))
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise _InvalidError(
            "number_invalid", f"{feature.event_field}: expected a number, got {_show(value)}"
        ) from None
    if not math.isfinite(number):
        raise _InvalidError(
            "number_invalid", f"{feature.event_field}: expected a finite number, got {number}"
        )
    return number


def _show(value: Any) -> str:
    # `reprlib` bounds depth and length: a value may be nested a thousand times or megabytes long.
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _ParseDoFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, options: "ParseEvents") -> None:
        self._options = options

    def process(self, raw: pa.RecordBatch) -> Iterator[Any]:
        events, dead = parse_events(
            raw, self._options.shop, self._options.dedupe_key, self._options.future_tolerance_seconds
        )
        if events.num_rows:
            yield events
        if dead.num_rows:
            # By arrival, which the watermark has not passed: a dead letter is never late.
            arrival = raw.column("arrival").cast(pa.int64())[0].as_py()
            yield beam.pvalue.TaggedOutput(
                "dead", beam.window.TimestampedValue(dead, Timestamp(micros=arrival))
            )


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
