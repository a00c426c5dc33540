"""Look-ups and search of a release on a real PostgreSQL, compared with plain NumPy."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.serving import SearchSetting

Make = Callable[..., ReleaseContents]


def texts(*values: str) -> pa.StringArray:
    return pa.array(values, pa.string())


def distances(vectors: np.ndarray, query: np.ndarray, operator: str) -> np.ndarray:
    a, b = vectors.astype(np.float64), query.astype(np.float64)
    if operator == "<->":
        return np.linalg.norm(a - b, axis=1)
    products = a @ b
    return -products if operator == "<#>" else 1 - products / np.linalg.norm(a, axis=1) / np.linalg.norm(b)


@pytest.mark.parametrize("operator", ["<->", "<=>", "<#>"])
def test_lookup_equals_brute_force_and_knows_its_customers(
    store: ReleaseStore, make_release: Make, operator: str
) -> None:
    release = make_release(distance=operator)
    store.load(release)
    asked = texts(*release.item_ids, "unknown", "n\0l")
    answer = store.lookup(release.manifest.id, asked, texts("100", "106", "999", "'; DROP TABLE x; --"))
    neighbours = dict(zip(answer.products.to_pylist(), answer.neighbours.to_pylist(), strict=True))
    assert set(neighbours) == set(release.item_ids)
    for row, item in enumerate(release.item_ids):
        expected = distances(release.item_vectors, release.item_vectors[row], operator)
        expected[row] = np.inf
        found = [entry["distance"] for entry in neighbours[item]]
        np.testing.assert_allclose(found, np.sort(expected)[:20], atol=1e-6)
        places = [release.item_ids.index(entry["id"]) for entry in neighbours[item]]
        np.testing.assert_allclose(expected[places], found, atol=1e-6)
    assert sorted(answer.customers.to_pylist()) == ["100", "106"]


def test_nothing_known_is_an_empty_answer(store: ReleaseStore, make_release: Make) -> None:
    store.load(make_release())
    for asked in (texts(), texts("unknown")):
        answer = store.lookup(make_release().manifest.id, asked, texts())
        assert (len(answer.products), len(answer.neighbours), len(answer.customers)) == (0, 0, 0)


def test_a_release_of_one_item_has_no_neighbours(store: ReleaseStore, make_release: Make) -> None:
    store.load(make_release(items=1))
    answer = store.lookup(make_release().manifest.id, texts("S10_1678"), texts())
    assert answer.neighbours.to_pylist() == [[]]


def test_distances_keep_their_shortest_digits(store: ReleaseStore, make_release: Make) -> None:
    """They are float32 in the store: 0.71 must not come out as 0.7099999785423279."""
    store.load(make_release())
    answer = store.lookup(make_release().manifest.id, texts("N"), texts())
    values = answer.neighbours.values.field("distance")
    assert [str(np.float32(value)) for value in values.to_pylist()] == [
        str(value) for value in values.to_pylist()
    ]


def test_catalogue_is_by_popularity_and_bit_exact(store: ReleaseStore, make_release: Make) -> None:
    release = make_release(items=10_050)
    store.load(release)
    catalogue = store.catalogue(release.manifest.id)
    assert catalogue.ids.to_pylist() == list(release.popular)
    place = {item: row for row, item in enumerate(release.item_ids)}
    order = [place[item] for item in release.popular]
    np.testing.assert_array_equal(catalogue.vectors, release.item_vectors[order])
    assert store.popular(release.manifest.id, 7) == list(release.popular[:7])


@pytest.mark.parametrize("normalized", [True, False])
def test_search_equals_the_exact_product(store: ReleaseStore, make_release: Make, normalized: bool) -> None:
    release = make_release(items=300, normalized=normalized)
    store.load(release)
    queries = np.random.default_rng(5).normal(size=(9, 8)).astype(np.float32)
    exact = queries.astype(np.float64) @ release.item_vectors.T.astype(np.float64)
    answer = store.search(release.manifest.id, queries, 10)
    assert len(answer) == 9
    for row, found in enumerate(answer.to_pylist()):
        scores = [entry["score"] for entry in found]
        np.testing.assert_allclose(scores, np.sort(exact[row])[::-1][:10], rtol=1e-5)
        assert scores == sorted(scores, reverse=True)


def test_search_uses_the_index_of_a_large_partition_with_high_recall(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    release = make_release(items=6_000, dim=16)
    store.load(release)
    queries = make_release(items=50, dim=16, seed=9).item_vectors
    exact = np.argsort(-(queries @ release.item_vectors.T), axis=1)[:, :10]
    hits = []
    for ef_search in (10, 200):
        found = store.search(release.manifest.id, queries, 10, SearchSetting(ef_search=ef_search)).to_pylist()
        hits.append(
            np.mean(
                [
                    len({entry["id"] for entry in f} & {release.item_ids[e] for e in row})
                    for f, row in zip(found, exact, strict=True)
                ]
            )
        )
    assert hits[0] < hits[1], "the width of the search reaches the index"
    assert hits[1] / 10 > 0.95
    connection = connect(database)
    with connection.cursor() as cursor:
        cursor.execute(
            "EXPLAIN SELECT id FROM beamrec.item_embeddings WHERE release = %s "
            "ORDER BY embedding::vector(16) <-> %s::vector(16) LIMIT 10",
            [release.manifest.id, str(queries[0].tolist())],
        )
        assert "Index Scan" in str(cursor.fetchall())
    connection.close()


def test_search_refuses_another_dimension_and_unknown_releases(
    store: ReleaseStore, make_release: Make
) -> None:
    store.load(make_release())
    with pytest.raises(UsageError, match=r"expected vectors \[n, 8\]"):
        store.search(make_release().manifest.id, np.ones((1, 9), np.float32), 3)
    with pytest.raises(UsageError, match="not loaded"):
        store.search("nothing", np.ones((1, 8), np.float32), 3)
