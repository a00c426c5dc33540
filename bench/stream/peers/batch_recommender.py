"""Recommendations of a batch of events: one look-up, one inference, one product; the loop's and Bytewax's."""

import datetime as dt
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

# Its threads wait for each other in a loop, and share the cores with server and broker: unless it is set,
# one. On two busy cores two took several times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np
import psycopg
from records import Neighbours, Served, recommended, similar
from shop_events import Event, Fields
from store import Release, active_release, catalogue, lookup
from user_tower import UserTower, is_usable

__all__ = ["BatchRecommender", "best_items"]

_FRESH_SECONDS = 1.0
_CHUNK_ITEMS = 512
_BLOCK_BYTES = 32 * 2**20  # of scores at a time: 500 users and 200,000 items would be 400 MB


def best_items(users: np.ndarray, items: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the items of highest inner product, best first: each [len(users), count].

    The best `count` of all stand in those `count` chunks of items whose highest scores are highest: so few
    scores are put in order, which is three times as fast as `argpartition` of 200,000.
    """
    count, chunk = min(count, len(items)), min(_CHUNK_ITEMS, len(items))
    chunks = -(-len(items) // chunk)
    size = max(1, _BLOCK_BYTES // (4 * len(items)))
    room = np.full((min(size, len(users)), chunks * chunk), -np.inf, np.float32)
    places = np.empty((len(users), count), np.int64)
    scores = np.empty((len(users), count), np.float32)
    for start in range(0, len(users), size):
        block = slice(start, start + size)
        products = room[: len(users[block])]
        np.matmul(users[block], items.T, out=products[:, : len(items)])
        highest = products.reshape(len(products), chunks, chunk).max(axis=2)
        first = chunk * _highest(highest, min(count, chunks))
        near = (first[:, :, None] + np.arange(chunk)).reshape(len(products), -1)
        values = np.take_along_axis(products, near, axis=1)
        found = _highest(values, count)
        order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1)
        found = np.take_along_axis(found, order, axis=1)
        places[block] = np.take_along_axis(near, found, axis=1)
        scores[block] = np.take_along_axis(values, found, axis=1)
    return places, scores


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    """Columns of the highest values of each row, in no order."""
    first = values.shape[1] - count
    return np.argpartition(values, first, axis=1)[:, first:]


class BatchRecommender:
    """Serves batches by the release that is active, asked for again after a second.

    Args:
      items: how many a list holds.
      remember: keeps the neighbours of products that were looked up, as long as the release is active.
    """

    def __init__(
        self, connection: psycopg.Connection[Any], fields: Fields, items: int = 5, remember: bool = False
    ) -> None:
        self._connection, self._fields, self._items = connection, fields, items
        self._remember = remember
        self._asked = float("-inf")
        self._release: Release | None = None
        self._refresh()

    def _refresh(self) -> Release:
        if self._release is None or time.monotonic() - self._asked >= _FRESH_SECONDS:
            found = active_release(self._connection)
            if found != self._release:
                self._tower = UserTower(found.folder, self._fields)
                self._catalogue = catalogue(self._connection, found.id)
                self._remembered: dict[str, tuple[list[str], list[float]] | None] = {}
                self._release = found
            self._asked = time.monotonic()
        return self._release

    def serve(self, events: Sequence[Event]) -> list[Served]:
        """Each event with its recommendations, in their order."""
        release = self._refresh()
        most = self._items + max(len(event.products) for event in events)
        near, known = self._look_up(release, events, most)
        is_known = [event.customer in known for event in events]
        ranked = self._search(events, is_known, most)
        now = dt.datetime.now(dt.UTC)
        return [
            Served(
                event,
                release.id,
                "popular" if by_rank else "known_customer" if familiar else "cold_customer",
                now,
                recommended(candidates, event, self._items),
                similar(near, event, self._items),
            )
            for event, familiar, (by_rank, candidates) in zip(events, is_known, ranked, strict=True)
        ]

    def _look_up(self, release: Release, events: Sequence[Event], most: int) -> tuple[Neighbours, set[str]]:
        products = {product for event in events for product in event.products}
        customers = list({event.customer for event in events if event.customer is not None})
        if not self._remember:
            return lookup(self._connection, release.id, list(products), customers, most)
        missing = [product for product in products if product not in self._remembered]
        # Remembered for later events as well, whose histories may be longer.
        found, known = lookup(self._connection, release.id, missing, customers, 1_000)
        for product in missing:
            self._remembered[product] = found.get(product)
        near = {product: self._remembered[product] for product in products}
        return {product: lists for product, lists in near.items() if lists is not None}, known

    def _search(
        self, events: Sequence[Event], is_known: Sequence[bool], most: int
    ) -> list[tuple[bool, Iterable[tuple[str, float]]]]:
        """Of each event whether popularity alone ranks its items, and the items with their scores."""
        ids = self._catalogue.ids
        usable = [is_usable(event, known) for event, known in zip(events, is_known, strict=True)]
        scored = [event for event, is_scored in zip(events, usable, strict=True) if is_scored]
        found = iter(())
        if scored:
            places, scores = best_items(self._tower.vectors(scored), self._catalogue.vectors, most)
            found = zip(places.tolist(), scores.tolist(), strict=True)
        popular = [(item, 1 / (rank + 1)) for rank, item in enumerate(ids[:most])]
        answers: list[tuple[bool, Iterable[tuple[str, float]]]] = []
        for is_scored in usable:
            if is_scored:
                rows, values = next(found)
                answers.append((False, zip([ids[row] for row in rows], values, strict=True)))
            else:
                answers.append((True, popular))
        return answers
