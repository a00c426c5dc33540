"""Items upserted between releases: found by every path, neighbours as if they had always been there."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_neighbours import nearest_items
from beamrec.io.postgres import connect
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.releases import ReleaseContents

Make = Callable[..., ReleaseContents]


def unit(*shape: int, seed: int = 9) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def neighbours(uri: str, release: str) -> dict[str, tuple[list[str], list[float]]]:
    with contextlib.closing(connect(uri)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, neighbour_ids, distances FROM beamrec.item_neighbours WHERE release = %s", [release]
        )
        return {item: (ids, figures) for item, ids, figures in cursor.fetchall()}


def check_neighbours(uri: str, release: str, vectors: dict[str, np.ndarray], operator: str) -> None:
    """All lists are what they would be if everything had been loaded at once."""
    ids = list(vectors)
    matrix = np.stack([vectors[i] for i in ids])
    _, expected = nearest_items(matrix, operator, 20)
    found = neighbours(uri, release)
    assert set(found) == set(ids)
    for row, item in enumerate(ids):
        listed, figures = found[item]
        np.testing.assert_allclose(figures, expected[row], atol=1e-5)
        assert figures == sorted(figures)
        assert len(set(listed)) == len(listed)
        assert item not in listed
        for other, figure in zip(listed, figures, strict=True):
            pair = nearest_items(np.stack([vectors[item], vectors[other]]), operator, 1)[1]
            assert pair[0, 0] == pytest.approx(figure, abs=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("operator", ["<->", "<=>", "<#>"])
def test_new_and_changed_items_are_found_by_every_path(
    store: ReleaseStore, database: str, make_release: Make, operator: str, normalized: bool
) -> None:
    release = make_release(items=200, distance=operator, normalized=normalized)
    store.load(release)
    store.promote(release.manifest.id, "a start")
    ids, vectors = ["new 1", 'new"2', "P5"], unit(3, 8) if normalized else 3 * unit(3, 8)
    done = store.upsert_items(release.manifest.id, ids, vectors, "spring")
    assert (done.added, done.changed, done.items_version) == (2, 1, 1)
    active = store.active()
    assert active is not None
    assert (active.items, active.items_version) == (202, 1)
    found = store.search(active.id, vectors, 5).to_pylist()
    exact = np.concatenate([np.delete(release.item_vectors, release.item_ids.index("P5"), 0), vectors])
    for row, vector in enumerate(vectors):
        scores = [entry["score"] for entry in found[row]]
        np.testing.assert_allclose(scores, np.sort(exact @ vector)[::-1][:5], rtol=1e-5)
    assert normalized is False or [row[0]["id"] for row in found] == ids
    catalogue = store.catalogue(active.id)
    place = {item: row for row, item in enumerate(catalogue.ids.to_pylist())}
    np.testing.assert_array_equal(catalogue.vectors[[place[i] for i in ids]], vectors)
    assert place["new 1"] >= 200, "a new item is the least popular"
    answer = store.lookup(active.id, pa.array(ids), pa.array([], pa.string()))
    assert set(answer.products.to_pylist()) == set(ids)
    now = dict(zip(release.item_ids, release.item_vectors, strict=True)) | dict(
        zip(ids, vectors, strict=True)
    )
    check_neighbours(database, active.id, now, operator)


def test_upserts_survive_until_the_release_goes_and_are_in_the_audit_table(
    store: ReleaseStore, make_release: Make
) -> None:
    for name in ("first", "second"):
        store.load(make_release(name))
    store.promote("first", "a start")
    store.upsert_items("first", ["new"], unit(1, 8), "a product of today")
    store.load(make_release("first"))  # once more changes nothing
    store.promote("second", "next")
    assert store.unknown_items("second", ["new", "P3"]) == ["new"]
    store.rollback()
    assert store.unknown_items("first", ["new", "P3", "n\0l"]) == ["n\0l"]
    entry = store.show("first")["history"][2]
    assert (entry["action"], entry["to"]) == ("upsert", "first")
    assert entry["why"] == "a product of today: 1 new and 0 changed items: new"


def test_many_upserts_one_after_the_other_are_like_one_load(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    release = make_release(items=3)  # lists are short at first, and grow with the catalogue
    store.load(release)
    now = dict(zip(release.item_ids, release.item_vectors, strict=True))
    for number in range(40):
        name, vector = f"new {number % 30}", unit(1, 8, seed=number)
        store.upsert_items(release.manifest.id, [name], vector, "more")
        now[name] = vector[0]
    check_neighbours(database, release.manifest.id, now, "<->")


def test_upserts_at_once_wait_for_each_other(store: ReleaseStore, database: str, make_release: Make) -> None:
    release = make_release()
    store.load(release)
    vectors = unit(8, 8)

    def upsert(number: int) -> None:
        other = ReleaseStore(database)
        other.upsert_items(release.manifest.id, [f"new {number}"], vectors[number : number + 1], "more")
        other.close()

    threads = [threading.Thread(target=upsert, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    now = dict(zip(release.item_ids, release.item_vectors, strict=True))
    now |= {f"new {number}": vectors[number] for number in range(8)}
    check_neighbours(database, release.manifest.id, now, "<->")
    assert store.release(release.manifest.id).items_version == 8


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a"], unit(1, 9), r"expected vectors \[1, 8\], got \[1, 9\]"),
        (["a", "a"], unit(2, 8), "ids must differ"),
        ([""], unit(1, 8), "expected a new id, got ''"),
        (["n\0l"], unit(1, 8), "an id of at most 1000 bytes without NUL"),
        (["x" * 1_001], unit(1, 8), "an id of at most 1000 bytes without NUL"),
        (["a"], 2 * unit(1, 8), "expected length one, as the release's have it, got 2"),
        (["a"], np.full((1, 8), np.nan, np.float32), "expected length one"),
    ],
)
def test_what_the_release_could_not_hold_is_refused(
    store: ReleaseStore, make_release: Make, ids: list[str], vectors: np.ndarray, message: str
) -> None:
    release = make_release()
    store.load(release)
    with pytest.raises(BadDataError, match=message):
        store.upsert_items(release.manifest.id, ids, vectors, "why not")
    assert store.release(release.manifest.id).items_version == 0
    with pytest.raises(UsageError, match="not loaded"):
        store.upsert_items("nothing", ids, vectors, "why not")


def test_integer_keys_stay_integers(store: ReleaseStore, make_release: Make) -> None:
    made = make_release()
    numbers = tuple(str(number) for number in range(60))
    manifest = dataclasses.replace(made.manifest, item_key_type="int")
    store.load(dataclasses.replace(made, manifest=manifest, item_ids=numbers, popular=numbers))
    store.upsert_items(manifest.id, ["-7"], unit(1, 8), "a number")
    for wrong in ("S7", "007", "٧", "99999999999999999999"):
        with pytest.raises(BadDataError, match=f"expected an integer id .*, got '{wrong}'"):
            store.upsert_items(manifest.id, [wrong], unit(1, 8), "a name")


def test_a_number_too_wide_for_the_view_widens_the_view(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    made = make_release()
    numbers = tuple(str(number) for number in range(60))
    manifest = dataclasses.replace(made.manifest, item_key_type="int")
    store.load(dataclasses.replace(made, manifest=manifest, item_ids=numbers, popular=numbers))
    store.promote(manifest.id, "a start")
    store.upsert_items(manifest.id, ["3000000000", "-9223372036854775808"], unit(2, 8), "wide")
    with contextlib.closing(connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT min(id), max(id), count(*), pg_typeof(max(id))::text FROM public.item_emb")
        assert cursor.fetchone() == (-(2**63), 3_000_000_000, 62, "bigint")
    store.promote(manifest.id, "again")
