"""MySQL's side of the bounded source, against a real MariaDB server."""

import contextlib
import dataclasses
import datetime as dt
import decimal
import gc
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beamrec.io import mysql, mysql_connection
from beamrec.io.arrow_types import to_array
from beamrec.io.backend import Access
from beamrec.io.table_reader import TableReader
from beamrec.schemas.errors import ConnectionLostError, UnavailableError, UsageError

pytestmark = pytest.mark.usefixtures("source_password")

PASSWORD = "s€cret pass:word/@%"  # noqa: S105  (that of every user: one variable holds it)
MOMENT = dt.datetime(2004, 2, 29, 23, 59, 59, 999999)  # noqa: DTZ001  (MySQL's DATETIME has no zone)
# Column type, values as SQL, values as Python sees them, Arrow type.
TYPES: list[tuple[str, list[str], list[Any], pa.DataType]] = [
    ("decimal(10,2)", ["21000.00", "-0.01", "NULL"], ["21000.00", "-0.01", None], pa.decimal128(10, 2)),
    (
        "decimal(38,4)",
        ["'9999999999999999999999999999999999.9999'"],
        ["9" * 34 + ".9999"],
        pa.decimal128(38, 4),
    ),
    ("smallint", ["-32768", "32767"], [-32768, 32767], pa.int16()),
    ("smallint unsigned", ["65535"], [65535], pa.uint16()),
    ("int", ["-2147483648", "NULL"], [-(2**31), None], pa.int32()),
    ("int unsigned", ["4294967295"], [2**32 - 1], pa.uint32()),
    ("bigint unsigned", ["18446744073709551615"], [2**64 - 1], pa.uint64()),
    ("bigint", ["-9223372036854775808"], [-(2**63)], pa.int64()),
    ("bit(12)", ["b'101'"], [5], pa.uint64()),
    ("double", ["0.1", "1e300"], [0.1, 1e300], pa.float64()),
    (
        "float",
        ["16777215", "0.1", "3.4028234e38", "1.4e-45", "NULL"],
        [16777215.0, 0.10000000149011612, 3.4028234663852886e38, 1.401298464324817e-45, None],
        pa.float32(),
    ),
    ("enum('Small (S)','L')", ["'Small (S)'", "'L'"], ["Small (S)", "L"], pa.string()),
    ("set('x)','y')", ["'x),y'"], ["x),y"], pa.string()),
    ("date", ["'2004-02-29'", "NULL"], [dt.date(2004, 2, 29), None], pa.date32()),
    (
        "datetime(6)",
        ["'2004-02-29 23:59:59.999999'"],
        [MOMENT],
        pa.timestamp("us"),
    ),
    (
        "varchar(20)",
        ["''", "NULL", "'Norway  '", "'Köln 🚗'"],
        ["", None, "Norway  ", "Köln 🚗"],
        pa.string(),
    ),
    ("varchar(20) character set latin1", ["'Luleå'"], ["Luleå"], pa.string()),
    ("text", ["'a\\\\b''c%s'"], ["a\\b'c%s"], pa.string()),
    ("blob", ["x'00ff'"], [b"\x00\xff"], pa.binary()),
]


@pytest.fixture
def database(mariadb: Any) -> str:
    """An empty database."""
    mariadb.execute("DROP DATABASE IF EXISTS scratch", "CREATE DATABASE scratch CHARACTER SET utf8mb4")
    return "scratch"


def read(uri: str, table: str, column: str, bulk: bool = True) -> pa.Array:
    """One column as the source reads it, in the order of `id`."""
    with mysql.connect(uri) as connection:
        types = mysql.column_types(connection, table)
        query = mysql.Query(table, tuple((name, types[name]) for name in ("id", column)))
        columns = mysql.read(connection, query, bulk)
    ids, values = (to_array(each, types[name]) for each, name in zip(columns, ("id", column), strict=True))
    return values.take(pc.sort_indices(ids))


@pytest.mark.parametrize("bulk", [True, False], ids=["packed", "row by row"])
@pytest.mark.parametrize(("declared", "sql", "expected", "type_"), TYPES, ids=[each[0] for each in TYPES])
def test_every_type_is_read_exactly(
    mariadb: Any,
    database: str,
    declared: str,
    sql: list[str],
    expected: list[Any],
    type_: pa.DataType,
    bulk: bool,
) -> None:
    rows = ", ".join(f"({number}, {value})" for number, value in enumerate(sql))
    mariadb.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, v {declared})",
        f"INSERT INTO t VALUES {rows}",  # noqa: S608
        database=database,
    )
    array = read(mariadb.uri(database), "t", "v", bulk)
    assert array.type == type_
    wanted = [decimal.Decimal(v) if pa.types.is_decimal(type_) and v else v for v in expected]
    assert array.to_pylist() == wanted


@pytest.mark.parametrize("bulk", [True, False], ids=["packed", "row by row"])
def test_a_null_where_none_should_be_is_read(mariadb: Any, database: str, bulk: bool) -> None:
    """A view's outer join gives one in a column that its table declares NOT NULL."""
    mariadb.execute(
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY, v varchar(9) NOT NULL)",
        "INSERT INTO a VALUES (0), (1)",
        "INSERT INTO b VALUES (1, 'x')",
        "CREATE VIEW t AS SELECT a.id, b.v FROM a LEFT JOIN b ON a.id = b.id",
        database=database,
    )
    assert read(mariadb.uri(database), "t", "v", bulk).to_pylist() == [None, "x"]


def test_columns_of_several_character_sets_are_read_together(mariadb: Any, database: str) -> None:
    mariadb.execute(
        "CREATE TABLE t (id int PRIMARY KEY, l varchar(9) CHARACTER SET latin1, "
        "g varchar(9) CHARACTER SET greek, u varchar(9), b varchar(9) COLLATE utf8mb4_bin)",
        "INSERT INTO t VALUES (1, 'Luleå', 'Αθήνα', '🚗', 'Köln'), (2, NULL, '\"', ',', '')",
        database=database,
    )
    for bulk in (True, False):
        with mysql.connect(mariadb.uri(database)) as connection:
            query = mysql.Query("t", tuple((name, pa.string()) for name in "lgub"), "id > %s", (0,))
            columns = [
                to_array(each, pa.string()).to_pylist() for each in mysql.read(connection, query, bulk)
            ]
        assert columns == [["Luleå", None], ["Αθήνα", '"'], ["🚗", ","], ["Köln", ""]]


@pytest.fixture
def american(mariadb: Any) -> Iterator[None]:
    """A server in a zone five hours behind, until and after its summer time of 2004."""
    zone = [
        "INSERT INTO mysql.time_zone (Use_leap_seconds) VALUES ('N')",
        "SET @id = LAST_INSERT_ID()",
        "INSERT INTO mysql.time_zone_name VALUES ('Test/American', @id)",
        "INSERT INTO mysql.time_zone_transition_type VALUES (@id, 0, -18000, 0, 'EST')",
        "INSERT INTO mysql.time_zone_transition_type VALUES (@id, 1, -14400, 1, 'EDT')",
        "INSERT INTO mysql.time_zone_transition VALUES (@id, 1081062000, 1), (@id, 1099202400, 0)",
    ]
    mariadb.execute(*zone, "SET GLOBAL time_zone = 'Test/American'")
    yield
    mariadb.execute("SET GLOBAL time_zone = 'SYSTEM'")
    for table in ("time_zone_name", "time_zone_transition_type", "time_zone_transition", "time_zone"):
        mariadb.execute(f"DELETE FROM mysql.{table}")  # noqa: S608


@pytest.mark.usefixtures("american")
def test_a_timestamp_is_its_moment_whatever_the_servers_zone(mariadb: Any, database: str) -> None:
    moments = ["2004-07-01 00:00:00", "2004-10-31 05:30:00", "2004-10-31 06:30:00", "2004-12-01 00:00:00"]
    rows = ", ".join(f"({number}, '{moment}')" for number, moment in enumerate(moments))
    mariadb.execute(
        "SET time_zone = '+00:00'",
        "CREATE TABLE t (id int PRIMARY KEY, v timestamp NULL)",
        f"INSERT INTO t VALUES {rows}",  # noqa: S608
        database=database,
    )
    shown = [str(v) for (v,) in mariadb.execute("SELECT v FROM t ORDER BY id", database=database)]
    assert shown[1] == shown[2] == "2004-10-31 01:30:00"
    for bulk in (True, False):
        assert list(map(str, read(mariadb.uri(database), "t", "v", bulk).to_pylist())) == moments


def test_hostile_names_are_names(mariadb: Any, database: str) -> None:
    name = "a`b%s;'\"--"
    quoted = "`" + name.replace("`", "``") + "`"
    mariadb.execute(
        f"CREATE TABLE {quoted} (id int PRIMARY KEY, {quoted} int)",
        f"INSERT INTO {quoted} VALUES (1, 7)",  # noqa: S608
        database=database,
    )
    for bulk in (True, False):
        assert read(mariadb.uri(database), name, name, bulk).to_pylist() == [7]


@pytest.mark.parametrize(("mode", "readers"), [("auto", 3), ("shared", 2), ("connection", 3), ("auto", 1)])
def test_a_snapshot_does_not_see_later_changes(mariadb: Any, database: str, mode: Any, readers: int) -> None:
    mariadb.execute("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)", database=database)
    access = Access(mariadb.uri(database), readers=readers, mode=mode)
    with mysql.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        snapshot = mysql.open_snapshot(stack, access, connection, ["t"])
        assert "CONSISTENT SNAPSHOT" in snapshot.method
        assert len(snapshot.readers) == (1 if mode == "connection" else readers)
        mariadb.execute("DELETE FROM t", database=database)  # nothing is locked any more
        for reader in snapshot.readers:
            assert next(mysql.fetch(reader, "SELECT COUNT(*) FROM t")) == [("2",)]
        again = mysql.reconnect(stack, access, snapshot.token)
        assert next(mysql.fetch(again, "SELECT COUNT(*) FROM t")) == [("0",)]


def test_a_user_who_may_not_lock_reads_with_one_connection(mariadb: Any, database: str) -> None:
    mariadb.execute(
        "CREATE TABLE t (id int PRIMARY KEY)",
        f"CREATE OR REPLACE USER reader@'%' IDENTIFIED BY '{PASSWORD}'",
        "GRANT SELECT ON scratch.* TO reader@'%'",
        database=database,
    )
    access = Access(mariadb.uri(database, "reader"))
    with mysql.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        snapshot = mysql.open_snapshot(stack, access, connection, ["t"])
        assert (len(snapshot.readers), snapshot.verify) == (1, False)
        # One more than read: none of the others is left idle.
        assert _connections(mariadb, "reader") == 1
        with pytest.raises(UnavailableError, match="grant LOCK TABLES"):
            mysql.open_snapshot(stack, dataclasses.replace(access, mode="shared"), connection, ["t"])


def _connections(mariadb: Any, user: str) -> int:
    """Connections of a user once the server has noticed those that are closed."""
    sql = f"SELECT COUNT(*) FROM information_schema.processlist WHERE user = '{user}'"  # noqa: S608
    counts: list[int] = []
    while len(counts) < 3 or len(set(counts[-3:])) > 1:
        counts.append(mariadb.execute("DO SLEEP(0.1)", sql)[0][0])
    return counts[-1]


def test_tables_without_transactions_have_no_snapshot(mariadb: Any, database: str) -> None:
    mariadb.execute("CREATE TABLE t (id int PRIMARY KEY) ENGINE=MyISAM", database=database)
    access = Access(mariadb.uri(database))
    with mysql.connect(access.uri) as connection, contextlib.ExitStack() as stack:
        snapshot = mysql.open_snapshot(stack, access, connection, ["T"])
        assert snapshot.verify
        assert "checksums" in snapshot.method


def test_a_view_is_no_better_than_the_tables_that_it_may_be_over(mariadb: Any, database: str) -> None:
    mariadb.execute(
        "CREATE TABLE t (id int PRIMARY KEY)", "CREATE VIEW v AS SELECT * FROM t", database=database
    )
    access = Access(mariadb.uri(database))
    for engine, verify in (("InnoDB", False), ("MyISAM", True)):
        mariadb.execute(f"CREATE OR REPLACE TABLE my (id int) ENGINE={engine}", database=database)
        with mysql.connect(access.uri) as connection, contextlib.ExitStack() as stack:
            assert mysql.open_snapshot(stack, access, connection, ["v"]).verify is verify
            assert mysql.open_snapshot(stack, access, connection, ["t"]).verify is False


@given(
    st.lists(
        st.tuples(
            st.none()
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9),
            st.none() | st.integers(-(2**31), 2**31 - 1),
        ),
        max_size=30,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_rows_are_the_rows(mariadb: Any, rows: list[tuple[str | None, int | None]]) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "id": pa.array(range(len(rows)), pa.int32()),
            "v": pa.array([text for text, _ in rows], pa.string()),
            "n": pa.array([number for _, number in rows], pa.int32()),
        }
    )
    mariadb.execute("CREATE DATABASE IF NOT EXISTS packed CHARACTER SET utf8mb4")
    uri = mariadb.uri("packed")
    with mysql.connect_for_writing(uri) as connection:
        columns = {"id": "int", "v": "varchar(20)", "n": "int"}
        mysql.write_table(connection, "t", columns, ["id"], [batch] if rows else [])
    for column in ("v", "n"):
        assert read(uri, "t", column).to_pylist() == batch.column(column).to_pylist()


def test_a_text_that_the_server_cuts_is_read_row_by_row(mariadb: Any, database: str) -> None:
    mariadb.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v mediumtext)",
        "INSERT INTO t SELECT seq, REPEAT(seq, 1000000) FROM seq_1_to_40",
        database=database,
    )  # 71 MB in one text, where max_allowed_packet is 16 MB
    values = read(mariadb.uri(database), "t", "v").to_pylist()
    assert values == [str(number) * 1_000_000 for number in range(1, 41)]


def test_what_is_written_is_read_back(mariadb: Any, database: str) -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "id": pa.array([1, 2], pa.int32()),
            "v": pa.array(["a'b\\c%s%%🚗", None]),
            "d": pa.array([decimal.Decimal("1.10"), None], pa.decimal128(10, 2)),
        }
    )
    columns = {"id": "int", "v": "varchar(20)", "d": "decimal(10,2)"}
    for _ in range(2):  # the second replaces the first
        with mysql.connect_for_writing(mariadb.uri(database)) as connection:
            mysql.write_table(connection, "t%", columns, ["id"], [batch])
    assert read(mariadb.uri(database), "t%", "v").to_pylist() == ["a'b\\c%s%%🚗", None]
    assert read(mariadb.uri(database), "t%", "d").to_pylist() == [decimal.Decimal("1.10"), None]
    with mysql.connect(mariadb.uri(database)) as connection:
        assert mysql.table_names(connection) == {"t%"}


def test_tables_are_named_as_the_server_spells_them(mariadb: Any, database: str) -> None:
    mariadb.execute("CREATE TABLE Orders (Id int)", "CREATE VIEW Recent AS SELECT 1 AS x", database=database)
    with mysql.connect(mariadb.uri(database)) as connection:
        names = mysql.table_names(connection)
        assert names == {"Orders", "Recent"}
        assert [list(mysql.column_types(connection, name)) for name in sorted(names)] == [["Id"], ["x"]]


def test_a_column_of_an_unknown_type_harms_none_but_its_readers(mariadb: Any, database: str) -> None:
    mariadb.execute(
        "CREATE TABLE t (id int PRIMARY KEY, place geometry, v int)",
        "INSERT INTO t VALUES (1, NULL, 7)",
        database=database,
    )
    with mysql.connect(mariadb.uri(database)) as connection:
        reader = TableReader.open(mysql, connection, "t", ["id", "v"], bulk=True)
        assert reader.read(connection)[0].to_pylist() == [{"id": 1, "v": 7}]
        with pytest.raises(UsageError, match="column place: unknown column type 'geometry'"):
            TableReader.open(mysql, connection, "t", ["id", "place"], bulk=True)


@pytest.mark.filterwarnings("error")
def test_rows_that_nobody_asked_for_do_not_disturb_the_next_query(mariadb: Any, database: str) -> None:
    with mysql.connect(mariadb.uri(database)) as connection:
        rows = mysql.fetch(connection, "SELECT seq FROM seq_1_to_30000")
        assert len(next(rows)) == 10_000
        rows.close()
        assert next(mysql.fetch(connection, "SELECT 7")) == [("7",)]


@pytest.mark.filterwarnings("error")
def test_rows_that_nobody_asked_for_may_be_lost(mariadb: Any, database: str) -> None:
    with mysql.connect(mariadb.uri(database)) as connection:
        rows = mysql.fetch(connection, "SELECT REPEAT('x', 1000) FROM seq_1_to_60000")
        next(rows)
        mariadb.execute(f"KILL {connection.thread_id()}")
        rows.close()
        del rows
        gc.collect()
        again = mysql.fetch(connection, "SELECT 7")
        with pytest.raises(ConnectionLostError):
            next(again)


def test_only_a_lost_connection_is_tried_again(mariadb: Any, database: str) -> None:
    with pytest.raises(ConnectionLostError):
        _use_closed_connection(mariadb.uri(database))
    with pytest.raises(UnavailableError, match="Cursor closed") as caught:
        _use_closed_cursor(mariadb.uri(database))
    assert not isinstance(caught.value, ConnectionLostError)


def _use_closed_connection(uri: str) -> None:
    with mysql.connect(uri) as connection:
        mysql.close(connection)
        next(mysql.fetch(connection, "SELECT 1"))


def _use_closed_cursor(uri: str) -> None:
    with mysql.connect(uri) as connection:
        cursor = connection.cursor()
        cursor.close()
        cursor.execute("SELECT 1")


def test_a_wrong_password_says_where_it_comes_from(
    mariadb: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", "hunter2")
    with pytest.raises(UnavailableError, match=r"Access denied.*BEAMREC_SOURCE_PASSWORD") as caught:
        read(mariadb.uri(database), "t", "v")
    assert "hunter2" not in str(caught.value)


def test_a_password_that_is_not_utf_8_is_sent_as_it_is(
    mariadb: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = b"K\xf6ln"
    stored = hashlib.sha1(hashlib.sha1(password).digest()).hexdigest()  # noqa: S324  (MySQL's native way)
    mariadb.execute(
        f"CREATE OR REPLACE USER latin@'%' IDENTIFIED BY PASSWORD '*{stored}'",
        "GRANT ALL ON scratch.* TO latin@'%'",
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        database=database,
    )
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", os.fsdecode(password))
    assert len(read(mariadb.uri(database, "latin"), "t", "v")) == 0


def test_an_unknown_database_and_a_missing_server_say_so(mariadb: Any) -> None:
    with pytest.raises(UnavailableError, match="check the database name"):
        read(mariadb.uri("nowhere"), "t", "v")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(UnavailableError, match="check host and port"):
            read(f"mysql://shop@127.0.0.1:{port}/db", "t", "v")


def test_a_missing_table_says_how_to_mend_it(mariadb: Any, database: str) -> None:
    with pytest.raises(UsageError, match=r"expected a table t in the database.*--shop or grant SELECT"):
        read(mariadb.uri(database), "t", "v")


@pytest.mark.parametrize(
    "uri",
    ["mysql://h", "mysql:///db", "mysql://h:x/db", "mysql://h/db?tls=maybe", "mysql://h/db?sslmode=off"],
)
def test_a_malformed_uri_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match="--source"), mysql.connect(uri):
        pass


def test_a_server_without_tls_is_refused_when_tls_is_asked_for(mariadb: Any, database: str) -> None:
    with pytest.raises(UnavailableError, match=r"(?i)ssl|tls"):
        read(mariadb.uri(database) + "?tls=verify", "t", "v")


def _tls_version(uri: str) -> str:
    with mysql.connect(uri) as connection:
        ((_, version),) = next(mysql.fetch(connection, "SHOW SESSION STATUS LIKE 'Ssl_version'"))
        return str(version)


def test_a_certificate_is_accepted_only_from_its_authority_and_for_its_host(
    tls_mariadb: tuple[Any, Path],
) -> None:
    server, authority = tls_mariadb
    by_name = f"mysql://shop@localhost:{server.port}/mysql"
    assert _tls_version(f"{by_name}?tls=verify&ssl_ca={authority}").startswith("TLS")
    with pytest.raises(UnavailableError, match="certificate verify failed"):
        _tls_version(f"{by_name}?tls=verify")
    with pytest.raises(UnavailableError, match=r"(?i)certificate.*127\.0\.0\.1"):
        _tls_version(f"{server.uri('mysql')}?tls=verify&ssl_ca={authority}")


def test_missing_certificates_are_a_usage_error(mariadb: Any, database: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ssl_ca: cannot read"):
        read(f"{mariadb.uri(database)}?ssl_ca={tmp_path}/none.pem", "t", "v")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.53", True), ("::1", True), ("10.0.0.1", False), ("db.example", False)],
)
def test_only_the_loopback_may_be_plain_by_default(host: str, loopback: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    arguments = mysql_connection._tls(mysql_connection._parse(f"mysql://u@{shown}/db"))
    assert ("ssl_disabled" in arguments) is loopback
    if not loopback:
        assert arguments["ssl"].check_hostname


def test_a_server_that_goes_away_mid_read_is_unavailable(mariadb: Any, database: str) -> None:
    mariadb.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT seq, REPEAT('x', 1000) FROM seq_1_to_60000",
        database=database,
    )
    with pytest.raises(UnavailableError, match=r"mysql://127\.0\.0\.1:\d+/scratch: .*; "):
        _read_killed(mariadb, database)


def _read_killed(mariadb: Any, database: str) -> None:
    with mysql.connect(mariadb.uri(database)) as connection:
        rows = mysql.fetch(connection, "SELECT id, v FROM t")
        next(rows)
        mariadb.execute(f"KILL {connection.thread_id()}")
        list(rows)
