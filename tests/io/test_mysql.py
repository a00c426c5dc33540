"""MySQL's side of the bounded source, against a real MariaDB server."""

import datetime as dt
import decimal
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io import mysql
from beamrec.io.arrow_types import to_array
from beamrec.schemas.errors import UnavailableError, UsageError

pytestmark = pytest.mark.usefixtures("source_password")

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
    ("float", ["16777215", "0.1"], [16777215.0, 0.10000000149011612], pa.float32()),
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


def read(uri: str, table: str, column: str) -> pa.Array:
    """One column as the source reads it."""
    with mysql.connect(uri) as connection:
        type_ = mysql.column_types(connection, table)[column]
        sql = f"SELECT {mysql.select_expression(column, type_)} FROM {mysql.quote(table)} ORDER BY id"  # noqa: S608
        values = [value for rows in mysql.fetch(connection, sql) for (value,) in rows]
    return to_array(values, type_, column)


@pytest.mark.parametrize(("declared", "sql", "expected", "type_"), TYPES, ids=[each[0] for each in TYPES])
def test_every_type_is_read_exactly(
    mariadb: Any, database: str, declared: str, sql: list[str], expected: list[Any], type_: pa.DataType
) -> None:
    rows = ", ".join(f"({number}, {value})" for number, value in enumerate(sql))
    mariadb.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, v {declared})",
        f"INSERT INTO t VALUES {rows}",  # noqa: S608
        database=database,
    )
    array = read(mariadb.uri(database), "t", "v")
    assert array.type == type_
    wanted = [decimal.Decimal(v) if pa.types.is_decimal(type_) and v else v for v in expected]
    assert array.to_pylist() == wanted


def test_hostile_names_are_names(mariadb: Any, database: str) -> None:
    name = "a`b%s;'\"--"
    quoted = "`" + name.replace("`", "``") + "`"
    mariadb.execute(
        f"CREATE TABLE {quoted} (id int PRIMARY KEY, {quoted} int)",
        f"INSERT INTO {quoted} VALUES (1, 7)",  # noqa: S608
        database=database,
    )
    assert read(mariadb.uri(database), name, name).to_pylist() == [7]


def test_a_snapshot_does_not_see_later_changes(mariadb: Any, database: str) -> None:
    mariadb.execute("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)", database=database)
    with mysql.connect(mariadb.uri(database)) as connection:
        assert "CONSISTENT SNAPSHOT" in mysql.begin_snapshot(connection)
        mariadb.execute("DELETE FROM t", database=database)
        assert [row for rows in mysql.fetch(connection, "SELECT COUNT(*) FROM t") for row in rows] == [("2",)]


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


def test_a_wrong_password_says_where_it_comes_from(
    mariadb: Any, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", "hunter2")
    with pytest.raises(UnavailableError, match=r"Access denied.*BEAMREC_SOURCE_PASSWORD") as caught:
        read(mariadb.uri(database), "t", "v")
    assert "hunter2" not in str(caught.value)


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
    arguments = mysql._tls(mysql._parse(f"mysql://u@{shown}/db"))
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
