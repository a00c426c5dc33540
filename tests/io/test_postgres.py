"""Connection options, refusals, and waiting out an outage."""

import pickle
import socket
import threading
from pathlib import Path

import psycopg2
import pytest

from beamrec.io import embedded
from beamrec.io.postgres import Database, connect, connection_options
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


def test_each_thread_has_its_own_connection_and_copies_start_afresh(database: str) -> None:
    def backend(cursor: psycopg2.extensions.cursor) -> int:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])

    store = Database(database)
    seen = [store.transaction(backend), store.transaction(backend)]
    thread = threading.Thread(target=lambda: seen.append(store.transaction(backend)))
    thread.start()
    thread.join()
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    seen.append(copy.transaction(backend))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    store.close()
    copy.close()


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
