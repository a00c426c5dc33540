"""Connection options, refusals, and waiting out an outage."""

import pickle
import socket
import threading
from pathlib import Path

import psycopg2
import pytest

from beamrec.io import embedded
from beamrec.io.postgres import Database, Limits, connect, connection_options
from beamrec.schemas.errors import UnavailableError, UsageError


def test_off_the_loopback_certificate_and_name_are_verified() -> None:
    far = connection_options("postgresql://ann@db.example:6000/shop")
    assert (far["host"], far["port"], far["user"], far["dbname"]) == ("db.example", "6000", "ann", "shop")
    assert far["sslmode"] == "verify-full"
    assert connection_options("postgresql://a@db.example/s?sslmode=require")["sslmode"] == "require"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", ""])
def test_on_the_loopback_nothing_is_asked(host: str) -> None:
    assert "sslmode" not in connection_options(f"postgresql://a@{host}/db")


def test_a_certificate_is_really_verified(server: Path) -> None:
    """A listener that speaks no TLS must not get a login."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def refuse_tls() -> None:
            client, _ = listener.accept()
            client.recv(8)
            client.sendall(b"N")
            client.close()

        threading.Thread(target=refuse_tls, daemon=True).start()
        with pytest.raises(UnavailableError, match="does not support SSL"):
            connect(f"postgresql://a@127.0.0.1:{port}/db?sslmode=verify-full")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://a:secret@h/db", "holds a password"),
        ("postgresql://a@h/db?password=secret", "holds a password"),
        ("mysql://a@h/db", "expected postgresql://"),
        ("postgresql://a@h/db?options=-c+x", "unknown option 'options'"),
        ("postgresql://a@h:99999/db", "[Pp]ort"),
        ("postgresql://a:secret@[::1/db", r"the host is not one: expected .* as \[::1\]"),
    ],
)
def test_wrong_uris_are_refused_without_repeating_a_password(uri: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        connection_options(uri)
    assert "secret" not in str(refused.value)


def test_an_error_says_where_and_not_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_DB_PASSWORD", "127.0.0.1")  # whatever libpq repeats
    with pytest.raises(UnavailableError) as refused:
        connect("postgresql://ann@localhost:1/shop")
    assert "PostgreSQL at localhost:1/shop" in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


def test_a_missing_database_is_not_waited_for(server: Path) -> None:
    uri = embedded.ensure_running(server).uri.replace("/postgres?", "/nowhere?")
    with pytest.raises(UnavailableError, match="does not exist"):
        Database(uri, patient=True).transaction(lambda cursor: None)


def test_work_is_committed_whole_or_not_at_all(database: str) -> None:
    store = Database(database)
    store.transaction(lambda cursor: cursor.execute("CREATE SCHEMA beamrec; CREATE TABLE beamrec.t (n int)"))

    def fail(cursor: psycopg2.extensions.cursor) -> None:
        cursor.execute("INSERT INTO beamrec.t VALUES (1)")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.transaction(fail)
    with pytest.raises(psycopg2.errors.UndefinedColumn):
        store.transaction(lambda cursor: cursor.execute("SELECT m FROM beamrec.t"))

    def count(cursor: psycopg2.extensions.cursor) -> int:
        cursor.execute("SELECT count(*) FROM beamrec.t")
        return int(cursor.fetchone()[0])

    assert store.transaction(count) == 0
    store.close()


def backend(cursor: psycopg2.extensions.cursor) -> int:
    """The number of the server process behind a connection."""
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


def test_a_connection_is_used_again_and_copies_start_afresh(database: str) -> None:
    store = Database(database)
    seen = [store.transaction(backend), store.transaction(backend)]
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    seen.append(copy.transaction(backend))
    assert seen[0] == seen[1] != seen[2]
    store.close()
    copy.close()


def test_threads_share_no_connection_and_wait_where_all_are_lent(database: str) -> None:
    store = Database(database, limits=Limits(connections=2))
    lock, at_once, most, seen = threading.Lock(), 0, 0, []

    def work(cursor: psycopg2.extensions.cursor) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        cursor.execute("SELECT pg_sleep(0.02)")
        with lock:
            at_once -= 1
        return backend(cursor)

    threads = [threading.Thread(target=lambda: seen.append(store.transaction(work))) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(seen), len(set(seen)), most) == (9, 2, 2)
    store.close()


def test_a_statement_that_takes_too_long_says_so_and_leaves_the_connection(database: str) -> None:
    store = Database(database, limits=Limits(statement_seconds=1))
    before = store.transaction(backend)
    with pytest.raises(UnavailableError, match="statement timeout"):
        store.transaction(lambda cursor: cursor.execute("SELECT pg_sleep(30)"))
    assert store.transaction(backend) == before
    store.close()


def test_a_patient_database_waits_for_a_lock_and_not_for_a_wrong_statement(database: str) -> None:
    holder, patient = Database(database), Database(database, patient=True, limits=Limits(lock_seconds=1))
    holder.transaction(lambda cursor: cursor.execute("CREATE SCHEMA beamrec; CREATE TABLE beamrec.t (n int)"))
    held, done = threading.Event(), []

    def hold(cursor: psycopg2.extensions.cursor) -> None:
        cursor.execute("LOCK TABLE beamrec.t")
        held.set()
        cursor.execute("SELECT pg_sleep(1.5)")

    thread = threading.Thread(target=lambda: done.append(holder.transaction(hold)))
    thread.start()
    assert held.wait(300)
    patient.transaction(lambda cursor: cursor.execute("INSERT INTO beamrec.t VALUES (1)"))
    thread.join()
    with pytest.raises(psycopg2.errors.UndefinedTable):
        patient.transaction(lambda cursor: cursor.execute("SELECT * FROM beamrec.missing"))
    patient.close()
    holder.close()


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="connections: expected an integer of at least 1, got 0"):
        Limits(connections=0)


def test_a_connection_that_the_server_ended_is_replaced(database: str) -> None:
    store, other = Database(database), Database(database)
    store.transaction(lambda cursor: cursor.execute("SELECT 1"))

    def end_others(cursor: psycopg2.extensions.cursor) -> None:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    other.transaction(end_others)

    def answer(cursor: psycopg2.extensions.cursor) -> int:
        cursor.execute("SELECT 7")
        return int(cursor.fetchone()[0])

    assert store.transaction(answer) == 7
    store.close()
    other.close()
