"""Connections to PostgreSQL, their snapshots and what they say when they fail, against a real server."""

import contextlib
import dataclasses
import datetime as dt
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io import postgres_tables as tables
from beamrec.io.arrow_types import to_array
from beamrec.io.backend import Access, Query
from beamrec.io.postgres_connection import Connection
from beamrec.schemas.errors import ConnectionLostError, UnavailableError, UsageError

pytestmark = pytest.mark.usefixtures("source_password")

INSTANT = dt.datetime(2004, 2, 29, 21, 59, 59, 500000, tzinfo=dt.UTC)


@pytest.fixture
def three_rows(postgresql: Any, database: str) -> Access:
    """A database with a table `t` of three rows, read by two connections."""
    postgresql.execute_as_shop("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2), (3)")
    return Access(postgresql.uri(database))


@pytest.fixture
def database(postgresql: Any) -> str:
    """An empty database."""
    name: str = postgresql.create_database("scratch")
    return name


def count(connection: Any) -> str:
    """`COUNT(*)` of the table `t`."""
    ((answer,),) = next(tables.fetch(connection, "SELECT COUNT(*) FROM t"))
    return str(answer)


def visit(uri: str) -> None:
    """Connects, and no more."""
    with tables.connect(uri):
        pass


def process(connection: Any) -> int:
    """Number of the server's process."""
    return int(connection.info.backend_pid)


@pytest.mark.parametrize(("mode", "readers"), [("auto", 3), ("shared", 2), ("connection", 3), ("auto", 1)])
def test_all_readers_see_one_moment(postgresql: Any, three_rows: Access, mode: Any, readers: int) -> None:
    access = dataclasses.replace(three_rows, mode=mode, readers=readers)
    with tables.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        assert count(connection) == "3"
        postgresql.execute("DELETE FROM t WHERE id = 1", database="scratch")
        snapshot = tables.open_snapshot(stack, access, connection, ["t"])
        assert len(snapshot.readers) == (1 if mode == "connection" else readers)
        assert not snapshot.verify
        postgresql.execute("DELETE FROM t", database="scratch")
        assert [count(reader) for reader in snapshot.readers] == ["2"] * len(snapshot.readers)
        if mode == "connection":
            assert snapshot.token is None
            assert count(tables.reconnect(stack, access, None)) == "0"
            return
        assert "pg_export_snapshot" in snapshot.method
        # Every reader is lost, and replaced in the same snapshot.
        for reader in snapshot.readers:
            postgresql.terminate(process(reader))
            with pytest.raises(ConnectionLostError):
                count(reader)
            tables.close(reader)
            assert count(tables.reconnect(stack, access, snapshot.token)) == "2"
    connected = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'scratch'"
    assert postgresql.execute(f"SELECT pg_sleep(0.2); {connected}") == [(0,)]


def test_a_snapshot_whose_keeper_is_gone_is_gone(postgresql: Any, three_rows: Access) -> None:
    with tables.connect(three_rows.uri) as connection, contextlib.ExitStack() as stack:
        snapshot = tables.open_snapshot(stack, three_rows, connection, ["t"])
        readers = {process(reader) for reader in snapshot.readers}
        everyone = postgresql.execute("SELECT pid FROM pg_stat_activity WHERE datname = 'scratch'")
        (keeper,) = {pid for (pid,) in everyone} - readers
        postgresql.terminate(keeper)
        assert [count(reader) for reader in snapshot.readers] == ["3", "3"]
        with pytest.raises(UnavailableError, match="the shared snapshot is gone") as caught:
            tables.reconnect(stack, three_rows, snapshot.token)
        assert not isinstance(caught.value, ConnectionLostError)
        postgresql.execute("DELETE FROM t", database="scratch")
        assert count(tables.reconnect(stack, three_rows, None)) == "0"
        with pytest.raises(UnavailableError, match="the shared snapshot is gone"):
            tables.reconnect(stack, three_rows, "no snapshot's name")


def test_checksums_see_each_statement_anew(postgresql: Any, three_rows: Access) -> None:
    access = dataclasses.replace(three_rows, mode="checksums", readers=3)
    with tables.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        snapshot = tables.open_snapshot(stack, access, connection, ["t"])
        assert (len(snapshot.readers), snapshot.token, snapshot.verify) == (3, None, True)
        readers = [*snapshot.readers, tables.reconnect(stack, access, None)]
        assert [count(reader) for reader in readers] == ["3"] * 4
        postgresql.execute("DELETE FROM t WHERE id = 1", database="scratch")
        assert [count(reader) for reader in readers] == ["2"] * 4


@pytest.fixture
def few_connections(postgresql: Any) -> Iterator[None]:
    """`shop` may hold three connections."""
    postgresql.execute("ALTER ROLE shop CONNECTION LIMIT 3")
    yield
    postgresql.execute("ALTER ROLE shop CONNECTION LIMIT -1")


@pytest.mark.usefixtures("few_connections")
def test_a_server_with_little_room_gives_fewer_readers(three_rows: Access) -> None:
    access = dataclasses.replace(three_rows, readers=8)
    with tables.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        assert len(tables.open_snapshot(stack, access, connection, ["t"]).readers) == 2
        with pytest.raises(ConnectionLostError, match="too many connections"), tables.connect(access.uri):
            pass
    with (
        tables.connect(access.uri) as connection,
        tables.connect(access.uri),
        tables.connect(access.uri),
        contextlib.ExitStack() as stack,
    ):
        snapshot = tables.open_snapshot(stack, access, connection, ["t"])
        assert (snapshot.method, snapshot.readers) == ("one connection, REPEATABLE READ", (connection,))
        with pytest.raises(ConnectionLostError, match="too many connections"):
            tables.open_snapshot(stack, dataclasses.replace(access, mode="shared"), connection, ["t"])


def test_a_role_with_settings_of_its_own_reads_the_same(postgresql: Any, database: str) -> None:
    settings_ = {
        "datestyle": "'German'",
        "timezone": "'Asia/Tokyo'",
        "extra_float_digits": "0",
        "statement_timeout": "'50ms'",
        "idle_in_transaction_session_timeout": "'50ms'",
        "transaction_timeout": "'50ms'",
        "bytea_output": "'escape'",
        "client_encoding": "'LATIN1'",
        "default_transaction_isolation": "'serializable'",
    }
    postgresql.execute_as_shop(
        "CREATE TABLE t (id int, d date, z timestamptz, f float8, b bytea, v text)",
        "INSERT INTO t VALUES (1, '2004-02-29', '2004-02-29 21:59:59.5+00', 0.1, '\\x00ff', '🚗')",
        "GRANT SELECT ON t TO reader",
    )
    for name, value in settings_.items():
        postgresql.execute(f"ALTER ROLE reader IN DATABASE scratch SET {name} = {value}")
    with tables.connect(postgresql.uri(database, "reader")) as connection:
        types = tables.column_types(connection, "t")
        list(tables.fetch(connection, "SELECT pg_sleep(0.1)"))
        columns = tables.read(connection, Query("t", tuple(types.items())), True)
    row = [to_array(*each).to_pylist()[0] for each in zip(columns, types.values(), strict=True)]
    assert row == [1, dt.date(2004, 2, 29), INSTANT, 0.1, b"\x00\xff", "🚗"]


def test_a_wrong_password_says_where_it_comes_from(postgresql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", "hunter2")
    with pytest.raises(UnavailableError, match=r"authentication failed.*BEAMREC_SOURCE_PASSWORD") as caught:
        visit(postgresql.uri("postgres"))
    assert "hunter2" not in str(caught.value)
    assert not isinstance(caught.value, ConnectionLostError)


def test_the_password_may_be_a_secret(
    postgresql: Any, three_rows: Access, monkeypatch: pytest.MonkeyPatch, source_password: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(source_password)
    monkeypatch.delenv("BEAMREC_SOURCE_PASSWORD")
    with tables.connect(three_rows.uri, f"file://{tmp_path}/password") as connection:
        assert count(connection) == "3"
        assert source_password not in f"{connection.dsn} {connection!r} {connection.where}"


def test_a_password_that_postgresql_cannot_take_is_a_usage_error(
    postgresql: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = postgresql.uri("postgres")
    (tmp_path / "password").write_bytes(b"a\0b")
    with pytest.raises(UsageError, match="holds a NUL"), tables.connect(uri, f"file://{tmp_path}/password"):
        pass
    monkeypatch.setitem(os.environb, b"BEAMREC_SOURCE_PASSWORD", b"caf\xe9")
    with pytest.raises(UsageError, match="is not UTF-8"):
        visit(uri)


def test_an_unknown_database_user_or_server_says_so(postgresql: Any) -> None:
    with pytest.raises(
        UnavailableError, match='database "nowhere" does not exist; check the database name'
    ) as refused:
        visit(postgresql.uri("nowhere"))
    assert not isinstance(refused.value, ConnectionLostError)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            ConnectionLostError, match=rf"postgresql://127.0.0.1:{port}/db: .*check that the server runs"
        ):
            visit(f"postgresql://shop@127.0.0.1:{port}/db")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://h",
        "postgresql://h/",
        "postgresql://h:x/db",
        "postgresql://u:p@h/db",
        "postgresql://h/db?password=p",
        "postgresql://h/db?schema=",
        "postgresql://h/db?sslmode=maybe",
        "postgresql://h/db?tls=off",
    ],
)
def test_a_malformed_uri_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match="--source"), tables.connect(uri):
        pass


def uses_tls(uri: str) -> bool:
    """Whether libpq speaks TLS on a connection."""
    with tables.connect(uri) as connection:
        return bool(connection.info.ssl_in_use)


def test_a_certificate_is_accepted_only_from_its_authority_and_for_its_host(
    tls_postgresql: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, authority = tls_postgresql
    verified = f"postgresql://shop@localhost:{port}/postgres?sslmode=verify-full"
    assert uses_tls(f"{verified}&sslrootcert={authority}")
    with pytest.raises(
        UnavailableError, match=r"certificate verify failed.*; check the server's certificate"
    ):
        uses_tls(verified)
    with pytest.raises(
        UnavailableError, match=r'certificate.*does not match host name "127\.0\.0\.1"'
    ) as refused:
        uses_tls(f"{verified}&sslrootcert={authority}".replace("localhost", "127.0.0.1"))
    assert not isinstance(refused.value, ConnectionLostError)
    # The authorities that the system trusts are found although libpq itself finds none.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    assert uses_tls(verified)


def test_a_server_without_tls_is_refused_when_tls_is_asked_for(postgresql: Any) -> None:
    with pytest.raises(UnavailableError, match=r"does not support SSL.*enable TLS on the server") as refused:
        uses_tls(f"{postgresql.uri('postgres')}?sslmode=verify-full")
    assert not isinstance(refused.value, ConnectionLostError)
    assert not uses_tls(postgresql.uri("postgres"))


def test_a_dropped_connection_can_be_closed_and_says_that_it_is_lost(
    postgresql: Any, three_rows: Access
) -> None:
    with tables.connect(three_rows.uri) as connection:
        postgresql.terminate(process(connection))
        for _ in range(2):
            with pytest.raises(ConnectionLostError, match=r"postgresql://127\.0\.0\.1:\d+/scratch: "):
                count(connection)
            tables.close(connection)


def test_what_redshift_lacks_is_not_asked_for(
    postgresql: Any, three_rows: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redshift cannot run here: PostgreSQL taken for it shows what it is asked for."""
    monkeypatch.setattr(Connection, "is_redshift", True)
    postgresql.execute_as_shop("ALTER TABLE t ADD v char(4) DEFAULT 'ab', ADD n numeric(5,1) DEFAULT 1")
    with tables.connect(three_rows.uri) as connection, contextlib.ExitStack() as stack:
        snapshot = tables.open_snapshot(stack, three_rows, connection, ["t"])
        assert (snapshot.readers, snapshot.token, snapshot.verify) == ((connection,), None, False)
        types = tables.column_types(connection, "t")
        columns = tables.read(connection, Query("t", tuple(types.items()), '"id" < %s', (3,)), bulk=True)
        assert columns == [("1", "2"), ("ab", "ab"), ("1.0", "1.0")]
        postgresql.execute("DELETE FROM t", database="scratch")
        assert count(connection) == "3"
        assert count(tables.reconnect(stack, three_rows, None)) == "0"
        with pytest.raises(UsageError, match="Redshift shares no snapshot"):
            tables.open_snapshot(stack, dataclasses.replace(three_rows, mode="shared"), connection, ["t"])
    with pytest.raises(UsageError, match="from S3 only"), tables.connect_for_writing(three_rows.uri):
        pass


def test_a_user_who_may_only_read_suffices(postgresql: Any, three_rows: Access) -> None:
    postgresql.execute_as_shop("GRANT SELECT ON t TO reader")
    access = Access(postgresql.uri("scratch", "reader"), mode="shared", readers=3)
    with tables.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        assert tables.column_types(connection, "t") == {"id": pa.int32()}
        snapshot = tables.open_snapshot(stack, access, connection, ["t"])
        query = Query("t", (("id", pa.int32()),))
        for reader in snapshot.readers:
            assert sorted(tables.read(reader, query, True)[0].to_pylist()) == [1, 2, 3]
        with pytest.raises(UnavailableError, match="read-only transaction"):
            list(tables.fetch(connection, "SELECT lo_creat(-1)"))
