"""The cache answers what the store would, whatever was asked before, and forgets with the items' version."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.neighbour_cache import NeighbourCache
from beamrec.io.pgvector import Lookup, ReleaseStore
from beamrec.schemas.releases import ActiveRelease, ReleaseContents


@pytest.fixture
def loaded(store: ReleaseStore, make_release: Callable[..., Any]) -> ReleaseContents:
    """A release in the store."""
    made: ReleaseContents = make_release(items=300)
    store.load(made)
    return made


def as_dict(found: Lookup) -> dict[str, Any]:
    return dict(zip(found.products.to_pylist(), found.neighbours.to_pylist(), strict=True))


def texts(values: Any) -> pa.StringArray:
    return pa.array(list(values), pa.string())


@pytest.mark.parametrize("most_bytes", [64 * 2**20, 20_000, 0])
def test_it_answers_what_the_store_answers(
    store: ReleaseStore, loaded: ReleaseContents, most_bytes: int
) -> None:
    release, cache = store.release(loaded.manifest.id), NeighbourCache(store, most_bytes)
    everything = as_dict(store.lookup(release.id, texts(loaded.item_ids), texts([])))
    draw = np.random.default_rng(1)
    for _ in range(40):
        asked = [str(i) for i in draw.choice(np.array([*loaded.item_ids, "gone", "away"], object), 25, False)]
        found = cache.lookup(release, texts(asked), texts(["100", "999"]))
        assert as_dict(found) == {key: everything[key] for key in asked if key in everything}
        assert found.customers.to_pylist() == ["100"]
    assert as_dict(cache.lookup(release, texts([]), texts([]))) == {}


def test_what_it_remembers_needs_no_server(
    store: ReleaseStore, loaded: ReleaseContents, database: str
) -> None:
    release, away = store.release(loaded.manifest.id), ReleaseStore("postgresql://nobody@127.0.0.1:1/none")
    cache = NeighbourCache(store)
    first = cache.lookup(release, texts(["N", "gone"]), texts([]))
    cache._store = away
    assert as_dict(cache.lookup(release, texts(["gone", "N"]), texts([]))) == as_dict(first)


def test_a_new_version_of_the_items_is_asked_for(store: ReleaseStore, loaded: ReleaseContents) -> None:
    cache, release = NeighbourCache(store), store.release(loaded.manifest.id)
    assert "new" not in as_dict(cache.lookup(release, texts(["new", "N"]), texts([])))
    vector = loaded.item_vectors[list(loaded.item_ids).index("N")]
    store.upsert_items(release.id, ["new"], vector[None], "test")
    found = as_dict(cache.lookup(store.release(release.id), texts(["new", "N"]), texts([])))
    assert found["new"][0]["id"] == "N"
    assert found["N"][0]["id"] == "new"


def test_threads_with_two_versions_get_their_own_answers(
    store: ReleaseStore, loaded: ReleaseContents
) -> None:
    cache, release = NeighbourCache(store), store.release(loaded.manifest.id)
    other = ActiveRelease(**{**vars(release), "items_version": 7})
    expected = as_dict(store.lookup(release.id, texts(loaded.item_ids), texts([])))
    wrong: list[Any] = []

    def run(asked: ActiveRelease, seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(25):
            keys = [str(i) for i in draw.choice(np.array(loaded.item_ids, object), 20, False)]
            found = as_dict(cache.lookup(asked, texts(keys), texts([])))
            if found != {key: expected[key] for key in keys}:
                wrong.append(found)

    threads = [threading.Thread(target=run, args=(r, n)) for n, r in enumerate([release, other] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
