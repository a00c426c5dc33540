"""Tables of an older version are migrated; who may not make tables reads, or is told what is missing."""

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_gc import Keep
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.releases import ReleaseContents

if TYPE_CHECKING:
    from postgresql_fixtures import PostgreSQL

Make = Callable[..., ReleaseContents]

# As version 1 made them, with a release that it loaded and promoted.
_VERSION_1 = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA beamrec;
CREATE TABLE beamrec.releases (
  id text PRIMARY KEY, uri text NOT NULL, checksum text NOT NULL, dim int NOT NULL, operator text NOT NULL,
  has_user_tower boolean NOT NULL, items bigint NOT NULL, users bigint NOT NULL, manifest jsonb NOT NULL,
  loaded_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE beamrec.active_release (
  one boolean PRIMARY KEY DEFAULT true CHECK (one), release text NOT NULL REFERENCES beamrec.releases (id),
  since timestamptz NOT NULL DEFAULT now());
CREATE TABLE beamrec.release_audit (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  who text NOT NULL, action text NOT NULL, from_release text, to_release text, why text NOT NULL);
CREATE TABLE beamrec.item_embeddings (
  release text NOT NULL, id text COLLATE "C" NOT NULL, embedding vector NOT NULL, popularity_rank int)
  PARTITION BY LIST (release);
CREATE TABLE beamrec.user_embeddings (
  release text NOT NULL, id text COLLATE "C" NOT NULL, embedding vector NOT NULL)
  PARTITION BY LIST (release);
CREATE TABLE beamrec.item_neighbours (
  release text NOT NULL, id text COLLATE "C" NOT NULL, neighbour_ids text[] NOT NULL,
  distances real[] NOT NULL)
  PARTITION BY LIST (release);
CREATE TABLE beamrec.recommendations_latest (
  customer_id text COLLATE "C" PRIMARY KEY, event_id text COLLATE "C" NOT NULL,
  event_time timestamptz NOT NULL, processed_at timestamptz NOT NULL,
  release text NOT NULL, served_by text NOT NULL,
  recommended_items jsonb NOT NULL, similar_items jsonb NOT NULL);
CREATE TABLE beamrec.recommendations_log (
  event_id text COLLATE "C" PRIMARY KEY, customer_id text, event_time timestamptz NOT NULL,
  processed_at timestamptz NOT NULL, release text NOT NULL, served_by text NOT NULL,
  recommended_items jsonb NOT NULL, similar_items jsonb NOT NULL);
CREATE INDEX recommendations_log_event_time ON beamrec.recommendations_log (event_time);
CREATE TABLE beamrec.item_embeddings_old (LIKE beamrec.item_embeddings, PRIMARY KEY (id));
INSERT INTO beamrec.item_embeddings_old VALUES ('old', 'P1', '[1,0]', 0), ('old', 'P2', '[0,1]', 1);
CREATE TABLE beamrec.user_embeddings_old (LIKE beamrec.user_embeddings, PRIMARY KEY (id));
INSERT INTO beamrec.user_embeddings_old VALUES ('old', '103', '[1,0]');
CREATE TABLE beamrec.item_neighbours_old (LIKE beamrec.item_neighbours, PRIMARY KEY (id));
INSERT INTO beamrec.item_neighbours_old VALUES ('old', 'P1', '{P2}', '{1.4}'), ('old', 'P2', '{P1}', '{1.4}');
CREATE INDEX ON beamrec.item_embeddings_old USING hnsw ((embedding::vector(2)) vector_l2_ops);
ALTER TABLE beamrec.item_embeddings ATTACH PARTITION beamrec.item_embeddings_old FOR VALUES IN ('old');
ALTER TABLE beamrec.user_embeddings ATTACH PARTITION beamrec.user_embeddings_old FOR VALUES IN ('old');
ALTER TABLE beamrec.item_neighbours ATTACH PARTITION beamrec.item_neighbours_old FOR VALUES IN ('old');
INSERT INTO beamrec.releases VALUES ('old', '/a/folder', 'c0ffee', 2, '<->', false, 2, 1,
  '{"shop": "test", "dim": 2, "normalized": true, "user_key_type": "int", "item_key_type": "string",
    "metrics": {}}');
INSERT INTO beamrec.active_release (release) VALUES ('old');
INSERT INTO beamrec.release_audit (who, action, from_release, to_release, why)
  VALUES ('me', 'load', NULL, 'old', 'long ago'), ('me', 'promote', NULL, 'old', 'long ago');
"""


def execute(uri: str, statements: str) -> None:
    with contextlib.closing(connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statements)


@pytest.mark.parametrize("first", ["active", "releases", "load", "collect"])
def test_the_tables_of_version_1_are_migrated_by_whatever_comes_first(
    database: str, make_release: Make, first: str
) -> None:
    execute(database, _VERSION_1)
    store = ReleaseStore(database)
    {
        "active": store.active,
        "releases": store.releases,
        "load": lambda: store.load(make_release("new")),
        "collect": lambda: store.collect(Keep()),
    }[first]()
    active = store.active()
    assert active is not None
    assert (active.id, active.items, active.items_version, active.search) == ("old", 2, 0, None)
    assert [(h["action"], h["forced"]) for h in store.show("old")["history"]] == [
        ("load", []),
        ("promote", []),
    ]
    assert store.search("old", np.array([[1, 0.1]], np.float32), 1).to_pylist()[0][0]["id"] == "P1"
    store.upsert_items("old", ["P3"], np.array([[0.6, 0.8]], np.float32), "after the migration")
    store.load(make_release("new"))
    store.promote("new", "next")
    assert store.rollback().active.items == 3
    store.close()


@pytest.mark.parametrize("asks", ["release", "show", "catalogue", "unknown_items", "user_vectors"])
def test_a_fresh_store_says_that_a_release_is_not_loaded(database: str, asks: str) -> None:
    store = ReleaseStore(database)
    given = {"unknown_items": [["P1"]], "user_vectors": [3, 1]}
    with pytest.raises(UsageError, match="release x is not loaded"):
        getattr(store, asks)("x", *given.get(asks, []))
    store.close()


def test_tables_of_a_newer_version_are_refused_and_stay_as_they_are(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    execute(database, "COMMENT ON TABLE beamrec.releases IS 'beamrec: store version 9'")
    for command in (
        store.active,
        store.releases,
        store.ensure_schema,
        lambda: store.load(make_release()),
        lambda: store.collect(Keep()),
    ):
        with pytest.raises(UsageError, match="there are of version 9, and this beamrec knows"):
            command()
    with contextlib.closing(connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT obj_description('beamrec.releases'::regclass)")
        assert cursor.fetchone() == ("beamrec: store version 9",)


def test_the_clicks_that_a_stream_kept_survive_a_migration(store: ReleaseStore, database: str) -> None:
    execute(
        database,
        "INSERT INTO beamrec.session_clicks VALUES ('a', 'a-1', 1, 'P1', true, '{}', '{}');"
        "DROP INDEX beamrec.session_clicks_age;"
        "COMMENT ON TABLE beamrec.releases IS 'beamrec: store version 2'",
    )
    ReleaseStore(database).ensure_schema()
    with contextlib.closing(connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT session, product, to_regclass('beamrec.session_clicks_age')::text "
            "FROM beamrec.session_clicks"
        )
        assert cursor.fetchall() == [("a", "P1", "beamrec.session_clicks_age")]


def test_a_migration_by_many_at_once_is_done_once(database: str) -> None:
    execute(database, _VERSION_1)
    errors: list[BaseException] = []

    def start() -> None:
        try:
            ReleaseStore(database).ensure_schema()
        except UnavailableError as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert errors == []
    assert [entry["id"] for entry in ReleaseStore(database).releases()] == ["old"]


def test_a_start_that_changes_nothing_waits_for_no_reader(store: ReleaseStore, database: str) -> None:
    with contextlib.closing(connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE beamrec.releases IN ACCESS SHARE MODE")
        thread = threading.Thread(target=ReleaseStore(database).ensure_schema)
        thread.start()
        thread.join(300)
        assert not thread.is_alive()


@pytest.fixture
def shared(postgresql: "PostgreSQL", source_password: str, monkeypatch: pytest.MonkeyPatch) -> "PostgreSQL":
    """A server of several users, with an empty database `vectors` that `shop` owns and `reader` may enter."""
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    postgresql.create_database("vectors")
    return postgresql


def test_a_role_that_may_only_read_searches_and_is_told_that_it_may_not_write(
    shared: "PostgreSQL", make_release: Make
) -> None:
    shared.execute("CREATE EXTENSION vector", database="vectors")
    release = make_release()
    owner = ReleaseStore(shared.uri("vectors"))
    owner.load(release)
    owner.promote(release.manifest.id, "a start")
    shared.execute(
        "GRANT USAGE ON SCHEMA beamrec TO reader",
        "GRANT SELECT ON ALL TABLES IN SCHEMA beamrec TO reader",
        database="vectors",
    )
    reader = ReleaseStore(shared.uri("vectors", "reader"))
    active = reader.active()
    assert active is not None
    assert reader.releases()[0]["id"] == active.id
    assert len(reader.search(active.id, release.item_vectors[:2], 3).to_pylist()[1]) == 3
    asked = pa.array(["P3"]), pa.array(["100"])
    assert reader.lookup(active.id, *asked).products.to_pylist() == ["P3"]
    for write in (
        lambda: reader.load(make_release("another")),
        lambda: reader.promote(active.id, "mine"),
        lambda: reader.upsert_items(active.id, ["new"], release.item_vectors[:1], "mine"),
    ):
        with pytest.raises(UnavailableError, match="permission denied"):
            write()
    owner.close()
    reader.close()


def test_a_role_that_may_make_no_tables_is_told_what_is_missing(
    shared: "PostgreSQL", make_release: Make
) -> None:
    reader = ReleaseStore(shared.uri("vectors", "reader"))
    with pytest.raises(UnavailableError, match="an administrator must run CREATE EXTENSION vector"):
        reader.load(make_release())
    shared.execute("CREATE EXTENSION vector", database="vectors")
    with pytest.raises(UnavailableError, match="GRANT CREATE ON DATABASE"):
        reader.load(make_release())
    assert reader.active() is None
    reader.close()
