"""One record, value by value: every rule of the event format, and what to say of a record that breaks it.

This is the whole of parsing; `parse_columns` does the same for what is plainly good, many records at once.
"""

import hashlib
import re
import reprlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson

from beamrec.schemas.events import RESERVED_FIELDS, SESSION
from beamrec.schemas.shop import Feature, Shop

__all__ = ["MAX_HISTORY", "MAX_ID_CHARACTERS", "MAX_NUMBER", "InvalidError", "RecordParser", "payload_id"]

MAX_ID_CHARACTERS = 256
"""Of an event's id and of a customer's or product's key: an index of PostgreSQL holds 2,704 bytes."""

MAX_HISTORY = 1000
"""Entries: the search asks for that many more items, for every event of the batch."""

MAX_NUMBER = float(np.finfo(np.float32).max)
"""Of a feature, either sign: towers take float32, and a vector made of infinity finds nothing."""

# RFC 3339 with its mandatory offset; `datetime.fromisoformat` alone would take dates and week dates too.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_INTEGER = re.compile(r"[+-]?\d{1,19}")


class InvalidError(Exception):
    """A rule that the record breaks: a short stable name, and what was expected and what came."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class RecordParser:
    """Makes the columns of one event.

    Args:
      shop: how an event maps to customer, products, time and id.
      dedupe_key: payload field that stands for a missing event id.
      tolerance: an event time further than this beyond arrival breaks a rule.
    """

    def __init__(self, shop: Shop, dedupe_key: str | None, tolerance: timedelta) -> None:
        self._shop = shop
        self._map = shop.events
        self._dedupe_key = dedupe_key
        self._tolerance = tolerance
        self._customer: Callable[[Any, str], Any] = _KEYS[shop.customers.key_type]
        self._product: Callable[[Any, str], Any] = _KEYS[shop.products.key_type]

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """What `event_schema` has beyond RAW_EVENTS, by name, of a row of RAW_EVENTS.

        Raises:
          InvalidError: the record breaks a rule.
        """
        event = _json_object(row["payload"])
        columns = {
            "event_id": self._event_id(event, row),
            "event_time": self._event_time(event, row["arrival"]),
            "history": self._history(event),
            self._shop.customers.key: _short(
                self._customer(event.get(self._map.customer), self._map.customer), self._map.customer
            ),
        }
        if self._map.shape == "click":
            session = _string(event.get(self._map.session), self._map.session)
            columns[SESSION] = _short(session, self._map.session)
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
                raise InvalidError("event_id_invalid", f"{name}: expected a string, got {_show(value)}")
            if "\0" in str(value):
                raise InvalidError("event_id_invalid", f"{name}: holds a NUL character")
            if len(str(value)) > MAX_ID_CHARACTERS:
                raise InvalidError("event_id_invalid", f"{name}: longer than {MAX_ID_CHARACTERS} characters")
            return str(value)
        # Without an id of its own a producer's retry cannot be told from a second event.
        return payload_id(row["payload"], row["source"], row["position"])

    def _event_time(self, event: dict[str, Any], arrival: datetime) -> datetime:
        value = event.get(self._map.event_time)
        if value is None:
            return arrival
        time = _rfc3339(value, self._map.event_time)
        if time > arrival + self._tolerance:
            raise InvalidError(
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
            raise InvalidError("history_invalid", f"{name}: expected a list, got {_show(entries)}")
        if len(entries) > MAX_HISTORY:
            raise InvalidError(
                "history_invalid", f"{name}: expected {MAX_HISTORY:,} entries at most, got {len(entries):,}"
            )
        return [self._entry(entry, f"{name}[{i}]") for i, entry in enumerate(entries)]

    def _entry(self, entry: Any, where: str) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise InvalidError("history_invalid", f"{where}: expected an object, got {_show(entry)}")
        product = self._product(entry.get(self._map.product), f"{where}.{self._map.product}")
        if product is None or product == "":
            raise InvalidError("history_invalid", f"{where}.{self._map.product}: missing")
        _short(product, f"{where}.{self._map.product}")
        _integer(entry.get(self._map.quantity), f"{where}.{self._map.quantity}")
        in_cart = entry.get(self._map.in_cart)
        if in_cart is not None and not isinstance(in_cart, bool):
            raise InvalidError(
                "history_invalid", f"{where}.{self._map.in_cart}: expected a boolean, got {_show(in_cart)}"
            )
        return {"product": product, "in_cart": bool(in_cart)}


def payload_id(payload: bytes, source: str, position: int) -> str:
    """Identity of an event without an id of its own: a hash of payload and source position."""
    return hashlib.blake2b(payload + f"\0{source}\0{position}".encode(), digest_size=16).hexdigest()


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidError("json_invalid", f"expected a JSON object in UTF-8: {error}") from None
    if not isinstance(event, dict):
        raise InvalidError("json_invalid", f"expected a JSON object, got {_show(event)}")
    return event


def _fields(event: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps({k: v for k, v in event.items() if k not in RESERVED_FIELDS})
    except orjson.JSONEncodeError as error:
        raise InvalidError("json_invalid", f"cannot be written as JSON again: {error}") from None


def _rfc3339(value: Any, where: str) -> datetime:
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise InvalidError(
            "event_time_invalid", f"{where}: expected RFC 3339 with an offset, got {_show(value)}"
        )
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidError("event_time_invalid", f"{where}: {_show(value)}: {error}") from None


def _integer(value: Any, where: str) -> int | None:
    """A 64-bit integer, from a number or a string of digits; None stays None."""
    if value is None:
        return None
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InvalidError("integer_invalid", f"{where}: expected a 64-bit integer, got {_show(value)}")
    return value


def _string(value: Any, where: str) -> str | None:
    if isinstance(value, str) and "\0" in value:
        # No database takes it, in no text.
        raise InvalidError("string_invalid", f"{where}: holds a NUL character")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidError("string_invalid", f"{where}: expected a string, got {_show(value)}")


def _short(key: Any, where: str) -> Any:
    if isinstance(key, str) and len(key) > MAX_ID_CHARACTERS:
        raise InvalidError(
            "string_invalid", f"{where}: expected {MAX_ID_CHARACTERS} characters at most, got {len(key):,}"
        )
    return key


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
        raise InvalidError(
            "number_invalid", f"{feature.event_field}: expected a number, got {_show(value)}"
        ) from None
    if not abs(number) <= MAX_NUMBER:
        raise InvalidError(
            "number_invalid", f"{feature.event_field}: expected a number up to {MAX_NUMBER:.2g}, got {number}"
        )
    return number


def _show(value: Any) -> str:
    # `reprlib` bounds depth and length: a value may be nested a thousand times or megabytes long.
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
