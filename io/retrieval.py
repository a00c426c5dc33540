"""Look-ups, item search and serving upserts on pgvector, as transforms of column batches.

One SQL statement a batch. An outage is waited out (the store retries); it never makes a dead letter.
"""

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils import shared

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.pgvector import Catalogue, ReleaseStore
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import CANDIDATES, RELEASE_CHECKSUM, RELEASE_ID, RELEASE_URI, SIMILAR
from beamrec.schemas.releases import ActiveRelease
from beamrec.schemas.serving import ServingRow
from beamrec.schemas.shop import Shop

__all__ = ["EnrichFromPgvector", "Retrieval", "SearchItems", "UpsertServing", "enrich", "top_items"]

Retrieval = Literal["auto", "exact", "index"]

# Up to this many items `auto` multiplies in the worker (570 users/s at 200 k items, more below) rather than
# asking the index (800 queries/s on a whole server).
_EXACT_ITEMS = 50_000
_ACTIVE_SECONDS = 1.0
_CACHED_RELEASES = 3


def enrich(batch: pa.RecordBatch, shop: Shop, store: ReleaseStore, release: ActiveRelease) -> pa.RecordBatch:
    """Stamps a batch with a release and adds `known` and `similar` (SIMILAR), by one look-up.

    Products that the release does not know have no entry in `similar`.
    """
    products = [
        list(dict.fromkeys(str(entry["product"]) for entry in history))
        for history in batch.column("history").to_pylist()
    ]
    customers = [None if c is None else str(c) for c in batch.column(shop.customers.key).to_pylist()]
    found = store.lookup(
        release.id,
        sorted({product for history in products for product in history}),
        sorted({customer for customer in customers if customer is not None}),
    )
    neighbours = {
        product: {"product": product, "items": [{"id": i, "distance": d} for i, d in ranked]}
        for product, ranked in found.neighbours.items()
    }
    similar = [[neighbours[p] for p in history if p in neighbours] for history in products]
    unknown = sum(len(history) for history in products) - sum(len(entries) for entries in similar)
    Metrics.counter("enrich", "unknown_products").inc(unknown)
    stamp = {RELEASE_ID: release.id, RELEASE_URI: release.uri, RELEASE_CHECKSUM: release.checksum}
    return pa.RecordBatch.from_arrays(
        [
            *batch.columns,
            pa.array([customer in found.known for customer in customers], pa.bool_()),
            pa.array(similar, SIMILAR),
        ],
        schema=batch.schema.append(pa.field("known", pa.bool_()))
        .append(pa.field("similar", SIMILAR))
        .with_metadata(stamp),
    )


def top_items(scores: np.ndarray, ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best items of each row, best first; equal scores in order of their ids' positions.

    Args:
      scores: [num_users, num_items].
      ids: [num_items].
      count: items a row.

    Returns:
      (ids, scores), each [num_users, min(count, num_items)].
    """
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    best.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return ids[best], np.take_along_axis(scores, best, axis=1)


class _Releases:
    """What a worker remembers of the store: the active release for a second, three catalogues."""

    def __init__(self, uri: str) -> None:
        self.store = ReleaseStore(uri, patient=True)
        self._lock, self._catalogue_lock = threading.Lock(), threading.Lock()
        self._active: tuple[float, ActiveRelease] | None = None
        self._catalogues: dict[str, Catalogue] = {}

    def active(self) -> ActiveRelease:
        with self._lock:
            if self._active is None or time.monotonic() - self._active[0] > _ACTIVE_SECONDS:
                release = self.store.active()
                if release is None:
                    raise UsageError("no release is active; `beamrec release promote ID` makes one active")
                self._active = time.monotonic(), release
            return self._active[1]

    def catalogue(self, release: str) -> Catalogue:
        with self._catalogue_lock:
            if release not in self._catalogues:
                self._catalogues[release] = self.store.catalogue(release)
                while len(self._catalogues) > _CACHED_RELEASES:
                    self._catalogues.pop(next(iter(self._catalogues)))
            return self._catalogues[release]


class _StoreDoFn(beam.DoFn):  # type: ignore[misc]
    # One cache a worker, however many threads and stages it has; a connection each thread.
    _shared = shared.Shared()

    def __init__(self, vector_db: str) -> None:
        self._vector_db = vector_db

    def setup(self) -> None:
        self._releases = self._shared.acquire(lambda: _Releases(self._vector_db), tag=self._vector_db)


class _EnrichDoFn(_StoreDoFn):
    def __init__(self, vector_db: str, shop: Shop) -> None:
        super().__init__(vector_db)
        self._shop = shop

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield enrich(batch, self._shop, self._releases.store, self._releases.active())


class _SearchDoFn(_StoreDoFn):
    def __init__(self, vector_db: str, items: int, retrieval: Retrieval) -> None:
        super().__init__(vector_db)
        self._items = items
        self._retrieval = retrieval

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        release = batch.schema.metadata[RELEASE_ID].decode()
        catalogue = self._releases.catalogue(release)
        # Items of the history are taken out later, so look for that many more.
        lengths = batch.column("history").value_lengths().to_numpy(zero_copy_only=False)
        count = min(self._items + int(lengths.max(initial=0)), len(catalogue.ids))
        column = batch.column("user_vector")
        scored = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        popular = [{"id": i, "score": 1.0 / (rank + 1)} for rank, i in enumerate(catalogue.popular[:count])]
        candidates: list[list[dict[str, Any]]] = [popular] * batch.num_rows
        if len(scored):
            dim = column.type.list_size
            vectors = column.take(pa.array(scored)).flatten().to_numpy().reshape(len(scored), dim)
            for row, found in zip(scored, self._search(release, catalogue, vectors, count), strict=True):
                candidates[row] = [{"id": i, "score": s} for i, s in found]
        yield batch.append_column("candidates", pa.array(candidates, CANDIDATES))

    def _search(
        self, release: str, catalogue: Catalogue, vectors: np.ndarray, count: int
    ) -> list[list[tuple[str, float]]]:
        exact = (
            len(catalogue.ids) <= _EXACT_ITEMS if self._retrieval == "auto" else self._retrieval == "exact"
        )
        if not exact:
            found: list[list[tuple[str, float]]] = self._releases.store.search(release, vectors, count)
            return found
        ids, scores = top_items(vectors @ catalogue.vectors.T, np.asarray(catalogue.ids), count)
        ranked = zip(ids.tolist(), scores.tolist(), strict=True)
        return [list(zip(row_ids, row_scores, strict=True)) for row_ids, row_scores in ranked]


class _UpsertDoFn(_StoreDoFn):
    def process(self, batch: pa.RecordBatch) -> Iterator[int]:
        yield self._releases.store.upsert_latest([ServingRow(**row) for row in batch.to_pylist()])


@dataclasses.dataclass(eq=False)
class EnrichFromPgvector(beam.PTransform):  # type: ignore[misc]
    """`enrich` with the active release, asked for again after a second."""

    vector_db: str
    shop: Shop

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[event_schema] -> [the same with `known` and `similar`, stamped with a release]."""
        return batches | "LookUp" >> beam.ParDo(_EnrichDoFn(self.vector_db, self.shop)).with_output_types(
            pa.RecordBatch
        )


@dataclasses.dataclass(eq=False)
class SearchItems(beam.PTransform):  # type: ignore[misc]
    """User to item: by an exact product in the worker, or by the pgvector index of the release.

    Rows without a user vector get the release's popularity list, scored by reciprocal rank.
    """

    vector_db: str
    items: int = 5
    retrieval: Retrieval = "auto"

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[batches with `user_vector`] -> [the same with `candidates`]."""
        search = beam.ParDo(_SearchDoFn(self.vector_db, self.items, self.retrieval))
        return batches | "Search" >> search.with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class UpsertServing(beam.PTransform):  # type: ignore[misc]
    """Keeps the newest recommendations of each customer in the serving table."""

    vector_db: str

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[SERVING] -> number of rows written, a batch each."""
        return batches | "Upsert" >> beam.ParDo(_UpsertDoFn(self.vector_db))
