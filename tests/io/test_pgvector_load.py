"""Loads that are interrupted, tampered with, repeated and run twice at once, on a real PostgreSQL."""

import contextlib
import dataclasses
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from beamrec.io import embedded, pgvector_copy, pgvector_index, pgvector_load
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_index import IndexOptions, ivfflat_lists
from beamrec.io.pgvector_neighbours import nearest_items, product_distances
from beamrec.io.postgres import connect
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError
from beamrec.schemas.releases import ReleaseContents

Make = Callable[..., ReleaseContents]
STEPS = ("item vectors", "user vectors", "index", "neighbours")


def rows(uri: str, *statements: str) -> list[tuple]:
    with contextlib.closing(connect(uri)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def tables(uri: str) -> dict[str, int]:
    """Tables of releases and the number under which the server keeps each."""
    return dict(
        rows(
            uri,
            "SELECT relname, oid FROM pg_class WHERE relnamespace = 'beamrec'::regnamespace "
            "AND relkind = 'r' AND relname ~ '^(item|user)_.*_2026'",
        )
    )


class InterruptedAtError(Exception):
    """Raised where a test stops a load."""


def interrupt_at(step: str) -> Callable[[str], None]:
    def status(text: str) -> None:
        if step in text:
            raise InterruptedAtError(text)

    return status


def stored(uri: str, release: ReleaseContents) -> None:
    """The tables hold the release, bit by bit, and are attached."""
    name = release.manifest.id
    for table, ids, vectors in (
        ("item_embeddings", release.item_ids, release.item_vectors),
        ("user_embeddings", release.user_ids, release.user_vectors),
    ):
        query = f"SELECT id, embedding::real[] FROM beamrec.{table} WHERE release = '{name}'"  # noqa: S608
        found = dict(rows(uri, query))
        assert set(found) == set(ids)
        np.testing.assert_array_equal(np.array([found[i] for i in ids], np.float32), vectors)
    counted = f"SELECT count(*) FROM beamrec.item_neighbours WHERE release = '{name}'"  # noqa: S608
    assert rows(uri, counted) == [(len(release.item_ids),)]


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_load_goes_on_behind_its_last_finished_step(
    store: ReleaseStore, database: str, make_release: Make, step: str
) -> None:
    release = make_release()
    with pytest.raises(InterruptedAtError):
        store.load(release, status=interrupt_at(step))
    assert store.releases() == []
    before, said = tables(database), list[str]()
    assert len(before) == min(2, STEPS.index(step))
    assert store.load(release, status=said.append)
    assert [text for text in said if any(done in text for done in STEPS[: STEPS.index(step)])] == []
    assert {name: tables(database)[name] for name in before} == before, "finished tables were kept"
    stored(database, release)
    assert rows(database, "SELECT count(*) FROM beamrec.release_loads") == [(0,)]
    assert [h["action"] for h in store.show(release.manifest.id)["history"]] == ["load"]


def test_what_another_content_or_index_left_over_is_not_gone_on_with(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    with pytest.raises(InterruptedAtError):
        store.load(make_release(seed=1), status=interrupt_at("neighbours"))
    said: list[str] = []
    store.load(make_release(seed=2), status=said.append)
    assert len(said) == len(STEPS)
    stored(database, make_release(seed=2))


def test_two_loaders_at_once_load_once(store: ReleaseStore, database: str, make_release: Make) -> None:
    release, answers = make_release(items=400), list[bool]()
    loaders = [
        threading.Thread(target=lambda: answers.append(ReleaseStore(database).load(release))) for _ in "ab"
    ]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join(300)
    assert sorted(answers) == [False, True]
    stored(database, release)
    assert [h["action"] for h in store.show(release.manifest.id)["history"]] == ["load"]


@pytest.mark.parametrize("kind", ["hnsw", "ivfflat", "none"])
def test_the_index_is_what_was_asked_for_and_settings_are_put_back(
    store: ReleaseStore, database: str, make_release: Make, kind: str
) -> None:
    release = make_release(items=300)
    index = IndexOptions(kind, m=8, ef_construction=32, lists=7, memory_bytes=100 * 2**20)  # type: ignore[arg-type]
    store.load(release, index)
    found = rows(
        database,
        "SELECT am.amname, c.reloptions FROM pg_class c JOIN pg_am am ON am.oid = c.relam "
        "JOIN pg_index i ON i.indexrelid = c.oid "
        "AND NOT i.indisprimary WHERE c.relname LIKE 'item_embeddings_%'",
    )
    expected = {"hnsw": [("hnsw", ["m=8", "ef_construction=32"])], "ivfflat": [("ivfflat", ["lists=7"])]}
    assert found == expected.get(kind, [])
    assert store.show(release.manifest.id)["built"]["index"]["kind"] == kind
    assert store.releases()[0]["index"] == kind
    stored(database, release)


@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("operator", ["<->", "<=>", "<#>"])
def test_neighbours_of_a_large_catalogue_come_from_the_index_with_their_recall(
    store: ReleaseStore,
    database: str,
    make_release: Make,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    operator: str,
) -> None:
    monkeypatch.setattr(pgvector_load, "EXACT_ITEMS", 1_000)
    release = make_release(items=2_000, dim=6, normalized=False, distance=operator)
    store.load(release, IndexOptions(kind, lists=10))  # type: ignore[arg-type]
    built = store.show(release.manifest.id)["built"]
    assert built["neighbours"] == kind
    indices, _ = nearest_items(release.item_vectors, operator, 20)
    found = rows(database, "SELECT id, neighbour_ids, distances FROM beamrec.item_neighbours")
    place, hits = {item: row for row, item in enumerate(release.item_ids)}, 0
    for item, listed, distances in found:
        assert item not in listed
        assert distances == sorted(distances)
        hits += len(set(listed) & {release.item_ids[i] for i in indices[place[item]]})
    assert len(found) == 2_000
    recall = hits / indices.size
    assert recall == pytest.approx(built["neighbours_recall"], abs=0.1)
    assert recall > (0.9 if kind == "hnsw" else 0.1), "a tenth of the lists is looked into"


def test_an_item_alone_in_its_list_has_neighbours_from_other_lists(
    store: ReleaseStore, database: str, make_release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_load, "EXACT_ITEMS", 10)
    release = make_release(items=2_000, dim=6, normalized=False, distance="<->")
    release.item_vectors[7] = 1_000
    store.load(release, IndexOptions("ivfflat", lists=10))
    assert rows(database, "SELECT DISTINCT cardinality(neighbour_ids) FROM beamrec.item_neighbours") == [
        (20,)
    ]


@pytest.mark.parametrize("step", ["nothing", "neighbours"])
def test_a_load_that_goes_on_searches_as_far_as_one_in_one_go(
    store: ReleaseStore, database: str, make_release: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Its session has not used a vector yet, so that the server does not know the settings of pgvector."""
    monkeypatch.setattr(pgvector_load, "EXACT_ITEMS", 10)
    release = make_release(items=2_000, dim=6, normalized=False)
    release.item_vectors[7] = 1_000  # alone in its list
    with contextlib.suppress(InterruptedAtError):
        store.load(release, IndexOptions("ivfflat", lists=10), interrupt_at(step))
    store.load(release, IndexOptions("ivfflat", lists=10))
    lengths = "SELECT DISTINCT cardinality(neighbour_ids) FROM beamrec.item_neighbours"
    assert rows(database, lengths) == [(20,)]


def test_memory_that_the_server_refuses_is_told_by_its_option(
    store: ReleaseStore, make_release: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_index, "_MOST_GIVEN_MEMORY", 2**50)  # as on a server with a lower bound
    with pytest.raises(UsageError, match=r"--index-memory-mb, --index-workers: this server refuses that: "):
        store.load(make_release(), IndexOptions(memory_bytes=2**45))


def test_what_an_index_needs_depends_on_its_rows() -> None:
    assert (ivfflat_lists(500), ivfflat_lists(200_000), ivfflat_lists(4_000_000)) == (1, 200, 2000)
    assert IndexOptions().needed_memory(100, 64) == 64 * 2**20
    assert IndexOptions().needed_memory(10**8, 64) < 2**31
    outside: tuple[dict[str, object], ...] = (
        {"m": 1}, {"ef_construction": 20}, {"lists": 0}, {"workers": -1}, {"kind": "btree"},
        {"memory_bytes": 0}, {"memory_bytes": 2**41},
    )  # fmt: skip
    for wrong in outside:
        with pytest.raises(UsageError, match="expected"):
            IndexOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("with_crc", [True, False], ids=["PostgreSQL 18", "before"])
def test_the_checksum_is_the_same_on_both_sides(
    store: ReleaseStore, make_release: Make, monkeypatch: pytest.MonkeyPatch, with_crc: bool
) -> None:
    monkeypatch.setattr(pgvector_copy, "_has_crc", lambda cursor: with_crc)
    release = make_release(items=300)
    store.load(release, IndexOptions("none"))
    built = store.show(release.manifest.id)["built"]
    assert (int(built["items_checksum"], 16) < 300 * 2**32) == with_crc


_TAMPER = """
CREATE FUNCTION public.tamper() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF new.id = 'P3' THEN new.embedding := {change}; END IF; RETURN {kept}; END $$;
CREATE FUNCTION public.add_tamper() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE made record; BEGIN
  FOR made IN SELECT * FROM pg_event_trigger_ddl_commands()
    WHERE object_identity LIKE '%item_embeddings_2%' LOOP
    EXECUTE format('CREATE TRIGGER t BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION public.tamper()',
      made.object_identity); END LOOP; END $$;
CREATE EVENT TRIGGER tamper ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
  EXECUTE FUNCTION public.add_tamper();
"""
_UNTAMPER = "DROP EVENT TRIGGER IF EXISTS tamper; DROP FUNCTION IF EXISTS public.add_tamper, public.tamper"


@pytest.fixture(params=["a changed bit", "a lost row"])
def tampering(database: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """A server that stores something else than it is sent."""
    changed = (
        "(SELECT array_agg(CASE WHEN n = 1 THEN x + x * 1.5e-7 ELSE x END ORDER BY n)::vector "
        "FROM unnest(new.embedding::real[]) WITH ORDINALITY u(x, n))"
    )
    change, kept = {
        "a changed bit": (changed, "new"),
        "a lost row": ("new.embedding", "CASE WHEN new.id = 'P3' THEN NULL ELSE new END"),
    }[request.param]
    rows(database, _TAMPER.format(change=change, kept=kept))
    yield
    rows(database, _UNTAMPER)


@pytest.mark.usefixtures("tampering")
def test_what_is_stored_otherwise_than_it_was_sent_is_refused_and_dropped(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    with pytest.raises(BadDataError, match="not what was sent: expected 60 rows"):
        store.load(make_release())
    assert tables(database) == {}
    assert rows(database, "SELECT count(*) FROM beamrec.release_loads") == [(0,)]
    rows(database, _UNTAMPER)
    store.load(make_release())


def test_vectors_that_are_not_finite_are_refused(store: ReleaseStore, make_release: Make) -> None:
    release = make_release()
    vectors = release.user_vectors.copy()
    vectors[3, 2] = np.nan
    with pytest.raises(BadDataError, match=r"user vectors: expected finite numbers .*, got nan"):
        store.load(dataclasses.replace(release, user_vectors=vectors))


def test_vectors_whose_products_float32_cannot_hold_are_refused(
    store: ReleaseStore, make_release: Make
) -> None:
    release = make_release(normalized=False)
    for length, refused in ((1e20, True), (1e17, False)):
        long = release.item_vectors * np.float32(length)
        given = dataclasses.replace(release, item_vectors=long)
        if refused:
            with pytest.raises(BadDataError, match=r"item vectors: .* a length of at most 1e\+18"):
                store.load(given)
    store.load(given)
    indices, distances = nearest_items(long, "<->", 3)
    expected = nearest_items(release.item_vectors, "<->", 3)
    np.testing.assert_array_equal(indices, expected[0])
    assert np.isfinite(distances).all()


def test_an_operator_that_is_not_known_is_no_other_one() -> None:
    with pytest.raises(ValueError, match="operator: expected one of <->, <=>, <#>; got '<\\+>'"):
        nearest_items(np.eye(3, dtype=np.float32), "<+>", 1)
    with pytest.raises(ValueError, match="operator: expected one of"):
        product_distances(np.eye(3), np.eye(3), "<~>")


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_server_that_is_killed_in_a_load_is_an_outage_and_a_rerun_completes(
    server: Path, store: ReleaseStore, database: str, make_release: Make, step: str
) -> None:
    store.load(make_release("first"))
    store.promote("first", "a start")
    uri = embedded.ensure_running(server).uri  # a plain URI: nothing starts the server behind our back
    release = make_release(items=2_000)

    def kill(text: str) -> None:
        if step in text:
            embedded.stop_server(server)

    with pytest.raises(UnavailableError, match="run the command again: it goes on"):
        ReleaseStore(uri).load(release, status=kill)
    embedded.ensure_running(server)
    assert [entry["id"] for entry in store.releases()] == ["first"]
    assert store.load(release)
    stored(database, release)


@pytest.fixture
def small_disk(server: Path, database: str) -> Iterator[Callable[[], None]]:
    """Tables go to a disk of 8 MB; the function makes it larger."""
    # pytest's own folders are private, and the server runs as another user.
    disk = Path(tempfile.mkdtemp(prefix="beamrec-small-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=777", "tmpfs", disk], capture_output=True, check=False
    )
    if done.returncode:
        disk.rmdir()
        pytest.skip("only root may mount a small disk here")
    try:
        disk.chmod(0o755)
        folder = disk / "space"
        folder.mkdir()
        owner = server.stat()
        subprocess.run(["chown", f"{owner.st_uid}:{owner.st_gid}", folder], check=True)
        rows(database, f"CREATE TABLESPACE small LOCATION '{folder}'")
        rows(database, "ALTER ROLE CURRENT_USER SET default_tablespace = small")
        yield lambda: subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True) and None
    finally:
        rows(database, "ALTER ROLE CURRENT_USER RESET default_tablespace")
        rows(database, "DROP SCHEMA IF EXISTS beamrec CASCADE", "DROP TABLESPACE IF EXISTS small")
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


def test_a_full_disk_is_an_outage_and_a_rerun_completes(
    small_disk: Callable[[], None], store: ReleaseStore, database: str, make_release: Make
) -> None:
    release = make_release(items=20_000, dim=64)
    with pytest.raises(UnavailableError, match="its disk is full"):
        store.load(release, IndexOptions("none"))
    assert store.releases() == []
    small_disk()
    store.load(release, IndexOptions("none"))
    stored(database, release)
