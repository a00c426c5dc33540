"""Lists without what the customer has seen, and the record that is written."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from shop_events import Event

__all__ = ["Neighbours", "Served", "recommended", "similar"]

Neighbours = Mapping[str, tuple[list[str], list[float]]]
"""Of a product its nearest items, and how far they are."""


@dataclasses.dataclass(slots=True)
class Served:
    """An event with its recommendations."""

    event: Event
    release: str
    served_by: str
    processed_at: dt.datetime
    recommended_items: list[dict[str, Any]]
    similar_items: list[dict[str, Any]]

    def line(self) -> bytes:
        """The record as a line of JSON."""
        event = self.event
        record = event.own | {
            "recommended_items": self.recommended_items,
            "similar_items": self.similar_items,
            "event_id": event.event_id,
            "event_time": event.event_time,
            "release": self.release,
            "served_by": self.served_by,
            "processed_at": self.processed_at,
        }
        return orjson.dumps(record, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def recommended(ranked: Iterable[tuple[str, float]], event: Event, items: int) -> list[dict[str, Any]]:
    """The first of the ranked items that are not in the event's history."""
    return _first(ranked, event.products, items, "score")


def similar(neighbours: Neighbours, event: Event, items: int) -> list[dict[str, Any]]:
    """The neighbours of each product in the cart; of each product viewed, if the cart is empty."""
    return [
        {
            "product_code": product,
            "similar_items": _first(
                zip(*neighbours[product], strict=True), event.products, items, "distance"
            ),
        }
        for product in event.products
        if (product in event.cart or not event.cart) and product in neighbours
    ]


def _first(
    ranked: Iterable[tuple[str, float]], seen: list[str], items: int, name: str
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for item, value in ranked:
        if item not in seen:
            found.append({"id": item, name: value})
            if len(found) == items:
                break
    return found
