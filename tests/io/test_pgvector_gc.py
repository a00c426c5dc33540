"""What `gc` drops and what it keeps, and that readers notice nothing."""

import contextlib
import datetime as dt
import threading
from collections.abc import Callable

import psycopg2
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_gc import Keep
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.serving import ServingRow

Make = Callable[..., ReleaseContents]
NOW = dt.datetime.now(dt.UTC)


def rows(uri: str, statement: str) -> list[tuple]:
    with contextlib.closing(connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def partitions(uri: str) -> set[str]:
    """Ids of releases that have tables."""
    names = rows(
        uri, "SELECT relname FROM pg_class WHERE relnamespace = 'beamrec'::regnamespace AND relkind = 'r'"
    )
    parents = ("item_embeddings_", "user_embeddings_", "item_neighbours_")
    return {name.removeprefix(parent) for (name,) in names for parent in parents if name.startswith(parent)}


def load_all(store: ReleaseStore, make_release: Make, names: str) -> None:
    for number, name in enumerate(names):
        store.load(make_release(name, items=30, seed=number))


def served(release: str, days_ago: float, customer: str = "7") -> ServingRow:
    when = NOW - dt.timedelta(days=days_ago)
    return ServingRow(customer, f"{release}-{customer}", when, when, release, "popular", "[]", "[]")


def test_it_keeps_the_newest_the_active_its_rollback_targets_and_what_outputs_name(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    load_all(store, make_release, "abcdefgh")
    for release in "abc":
        store.promote(release, "in turn")
    store.append_log([served("d", 29)])
    store.upsert_latest([served("e", 31)])
    store.upsert_latest([served("f", 1, "8")])
    expected = {"a": "rollback", "b": "rollback", "c": "active", "d": "serving", "f": "serving"}
    expected |= {"g": "newest", "h": "newest"}
    planned = store.collect(Keep(2), dry_run=True)
    assert (planned.dropped, planned.kept) == (("e",), expected)
    assert partitions(database) == set("abcdefgh")
    found = store.collect(Keep(2))
    assert (found.dropped, found.kept, found.leftovers, found.busy) == (("e",), expected, (), ())
    assert partitions(database) == set("abcdfgh")
    assert [h[:3] for h in rows(
        database, "SELECT action, from_release, to_release FROM beamrec.release_audit WHERE action = 'gc'"
    )] == [("gc", "e", None)]  # fmt: skip
    found = store.collect(Keep(1, dt.timedelta(days=5)))
    assert found.dropped == ("a", "d", "g")
    assert store.rollback().active.id == "b"
    with pytest.raises(UsageError, match="a is not loaded"):
        store.rollback()
    store.load(make_release("a", items=30))
    assert store.rollback().active.id == "a"
    with pytest.raises(UsageError, match="--keep: expected at least 1"):
        Keep(0)


def test_an_old_unfinished_load_is_dropped_and_a_young_one_is_gone_on_with(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    def stop(text: str) -> None:
        if "neighbours" in text:
            raise InterruptedError(text)

    for name in ("old", "young"):
        with pytest.raises(InterruptedError):
            store.load(make_release(name), status=stop)
    rows(database, "UPDATE beamrec.release_loads SET touched_at = now() - interval '2 h' WHERE id = 'old'")
    rows(
        database,
        "CREATE TABLE beamrec.item_embeddings_gone (LIKE beamrec.item_embeddings, CHECK (release = 'gone'))",
    )
    assert store.collect(Keep(), dry_run=True).leftovers == ("gone", "old")
    assert store.collect(Keep()).leftovers == ("gone", "old")
    assert partitions(database) == {"young"}
    assert rows(database, "SELECT id FROM beamrec.release_loads") == [("young",)]
    assert store.collect(Keep()).leftovers == ()


def test_tables_of_somebody_are_left_alone_whatever_they_are_called(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    load_all(store, make_release, "ab")
    for name in ("backup", "9 lives"):
        rows(
            database,
            f'CREATE TABLE beamrec."item_embeddings_{name}" (LIKE beamrec.item_embeddings_a INCLUDING ALL)',
        )
    assert store.collect(Keep(1)).leftovers == ()
    assert partitions(database) == {"b", "backup", "9 lives"}
    with pytest.raises(UsageError, match=r"beamrec\.item_embeddings_backup stands there and is no"):
        store.load(make_release("backup"))
    assert partitions(database) == {"b", "backup", "9 lives"}


def test_what_was_dropped_before_is_told_until_it_is_loaded_again(
    store: ReleaseStore, make_release: Make
) -> None:
    load_all(store, make_release, "abc")
    assert store.collect(Keep(1)).gone == ("a", "b")
    store.load(make_release("a", items=30))
    assert store.collect(Keep(2)).gone == store.collect(Keep(2), dry_run=True).gone == ("b",)


@pytest.mark.parametrize("days", [float("nan"), float("inf"), 1e12, 40_000, -1])
def test_a_retention_that_is_no_number_of_days_is_refused(days: float) -> None:
    with pytest.raises(UsageError, match="--retention: expected 0 to 36,500 days, got"):
        Keep.of(3, days)


def test_what_another_command_is_at_work_on_is_left_alone(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def wait(text: str) -> None:
        if "neighbours" in text:
            at_work.set()
            assert go_on.wait(300)

    loader = threading.Thread(target=lambda: ReleaseStore(database).load(make_release("x"), status=wait))
    loader.start()
    assert at_work.wait(300)
    rows(database, "UPDATE beamrec.release_loads SET touched_at = now() - interval '2 h'")
    assert store.collect(Keep()).busy == ("x",)
    go_on.set()
    loader.join(300)
    assert [entry["id"] for entry in store.releases()] == ["x"]


def test_readers_of_other_releases_do_not_wait_for_a_drop_and_it_goes_on_after_an_interruption(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    load_all(store, make_release, "ab")
    store.promote("b", "a start")
    with contextlib.closing(connect(database)) as old_reader, old_reader.cursor() as reading:
        # It may read of the partition that goes, so the drop must wait for it.
        reading.execute("SELECT count(*) FROM beamrec.item_embeddings")
        failures: list[BaseException] = []
        thread = threading.Thread(target=_collect, args=(database, failures))
        thread.start()
        _wait_for(database, "SELECT FROM pg_inherits WHERE inhdetachpending")
        with contextlib.closing(connect(database)) as other, other.cursor() as cursor:
            cursor.execute("SET statement_timeout = '60s'; SELECT count(*) FROM public.item_emb")
            assert cursor.fetchone() == (30,)
        rows(
            database,
            "SELECT pg_terminate_backend(pid, 5000) FROM ("
            "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory') AS collecting",
        )
        thread.join(300)
        assert len(failures) == 1, "the interrupted command says so"
    assert [entry["id"] for entry in store.releases()] == ["b"]
    assert partitions(database) == {"a", "b"}
    assert store.collect(Keep(1)).leftovers == ("a",)
    assert partitions(database) == {"b"}


def _collect(uri: str, failures: list[BaseException]) -> None:
    try:
        ReleaseStore(uri).collect(Keep(1))
    except UnavailableError as error:
        failures.append(error)


def _wait_for(uri: str, query: str) -> None:
    with contextlib.closing(connect(uri)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for _ in range(6000):
            cursor.execute(query)
            if cursor.rowcount:
                return
            threading.Event().wait(0.05)
    raise AssertionError(f"never: {query}")


def test_loads_promotes_and_drops_under_readers_make_no_error(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    store.load(make_release("0", items=30))
    store.promote("0", "a start")
    stopped, wrong = threading.Event(), list[str]()

    def read() -> None:
        with contextlib.closing(connect(database)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not stopped.is_set():
                try:
                    cursor.execute("SELECT count(*) FROM public.item_emb")
                    if (row := cursor.fetchone()) != (30,):
                        wrong.append(str(row))
                except psycopg2.Error as error:
                    wrong.append(repr(error))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 11):
        store.load(make_release(str(number), items=30, seed=number))
        store.promote(str(number), "next")
        store.collect(Keep(1))
    stopped.set()
    for reader in readers:
        reader.join(300)
    assert wrong == []
    assert partitions(database) == {"9", "10"}
