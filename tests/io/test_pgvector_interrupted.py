"""What killed commands leave behind, and what waiting ones say of those they wait for."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import psycopg2.extensions
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_gc import Keep
from beamrec.io.pgvector_session import lock_key
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.releases import ReleaseContents

Make = Callable[..., ReleaseContents]
SECONDS = 60


@contextlib.contextmanager
def transaction(uri: str, statement: str) -> Iterator[psycopg2.extensions.connection]:
    """A transaction that somebody forgot to end, until the end of the `with` block."""
    with contextlib.closing(connect(uri)) as connection:
        connection.cursor().execute(statement)
        yield connection


def ask(uri: str, statement: str) -> list[tuple]:
    with contextlib.closing(connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def wait_until(is_so: Callable[[], object], what: str) -> None:
    for _ in range(SECONDS * 20):
        if is_so():
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"never: {what}")


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[UnavailableError]]:
    """A thread at work, and what it could not do."""
    failures: list[UnavailableError] = []

    def run() -> None:
        try:
            work()
        except UnavailableError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, failures


def is_there(uri: str, table: str) -> bool:
    return ask(uri, f"SELECT to_regclass('beamrec.{table}') IS NOT NULL") == [(True,)]


def test_a_load_completes_after_a_gc_was_killed_between_two_tables_of_its_leftovers(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    def stop(text: str) -> None:
        if "neighbours" in text:
            raise InterruptedError(text)

    with pytest.raises(InterruptedError):
        store.load(make_release("x"), status=stop)
    ask(database, "UPDATE beamrec.release_loads SET touched_at = now() - interval '2 h'")
    with transaction(database, "LOCK TABLE beamrec.user_embeddings_x IN ACCESS SHARE MODE"):
        thread, failures = in_background(lambda: ReleaseStore(database).collect(Keep()))
        wait_until(lambda: not is_there(database, "item_embeddings_x"), "the first table is dropped")
        ask(
            database,
            "SELECT pg_terminate_backend(pid, 5000) FROM ("
            "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory') AS collecting",
        )
        thread.join(SECONDS)
        assert len(failures) == 1, "the killed command says so"
    assert is_there(database, "user_embeddings_x")
    assert store.load(make_release("x"))
    assert store.promote("x", "complete").active.items == 60


def test_a_forgotten_transaction_is_named_by_the_gc_that_waits_for_it_and_loads_go_on(
    store: ReleaseStore, database: str, make_release: Make, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        store.load(make_release(name))
    store.promote("b", "a start")
    with transaction(database, "SELECT count(*) FROM beamrec.item_embeddings") as forgotten:
        collecting, failures = in_background(lambda: ReleaseStore(database).collect(Keep(1)))
        named = f"process {forgotten.info.backend_pid} (user postgres, beamrec, idle in transaction, since "
        wait_until(lambda: named in caplog.text, named)
        assert "beamrec.item_embeddings_a: to be dropped, waiting" in caplog.text
        loading, _ = in_background(lambda: ReleaseStore(database).load(make_release("c")))
        loading.join(SECONDS)
        assert [entry["id"] for entry in store.releases()] == ["c", "b"]
    collecting.join(SECONDS)
    assert failures == []
    assert not is_there(database, "item_embeddings_a")


def test_who_waits_for_the_same_release_says_for_whom(
    store: ReleaseStore, database: str, make_release: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with transaction(database, f"SELECT pg_advisory_lock({lock_key('x')})") as other:
        thread, _ = in_background(lambda: store.load(make_release("x")))
        named = (
            f"release x: waiting for another command that is at work on it, process {other.info.backend_pid}"
        )
        wait_until(lambda: named in caplog.text, named)
    thread.join(SECONDS)
    assert [entry["id"] for entry in store.releases()] == ["x"]
