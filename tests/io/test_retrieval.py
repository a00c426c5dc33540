"""The stream's look-ups and search: Arrow in, Arrow out, by product or by index, fresh after an upsert."""

import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as Pipeline
from apache_beam.testing.util import assert_that

from beamrec.io.neighbour_cache import NeighbourCache
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect
from beamrec.io.retrieval import (
    EnrichFromPgvector,
    SearchDoFn,
    SearchItems,
    _Releases,
    enrich,
    multiplies,
)
from beamrec.schemas.events import RELEASE_ID, event_schema
from beamrec.schemas.releases import ActiveRelease, ReleaseContents
from beamrec.schemas.serving import SearchSetting
from beamrec.schemas.shop import CLASSICMODELS

Make = Callable[..., ReleaseContents]
HISTORY = event_schema(CLASSICMODELS).field("history").type


def events(histories: list[list[str]], customers: list[int | None] | None = None) -> pa.RecordBatch:
    entries = [[{"product": product, "in_cart": False} for product in history] for history in histories]
    key = pa.array(customers or [None] * len(histories), pa.int64())
    return pa.RecordBatch.from_arrays([key, pa.array(entries, HISTORY)], ["customerNumber", "history"])


def with_vectors(release: str, histories: list[list[str]], vectors: list[Any], dim: int) -> pa.RecordBatch:
    column = pa.array(vectors, pa.list_(pa.float32(), dim))
    return (
        events(histories).append_column("user_vector", column).replace_schema_metadata({RELEASE_ID: release})
    )


@pytest.fixture
def release(store: ReleaseStore, make_release: Make) -> ReleaseContents:
    """A loaded and active release."""
    made = make_release()
    store.load(made)
    store.promote(made.manifest.id, "test")
    return made


def test_enrich_keeps_the_order_of_the_history_and_leaves_out_the_unknown(
    store: ReleaseStore, release: ReleaseContents
) -> None:
    active = store.active()
    assert active is not None
    batch = events([["P3", "N", "P3"], [], ["gone"], ["N", "gone", "P1"]], [100, None, 999, 106])
    found = enrich(batch, CLASSICMODELS, NeighbourCache(store), active)
    assert found.column("known").to_pylist() == [True, False, False, True]
    similar = found.column("similar").to_pylist()
    assert [[entry["product"] for entry in row] for row in similar] == [["P3", "N"], [], [], ["N", "P1"]]
    assert {len(entry["items"]) for row in similar for entry in row} == {20}
    assert similar[0][1] == similar[3][0]
    assert found.schema.metadata[RELEASE_ID].decode() == release.manifest.id


def test_enrich_takes_an_empty_batch_and_slices(store: ReleaseStore, release: ReleaseContents) -> None:
    active = store.active()
    assert active is not None
    batch, cache = events([["P3"], ["N"], ["P1"]], [1, 100, 2]), NeighbourCache(store)
    found = enrich(batch.slice(1, 1), CLASSICMODELS, cache, active)
    assert [entry["product"] for entry in found.column("similar").to_pylist()[0]] == ["N"]
    assert found.column("known").to_pylist() == [True]
    assert enrich(batch.slice(0, 0), CLASSICMODELS, cache, active).num_rows == 0


@pytest.mark.parametrize("retrieval", ["exact", "index", "auto"])
def test_search_items_by_product_and_by_index_have_one_contract(
    database: str, release: ReleaseContents, retrieval: Any
) -> None:
    vectors = [release.user_vectors[0], None, release.user_vectors[1]]
    batch = with_vectors(release.manifest.id, [["P1"], [], ["P2", "P3"]], vectors, 8)

    def check(batches: list[pa.RecordBatch]) -> None:
        ((first, popular, last),) = [batch.column("candidates").to_pylist() for batch in batches]
        assert [entry["id"] for entry in popular] == list(release.popular[:5])
        assert [entry["score"] for entry in popular] == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
        for row, user in ((first, 0), (last, 1)):
            products = release.item_vectors.astype(np.float64) @ release.user_vectors[user]
            best = np.argsort(-products)[:5]
            assert [entry["id"] for entry in row] == [release.item_ids[i] for i in best]
            np.testing.assert_allclose([entry["score"] for entry in row], products[best], rtol=1e-5)

    with Pipeline() as pipeline:
        found = pipeline | beam.Create([batch]) | SearchItems(database, 3, retrieval)
        assert_that(found, check)


def test_one_long_history_does_not_make_the_candidates_of_all_rows_as_many(
    database: str, store: ReleaseStore, make_release: Make
) -> None:
    release = make_release(items=400)
    store.load(release)
    everything = list(release.item_ids)
    histories = [["P1"] * 5_000, everything[:300], ["P2", "P3"], [], everything[:390]]
    vectors = [release.user_vectors[row] if row != 3 else None for row in range(5)]
    batch = with_vectors(release.manifest.id, histories, vectors, 8)
    search = SearchDoFn(database, 3, "exact")
    search._releases = _Releases(database)
    (found,) = search.process(batch)
    candidates = found.column("candidates")
    assert candidates.value_lengths().to_pylist() == [5, 303, 5, 5, 393]
    for row, user in ((0, 0), (1, 1), (2, 2), (4, 4)):
        products = release.item_vectors.astype(np.float64) @ release.user_vectors[user]
        best = np.argsort(-products)[:3]
        assert [entry["id"] for entry in candidates[row].as_py()[:3]] == [release.item_ids[i] for i in best]


def test_the_release_is_the_active_one_and_is_stamped(database: str, release: ReleaseContents) -> None:
    def check(batches: list[pa.RecordBatch]) -> None:
        (batch,) = batches
        assert batch.schema.metadata[RELEASE_ID].decode() == release.manifest.id

    with Pipeline() as pipeline:
        found = pipeline | beam.Create([events([["N"]])]) | EnrichFromPgvector(database, CLASSICMODELS)
        assert_that(found, check)


def active_release(items: int, dim: int = 64, search: SearchSetting | None = None) -> ActiveRelease:
    return ActiveRelease("r", "/r", "0", dim, "<->", True, items, search=search)


def test_auto_multiplies_unless_it_takes_too_much_memory_or_something_else_was_measured() -> None:
    large, huge = active_release(1_000_000), active_release(1_100_000)
    assert multiplies("auto", large)
    assert not multiplies("auto", huge)
    assert not multiplies("auto", active_release(200_000, search=SearchSetting("hnsw")))
    assert multiplies("auto", active_release(1_100_000, search=SearchSetting("exact")))
    assert multiplies("exact", huge)
    assert not multiplies("index", active_release(1))


def searcher(database: str, retrieval: Any) -> SearchDoFn:
    """A worker's search that remembers nothing of other tests."""
    search = SearchDoFn(database, 3, retrieval)
    search._releases = _Releases(database)
    return search


def ids(search: SearchDoFn, batch: pa.RecordBatch) -> list[list[str]]:
    (found,) = search.process(batch)
    return [[entry["id"] for entry in row] for row in found.column("candidates").to_pylist()]


def test_the_catalogue_is_not_loaded_where_the_index_is_used(
    database: str, store: ReleaseStore, release: ReleaseContents
) -> None:
    store.set_search(release.manifest.id, SearchSetting("hnsw", ef_search=40))
    batch = with_vectors(release.manifest.id, [[], []], [release.user_vectors[0], None], 8)
    by_index, by_product = searcher(database, "auto"), searcher(database, "exact")
    assert ids(by_index, batch) == ids(by_product, batch)
    assert (len(by_index._releases._catalogues), len(by_product._releases._catalogues)) == (0, 1)


def add_item(database: str, release: str, item: str, vector: np.ndarray) -> None:
    connection = connect(database)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO beamrec.item_embeddings (release, id, embedding) VALUES (%s, %s, %s)",
            [release, item, str(vector.tolist())],
        )
        cursor.execute(
            "UPDATE beamrec.releases SET items_version = items_version + 1 WHERE id = %s", [release]
        )
    connection.close()


@pytest.mark.parametrize("retrieval", ["exact", "index"])
def test_an_item_that_is_upserted_is_found_a_second_later(
    database: str, release: ReleaseContents, retrieval: Any
) -> None:
    batch = with_vectors(release.manifest.id, [[]], [release.user_vectors[0]], 8)
    search = searcher(database, retrieval)
    before = ids(search, batch)[0]
    add_item(database, release.manifest.id, "new", release.user_vectors[0])
    time.sleep(1.05)  # a worker asks for the version of the items once a second
    assert ids(search, batch)[0] == ["new", *before[:2]]


def test_popular_items_are_asked_for_again_where_a_history_is_longer(
    database: str, store: ReleaseStore, make_release: Make
) -> None:
    made = make_release("longer", items=400)
    store.load(made)
    search = searcher(database, "exact")
    for viewed in (0, 300, 10, 500):
        (found,) = ids(search, with_vectors("longer", [[f"X{i}" for i in range(viewed)]], [None], 8))
        assert found == list(made.popular[: 3 + viewed])
