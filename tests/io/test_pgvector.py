"""The store on a real PostgreSQL, compared with plain NumPy."""

import dataclasses
import datetime as dt
import hashlib
import threading

import numpy as np
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_neighbours import nearest_items
from beamrec.io.postgres import connect
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def contents(
    release: str = "20261122T1200-00000001",
    items: int = 60,
    users: int = 7,
    dim: int = 8,
    seed: int = 0,
    normalized: bool = True,
    distance: str = "<->",
    user_key_type: str = "int",
) -> ReleaseContents:
    """A made-up release; ids of several lengths and with characters that need quoting."""
    rng = np.random.default_rng(seed)
    vectors = [rng.normal(size=(n, dim)).astype(np.float32) for n in (items, users)]
    if normalized:
        vectors = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    odd = ["S10_1678", 'quote"d', "back\\slash", "tab\there", "new\nline", "naïve ☃", "{brace,comma}", "N"]
    ids = tuple((odd + [f"P{i}" for i in range(items)])[:items])
    manifest = ReleaseManifest(
        id=release, created_at="2026-11-22T12:00:00Z", code_version="0", shop="test",
        user_key_type=user_key_type, item_key_type="string", dim=dim, items=items, users=users, files=(),
        normalized=normalized, distance=distance,
    )  # fmt: skip
    checksum = hashlib.sha256(manifest.to_json() + vectors[0].tobytes()).hexdigest()
    popular = tuple(rng.permutation(np.array(ids, object)))
    user_ids = tuple(str(100 + u) for u in range(users))
    return ReleaseContents(manifest, "/a/folder", checksum, ids, vectors[0], user_ids, vectors[1], popular)


def brute_force(vectors: np.ndarray, query: np.ndarray, operator: str) -> np.ndarray:
    a, b = vectors.astype(np.float64), query.astype(np.float64)
    if operator == "<->":
        return np.linalg.norm(a - b, axis=1)
    products = a @ b
    return -products if operator == "<#>" else 1 - products / np.linalg.norm(a, axis=1) / np.linalg.norm(b)


@pytest.mark.parametrize("operator", ["<->", "<=>", "<#>"])
@pytest.mark.parametrize("normalized", [True, False])
def test_nearest_items_equal_brute_force(operator: str, normalized: bool) -> None:
    vectors = contents(items=1500, dim=5, normalized=normalized).item_vectors
    indices, distances = nearest_items(vectors, operator, 20)
    for row in (0, 1, 777, 1023, 1024, 1499):
        expected = brute_force(vectors, vectors[row], operator)
        expected[row] = np.inf
        np.testing.assert_allclose(distances[row], np.sort(expected)[:20], atol=1e-6)
        np.testing.assert_allclose(expected[indices[row]], distances[row], atol=1e-6)
        assert row not in indices[row]


def test_nearest_items_of_tiny_catalogues_are_all_others() -> None:
    assert nearest_items(np.ones((1, 4), np.float32), "<->", 20)[0].shape == (1, 0)
    assert nearest_items(np.eye(3, dtype=np.float32), "<->", 20)[0].shape == (3, 2)


def test_stored_distances_are_what_pgvector_itself_computes(store: ReleaseStore, database: str) -> None:
    release = contents()
    store.load(release)
    connection = connect(database)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT max(abs(d - (a.embedding <-> b.embedding))) FROM beamrec.item_neighbours n "
            "CROSS JOIN unnest(neighbour_ids, distances) AS u (other, d) "
            "JOIN beamrec.item_embeddings a ON a.id = n.id JOIN beamrec.item_embeddings b ON b.id = other"
        )
        assert cursor.fetchone()[0] < 1e-6
    connection.close()


def test_loading_again_changes_nothing_and_other_content_is_refused(store: ReleaseStore) -> None:
    release = contents()
    store.load(release)
    before = store.releases()
    store.load(release)
    assert store.releases() == before
    assert [h["action"] for h in store.show(release.manifest.id)["history"]] == ["load"]
    with pytest.raises(BadDataError, match="another content"):
        store.load(contents(seed=1))


def test_a_load_that_fails_leaves_nothing_and_can_be_repeated(store: ReleaseStore, database: str) -> None:
    release = contents()
    doubled = dataclasses.replace(release, item_ids=(release.item_ids[1], *release.item_ids[1:]))
    with pytest.raises(BadDataError, match="ids must differ"):
        store.load(doubled)
    assert store.releases() == []
    connection = connect(database)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE tablename LIKE '%00000001'")
        assert cursor.fetchone() == (0,)
    connection.close()
    store.load(release)


def test_releases_of_two_dimensions_promote_and_roll_back_with_the_views(
    store: ReleaseStore, database: str
) -> None:
    first, second = contents("first"), contents("second", dim=12, users=3, seed=1)
    assert store.active() is None
    for release in (first, second):
        store.load(release)
    assert _rows(database, "SELECT to_regclass('public.item_emb')") == [(None,)]
    assert store.promote("first", "a start").active.dim == 8
    assert _rows(database, "SELECT count(*), max(vector_dims(embedding)) FROM item_emb") == [(60, 8)]
    moved = store.promote("second", "better")
    active = moved.active
    assert (moved.before, moved.forced) == ("first", ())
    assert (active.id, active.dim, active.items, active.operator) == ("second", 12, 60, "<->")
    assert active == store.active()
    assert _rows(database, "SELECT count(*), max(vector_dims(embedding)) FROM user_emb") == [(3, 12)]
    types = _rows(
        database,
        "SELECT table_name, data_type FROM information_schema.columns WHERE table_schema = 'public' "
        "AND column_name = 'id' AND table_name IN ('item_emb', 'user_emb') ORDER BY 1",
    )
    assert types == [("item_emb", "character varying"), ("user_emb", "integer")]
    moved = store.rollback("worse")
    assert (moved.before, moved.active.id) == ("second", "first")
    assert _rows(database, "SELECT count(*), max(vector_dims(embedding)) FROM user_emb") == [(7, 8)]
    with pytest.raises(UsageError, match="no release was active before"):
        store.rollback()
    history = [(h["action"], h["from"], h["to"], h["why"]) for h in store.show("second")["history"]]
    assert history == [
        ("load", None, "second", "from /a/folder"),
        ("promote", "first", "second", "better"),
        ("rollback", "second", "first", "worse"),
    ]
    assert [r["active"] for r in sorted(store.releases(), key=lambda r: r["id"])] == [True, False]


def test_promoting_twice_is_once_and_unknown_releases_are_refused(store: ReleaseStore) -> None:
    store.load(contents("first"))
    store.promote("first", "a")
    store.promote("first", "b")
    assert [h["why"] for h in store.show("first")["history"]] == ["from /a/folder", "a"]
    with pytest.raises(UsageError, match="not loaded"):
        store.promote("second", "c")
    with pytest.raises(UsageError, match="not loaded"):
        store.show("second")


def test_a_table_of_the_course_is_not_touched(store: ReleaseStore, database: str) -> None:
    _rows(database, "CREATE TABLE public.item_emb (id varchar, embedding vector(2))", fetch=False)
    _rows(database, "INSERT INTO public.item_emb VALUES ('mine', '[1,2]')", fetch=False)
    store.load(contents("first"))
    store.promote("first", "a")
    assert _rows(database, "SELECT id FROM public.item_emb") == [("mine",)]
    assert _rows(database, "SELECT count(*) FROM public.user_emb") == [(7,)]


def test_ids_that_are_no_integers_refuse_promotion(store: ReleaseStore) -> None:
    release = contents("first")
    store.load(dataclasses.replace(release, user_ids=("x1", *release.user_ids[1:])))
    with pytest.raises(BadDataError, match="ids are integers"):
        store.promote("first", "a")
    assert store.active() is None


def test_readers_of_the_active_release_do_not_wait_for_a_load(store: ReleaseStore, database: str) -> None:
    store.load(contents("first"))
    store.promote("first", "a")
    connection = connect(database)
    with connection.cursor() as cursor:  # a reader that holds its locks while another release is loaded
        cursor.execute("SELECT count(*) FROM public.item_emb")
        thread = threading.Thread(target=lambda: ReleaseStore(database).load(contents("second", seed=1)))
        thread.start()
        thread.join(300)
        assert not thread.is_alive()
    connection.close()
    assert len(store.releases()) == 2


def _rows(uri: str, statement: str, fetch: bool = True) -> list[tuple]:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if fetch else []
    connection.close()
    return rows
