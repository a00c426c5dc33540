"""Look-ups and item search on pgvector, as transforms of column batches.

One SQL statement a batch. An outage is waited out (the store retries); it never makes a dead letter. Search
and upsert in tables that are not ours are in `beamrec.io.vector_transforms`, made of the same parts.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import threadpoolctl
from apache_beam.utils import shared

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.exact_product import best_items
from beamrec.io.neighbour_cache import NeighbourCache
from beamrec.io.pgvector import Catalogue, ReleaseStore
from beamrec.io.serving_release import Prepare, ServingRelease
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import (
    CANDIDATES,
    RELEASE_CHECKSUM,
    RELEASE_ID,
    RELEASE_URI,
    SIMILAR,
    STORED_VECTOR,
)
from beamrec.schemas.reasons import STORED, TOWER, VECTOR_OF
from beamrec.schemas.releases import ActiveRelease
from beamrec.schemas.serving import SearchSetting
from beamrec.schemas.shop import Shop
from beamrec.transforms import metrics

__all__ = [
    "EnrichFromPgvector",
    "Retrieval",
    "SearchDoFn",
    "SearchItems",
    "StoreDoFn",
    "enrich",
    "multiplies",
]

Retrieval = Literal["auto", "exact", "index"]

# Up to so many bytes of item vectors `auto` multiplies in the worker, which holds them once for all its
# threads, unless it was measured for the release (`beamrec release report --apply`). That much memory is the
# bound, not time: of a million items of 64 numbers the product finds the best for one user in 12 ms and for a
# hundred in 152, a search of the HNSW index in 14 and 1,001, and misses a fifth of them (bench/README.md).
_EXACT_BYTES = 256 * 2**20
_FRESH_SECONDS = 1.0
_CACHED_RELEASES = 3
_LEAST_POPULAR = 256
_USUAL_HISTORY = 64  # distinct products


def enrich(
    batch: pa.RecordBatch, shop: Shop, cache: NeighbourCache, release: ActiveRelease
) -> pa.RecordBatch:
    """Stamps a batch with a release and adds `known` and `similar` (SIMILAR), by one look-up.

    Products that the release does not know have no entry in `similar`. For a release without a user tower
    the column STORED_VECTOR is added, with the vectors that the release holds of its customers.
    """
    rows, products = _distinct_products(batch.column("history"))
    customers = batch.column(shop.customers.key).cast(pa.string())
    found = cache.lookup(
        release, products.unique(), customers.drop_null().unique(), not release.has_user_tower
    )
    places = pc.index_in(products, value_set=found.products)
    there = places.is_valid().to_numpy(zero_copy_only=False)
    metrics.count("unknown_products", int(len(there) - there.sum()))
    kept = pa.array(np.flatnonzero(there))
    entries = pa.StructArray.from_arrays(
        [products.take(kept), found.neighbours.take(places.take(kept))], fields=list(SIMILAR.value_type)
    )
    known = pc.index_in(customers, value_set=found.customers)
    offsets = np.searchsorted(rows[there], np.arange(batch.num_rows + 1)).astype(np.int32)
    stamp = {
        RELEASE_ID: release.id,
        RELEASE_URI: release.uri,
        RELEASE_CHECKSUM: release.checksum,
        VECTOR_OF: TOWER if release.has_user_tower else STORED,
    }
    enriched = pa.RecordBatch.from_arrays(
        [
            *batch.columns,
            known.is_valid(),
            pa.ListArray.from_arrays(offsets, entries, type=SIMILAR),
        ],
        schema=batch.schema.append(pa.field("known", pa.bool_()))
        .append(pa.field("similar", SIMILAR))
        .with_metadata(stamp),
    )
    if found.vectors is None:
        return enriched
    vectors = found.vectors.take(known)
    return enriched.append_column(STORED_VECTOR, vectors.cast(pa.list_(pa.float32(), release.dim)))


def _distinct_products(history: pa.ListArray) -> tuple[npt.NDArray[np.int64], pa.StringArray]:
    """The products of each row's history, each once, in the order of the history: (row, product)."""
    lengths = history.value_lengths().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(history)), lengths)
    encoded = history.flatten().field("product").cast(pa.string()).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    first = np.sort(np.unique(rows * max(len(encoded.dictionary), 1) + codes, return_index=True)[1])
    return rows[first], encoded.dictionary.take(pa.array(codes[first]))


def multiplies(retrieval: Retrieval, release: ActiveRelease) -> bool:
    """Whether the worker multiplies users with all items of the release, not asking its index."""
    if retrieval != "auto":
        return retrieval == "exact"
    if release.search is not None:
        return release.search.index == "exact"
    return 4 * release.items * release.dim <= _EXACT_BYTES


class _Releases:
    """What a worker remembers of the store: releases for a second, three catalogues."""

    def __init__(self, uri: str) -> None:
        self.store = ReleaseStore(uri, patient=True)
        self.neighbours = NeighbourCache(self.store)
        self._lock, self._catalogue_lock = threading.Lock(), threading.Lock()
        self._seen: dict[str | None, tuple[float, ActiveRelease]] = {}
        self._catalogues: dict[str, tuple[int, Catalogue]] = {}
        self._heads: dict[str, tuple[int, Catalogue]] = {}
        self._popular: dict[str, tuple[int, int, list[str]]] = {}

    def active(self) -> ActiveRelease:
        """The active release, as it was a second ago at most."""
        return self._fresh(None)

    def release(self, release_id: str) -> ActiveRelease:
        """A release with the version of its items, as it was a second ago at most."""
        return self._fresh(release_id)

    def _fresh(self, release_id: str | None) -> ActiveRelease:
        with self._lock:
            since, release = self._seen.get(release_id, (-_FRESH_SECONDS, None))
            if release is None or time.monotonic() - since >= _FRESH_SECONDS:
                release = self.store.active() if release_id is None else self.store.release(release_id)
                if release is None:
                    raise UsageError("no release is active; `beamrec release promote ID` makes one active")
                self._seen[release_id] = time.monotonic(), release
                _keep_last(self._seen)
            return release

    def catalogue(self, release: ActiveRelease) -> Catalogue:
        """All items, loaded again if some were upserted."""
        with self._catalogue_lock:
            version, catalogue = self._catalogues.pop(release.id, (None, None))
            if catalogue is None or version != release.items_version:
                catalogue = self.store.catalogue(release.id)
            self._catalogues[release.id] = release.items_version, catalogue
            _keep_last(self._catalogues)
            return catalogue

    def head(self, release: ActiveRelease, count: int) -> Catalogue:
        """The most popular items; for one count a process."""
        with self._catalogue_lock:
            version, head = self._heads.pop(release.id, (None, None))
            if head is None or version != release.items_version:
                head = self.store.catalogue(release.id, count)
            self._heads[release.id] = release.items_version, head
            _keep_last(self._heads)
            return head

    def popular(self, release: ActiveRelease, count: int) -> list[str]:
        """Ids of the most popular items."""
        with self._catalogue_lock:
            version, asked, ids = self._popular.pop(release.id, (None, 0, []))
            if version != release.items_version or asked < count:
                asked = max(count, _LEAST_POPULAR)
                ids = self.store.popular(release.id, asked)
            self._popular[release.id] = release.items_version, asked, ids
            _keep_last(self._popular)
            return ids[:count]


def _keep_last(cache: dict[Any, Any]) -> None:
    while len(cache) > _CACHED_RELEASES + 1:
        cache.pop(next(iter(cache)))


class StoreDoFn(beam.DoFn):  # type: ignore[misc]
    """A step that asks the store; `self._releases` is what the worker remembers of it."""

    # One cache and one pool of connections a worker, however many threads and stages it has.
    _shared = shared.Shared()

    def __init__(self, vector_db: str) -> None:
        self._vector_db = vector_db

    def setup(self) -> None:
        """Opens the worker's cache."""
        self._releases = self._shared.acquire(lambda: _Releases(self._vector_db), tag=self._vector_db)

    def start_bundle(self) -> None:
        """Forgets metrics that are empty."""
        metrics.start_bundle()


class _EnrichDoFn(StoreDoFn):
    _shared_serving = shared.Shared()

    def __init__(
        self, vector_db: str, shop: Shop, prepare: Prepare | None = None, release: str | None = None
    ) -> None:
        super().__init__(vector_db)
        self._shop = shop
        self._prepare = prepare
        self._release = release

    def setup(self) -> None:
        super().setup()
        # One a worker: a second one could not tell that the first has a release prepared already.
        tag = (self._vector_db, self._shop, self._release)
        self._serving = self._shared_serving.acquire(self._make_serving, tag=tag)

    def _make_serving(self) -> ServingRelease:
        releases, pinned = self._releases, self._release
        wanted = releases.active if pinned is None else functools.partial(releases.release, pinned)
        return ServingRelease(wanted, releases.release, self._prepare)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        release = self._serving.current()
        metrics.count("release_load_failures", self._serving.take_failures())
        metrics.gauge("items_version", release.items_version)
        with metrics.timed("look_up_us"):
            enriched = enrich(batch, self._shop, self._releases.neighbours, release)
        metrics.count("looked_up", batch.num_rows)
        yield enriched


class SearchDoFn(StoreDoFn):
    """User to item search, a batch at a time, as `SearchItems` says."""

    def __init__(self, vector_db: str, items: int, retrieval: Retrieval) -> None:
        super().__init__(vector_db)
        self._items = items
        self._retrieval = retrieval

    def setup(self) -> None:
        """Opens the worker's cache, and keeps BLAS to one thread."""
        super().setup()
        # A worker has other threads to fill the cores. OpenBLAS's wait for each other in a loop: on two busy
        # cores 256 users × 200,000 items × 64 took 691 ms with two of them, and 109 ms with one.
        threadpoolctl.threadpool_limits(1, user_api="blas")

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Adds `candidates`."""
        with metrics.timed("search_us"):
            found = self.find(batch, self.release_of(batch), self._items)
        yield batch.append_column("candidates", found)

    def release_of(self, batch: pa.RecordBatch) -> ActiveRelease:
        """The release that a batch is stamped with."""
        found: ActiveRelease = self._releases.release(batch.schema.metadata[RELEASE_ID].decode())
        return found

    def find(self, batch: pa.RecordBatch, release: ActiveRelease, items: int) -> pa.ListArray:
        """CANDIDATES of each row: so many items beside those of its history."""
        # Items of the history are taken out later, so look for that many more.
        seen = np.bincount(_distinct_products(batch.column("history"))[0], minlength=batch.num_rows)
        parts = [pa.array([], CANDIDATES)]
        order: list[int] = []
        for rows in _by_length(seen):
            vectors = batch.column("user_vector").take(pa.array(rows))
            parts.append(self._candidates(release, vectors, items + int(seen[rows].max())))
            order.extend(rows)
        return pa.concat_arrays(parts).take(pa.array(np.argsort(order)))

    def covers(self, release: ActiveRelease, items: int) -> bool:
        """Whether `find` of so many items finds all of the release."""
        return release.items <= items and multiplies(self._retrieval, release)

    def head(self, release: ActiveRelease, items: int) -> Catalogue:
        """The most popular items."""
        if multiplies(self._retrieval, release):
            catalogue = self._releases.catalogue(release)
            return Catalogue(catalogue.ids[:items], catalogue.vectors[:items])
        head: Catalogue = self._releases.head(release, items)
        return head

    def _candidates(self, release: ActiveRelease, column: pa.FixedSizeListArray, count: int) -> pa.ListArray:
        scored = column.is_valid().to_numpy(zero_copy_only=False)
        vectors = column.drop_null().flatten().to_numpy().reshape(-1, column.type.list_size)
        parts = [self._search(release, vectors, count)]
        if not scored.all():
            parts.append(_by_rank(self._releases.popular(release, count)))
        # Rows without a vector take what stands behind those that were found.
        places = np.where(scored, np.cumsum(scored) - 1, len(vectors))
        return pa.concat_arrays(parts).take(pa.array(places))

    def _search(self, release: ActiveRelease, vectors: npt.NDArray[np.float32], count: int) -> pa.ListArray:
        if not len(vectors):
            return pa.array([], CANDIDATES)
        exact = multiplies(self._retrieval, release)
        metrics.count("searched", len(vectors), "exact" if exact else "index")
        if not exact:
            setting = release.search or SearchSetting()
            return self._releases.store.search(release.id, vectors, count, setting)
        catalogue = self._releases.catalogue(release)
        places, scores = best_items(vectors, catalogue.vectors, count)
        ids = catalogue.ids.take(pa.array(places.ravel()))
        offsets = np.arange(len(vectors) + 1, dtype=np.int32) * places.shape[1]
        entries = pa.StructArray.from_arrays(
            [ids, pa.array(scores.ravel().astype(np.float64))], fields=list(CANDIDATES.value_type)
        )
        return pa.ListArray.from_arrays(offsets, entries, type=CANDIDATES)


def _by_length(seen: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Rows that are looked for together: one long history would make the candidates of all others as many."""
    usual = seen <= _USUAL_HISTORY
    groups = [np.flatnonzero(usual), *np.flatnonzero(~usual)[:, None]]
    return [rows for rows in groups if len(rows)]


def _by_rank(ids: list[str]) -> pa.ListArray:
    """One row: items scored by reciprocal rank."""
    return pa.array([[{"id": i, "score": 1.0 / (rank + 1)} for rank, i in enumerate(ids)]], CANDIDATES)


@dataclasses.dataclass(eq=False)
class EnrichFromPgvector(beam.PTransform):  # type: ignore[misc]
    """`enrich` with the active release, asked for again after a second, or with one that is named.

    Attributes:
      release: id of a loaded release that serves, active or not; None follows the active one.
      prepare: called with a release before the first batch is stamped with it, beside the one that serves;
        if it raises, that one goes on serving and `release_load_failures` counts it.
    """

    vector_db: str
    shop: Shop
    prepare: Prepare | None = None
    release: str | None = None

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[event_schema] -> [the same with `known` and `similar`, stamped with a release]."""
        look_up = beam.ParDo(_EnrichDoFn(self.vector_db, self.shop, self.prepare, self.release))
        return batches | "LookUp" >> look_up.with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class SearchItems(beam.PTransform):  # type: ignore[misc]
    """User to item: by an exact product in the worker, or by the pgvector index of the release.

    `auto` takes what was measured for the release, else multiplies with catalogues of up to 256 MiB (a
    million items of 64 numbers). Rows without a user vector get the release's popularity list, scored by
    reciprocal rank.
    """

    vector_db: str
    items: int = 5
    retrieval: Retrieval = "auto"

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[batches with `user_vector`] -> [the same with `candidates`]."""
        search = beam.ParDo(SearchDoFn(self.vector_db, self.items, self.retrieval))
        return batches | "Search" >> search.with_output_types(pa.RecordBatch)
