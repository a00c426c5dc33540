"""A shop's session events: which JSON field is what, and one parsed event."""

import base64
import dataclasses
import datetime as dt
import math
import tomllib
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Event", "Fields", "Message", "Refused", "dead_letter", "parse"]

# Fields that a recommendation adds: an event's own of these names do not pass through.
_RESERVED = (
    "recommended_items",
    "similar_items",
    "event_id",
    "event_time",
    "release",
    "served_by",
    "processed_at",
)


@dataclasses.dataclass(frozen=True)
class Message:
    """A record of the stream: its bytes, its place (`topic/partition/offset`) and its time [ms]."""

    payload: bytes
    place: str
    milliseconds: int


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields of an event; the defaults are those of classicmodels.

    Attributes:
      customer_is_number, product_is_number: types of the keys.
      features: of each feature of a customer its column, its field, and whether it is a number.
    """

    customer: str = "customer_number"
    event_id: str = "event_id"
    event_time: str = "event_time"
    history: str = "browse_history"
    product: str = "product_code"
    in_cart: str = "in_shopping_cart"
    customer_is_number: bool = True
    product_is_number: bool = False
    features: tuple[tuple[str, str, bool], ...] = (
        ("city", "city", False),
        ("country", "country", False),
        ("creditLimit", "credit_limit", True),
    )

    @classmethod
    def of_shop(cls, path: Path | None) -> "Fields":
        """Reads a shop's TOML; its events must be sessions."""
        if path is None:
            return cls()
        shop = tomllib.loads(path.read_text(encoding="utf-8"))
        events = shop.get("events", {})
        if events.get("shape", "session") != "session":
            raise SystemExit(f"{path}: the peers read sessions, not {events['shape']}s")
        own = {field.name for field in dataclasses.fields(cls)}
        features = tuple(
            (feature["column"], feature["event_field"], feature.get("kind") == "number")
            for feature in shop["customers"].get("features", [])
            if feature.get("event_field") and feature.get("kind") != "none"
        )
        names = {name: value for name, value in events.items() if name in own}
        keys = [shop[table]["key_type"] == "int" for table in ("customers", "products")]
        return cls(**names, customer_is_number=keys[0], product_is_number=keys[1], features=features)


@dataclasses.dataclass(slots=True)
class Event:
    """What is needed of an event.

    Attributes:
      own: its fields as they pass through.
      customer: key as text; None for a visitor.
      features: by `Fields.features`, "" and NaN for missing.
      products: the distinct ones of its history, in its order.
      cart: those in the cart.
    """

    own: dict[str, Any]
    event_id: str
    event_time: dt.datetime
    customer: str | None
    features: tuple[str | float, ...]
    products: list[str]
    cart: set[str]


class Refused(ValueError):  # noqa: N818
    """A record that is no event."""


def parse(message: Message, fields: Fields) -> Event:
    """The event of a message.

    Raises:
      Refused: it is no JSON object, or a field is not what it should be.
    """
    try:
        return _parse(message, fields)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


def _parse(message: Message, fields: Fields) -> Event:
    own = orjson.loads(message.payload)
    event_id, customer, time = own.get(fields.event_id), own.get(fields.customer), own.get(fields.event_time)
    viewed = [
        (_key(entry[fields.product], fields.product_is_number), entry.get(fields.in_cart))
        for entry in own.get(fields.history) or ()
    ]
    features = tuple([_feature(own.get(name), is_number) for _, name, is_number in fields.features])
    for name in _RESERVED:
        own.pop(name, None)
    return Event(
        own,
        message.place if event_id is None else _key(event_id, False),
        _time(time, message.milliseconds),
        None if customer is None else _key(customer, fields.customer_is_number),
        features,
        list(dict.fromkeys([product for product, _ in viewed])),
        {product for product, in_cart in viewed if in_cart},
    )


def _feature(value: Any, is_number: bool) -> str | float:
    if is_number:
        return math.nan if value is None else float(value)
    return "" if value is None else str(value)


def _key(value: Any, is_number: bool) -> str:
    if value is None:
        raise ValueError("a key is missing")
    text = str(int(value) if is_number else value)
    if "\0" in text:
        raise ValueError("a key holds NUL")
    return text


def _time(value: str | None, milliseconds: int) -> dt.datetime:
    if value is None:
        return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    time = dt.datetime.fromisoformat(value)
    if time.tzinfo is None:
        raise ValueError(f"{value} has no offset")
    return time.astimezone(dt.UTC)


def dead_letter(message: Message, error: Refused) -> bytes:
    """A line for a message that was refused."""
    payload = base64.b64encode(message.payload).decode()
    letter = {"error_message": str(error), "payload": payload, "source": message.place}
    return orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE)
