"""Similar items of the products in events: four clients, one job.

Each takes events, each with one to five products, and returns for every event the neighbours of its
products. What they answer is compared before any time counts.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import psycopg
import pyarrow as pa

from beamrec.io.neighbour_cache import NeighbourCache
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.retrieval import enrich
from beamrec.schemas.events import event_schema
from beamrec.schemas.shop import CLASSICMODELS

__all__ = ["BATCH_EVENTS", "CLIENTS", "Client", "Events", "make_events", "plain"]

BATCH_EVENTS = 500
_MOST_PRODUCTS = 5
_HISTORY = event_schema(CLASSICMODELS).field("history").type
_BATCHED = (
    "SELECT id, neighbour_ids, distances FROM beamrec.item_neighbours WHERE release = %s AND id = ANY(%s)"
)

Events = list[list[str]]


class Client(Protocol):
    """Answers events."""

    def __call__(self, events: Sequence[Events]) -> Iterator[Any]:
        """An answer for each batch of events."""


def make_events(ids: Sequence[str], count: int, seed: int) -> Events:
    """Products of events, popular ones more often: a shop's clicks follow Zipf's law."""
    draw = np.random.default_rng(seed)
    weights = 1 / (10 + np.arange(len(ids))) ** 0.9
    bounds = np.cumsum(weights / weights.sum())
    sizes = draw.integers(1, _MOST_PRODUCTS + 1, count)
    products = np.minimum(np.searchsorted(bounds, draw.random(sizes.sum())), len(ids) - 1)
    ends = np.cumsum(sizes)
    return [
        list(dict.fromkeys(ids[p] for p in products[end - size : end]))
        for end, size in zip(ends, sizes, strict=True)
    ]


def beamrec_batches(batches: Sequence[Events]) -> list[pa.RecordBatch]:
    """Events as the stream has them; not part of the time, as it reads them so."""
    return [
        pa.RecordBatch.from_arrays(
            [
                pa.nulls(len(events), pa.int64()),
                pa.array([[{"product": p, "in_cart": False} for p in event] for event in events], _HISTORY),
            ],
            ["customerNumber", "history"],
        )
        for events in batches
    ]


@contextlib.contextmanager
def beamrec(uri: str, release: str) -> Iterator[Client]:
    """What `EnrichFromPgvector` does with a batch: Arrow in, Arrow out; it remembers what it looked up."""
    with _beamrec(uri, release, 64 * 2**20) as client:
        yield client


@contextlib.contextmanager
def beamrec_forgetful(uri: str, release: str) -> Iterator[Client]:
    """The same with no memory: every product of every batch is asked for."""
    with _beamrec(uri, release, 0) as client:
        yield client


@contextlib.contextmanager
def _beamrec(uri: str, release: str, cache_bytes: int) -> Iterator[Client]:
    store = ReleaseStore(uri)
    found, cache = store.release(release), NeighbourCache(store, cache_bytes)

    def answer(batches: Sequence[Any]) -> Iterator[Any]:
        for batch in batches:
            yield enrich(batch, CLASSICMODELS, cache, found).column("similar")

    yield answer
    store.close()


@contextlib.contextmanager
def hand_batched(uri: str, release: str) -> Iterator[Client]:
    """psycopg 3, one prepared `= ANY` for each batch, a dict, and lists of it."""
    with psycopg.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:

        def answer(batches: Sequence[Events]) -> Iterator[Any]:
            for events in batches:
                wanted = list({product for event in events for product in event})
                cursor.execute(_BATCHED, [release, wanted], prepare=True)
                found = {key: (near, far) for key, near, far in cursor}
                yield [[(product, *found[product]) for product in event] for event in events]

        yield answer


@contextlib.contextmanager
def one_query_per_event(uri: str, release: str) -> Iterator[Client]:
    """psycopg 3, one connection, a prepared query for each event."""
    with psycopg.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:

        def answer(batches: Sequence[Events]) -> Iterator[Any]:
            for events in batches:
                yield [_one(cursor, release, event) for event in events]

        yield answer


@contextlib.contextmanager
def connect_per_event(uri: str, release: str) -> Iterator[Client]:
    """A connection for each event, as a function that is called for every event has it."""

    def answer(batches: Sequence[Events]) -> Iterator[Any]:
        for events in batches:
            answers = []
            for event in events:
                with psycopg.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
                    answers.append(_one(cursor, release, event))
            yield answers

    yield answer


def _one(cursor: psycopg.Cursor[Any], release: str, event: list[str]) -> list[Any]:
    cursor.execute(_BATCHED, [release, event], prepare=True)
    found = {key: (near, far) for key, near, far in cursor}
    return [(product, *found[product]) for product in event]


CLIENTS = {
    "beamrec": beamrec,
    "beamrec_forgetful": beamrec_forgetful,
    "hand_batched": hand_batched,
    "one_query_per_event": one_query_per_event,
    "connect_per_event": connect_per_event,
}


def plain(answer: Any) -> list[Any]:
    """Any client's answer in one shape, for comparison."""
    if isinstance(answer, pa.Array):
        return [
            [(entry["product"], [n["id"] for n in entry["items"]], [n["distance"] for n in entry["items"]])
             for entry in row]
            for row in answer.to_pylist()
        ]  # fmt: skip
    return [[(product, list(near), list(far)) for product, near, far in row] for row in answer]
