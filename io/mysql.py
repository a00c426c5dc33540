"""MySQL and MariaDB behind `mysql://user@host:port/database?tls=verify|off&ssl_ca=PATH`.

Off the loopback, certificate and host name are verified unless `tls=off` says otherwise. The password
comes from the environment, on the worker.
"""

import contextlib
import ipaddress
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pymysql
from pymysql.converters import conversions
from pymysql.cursors import SSCursor

from beamrec.io.arrow_types import arrow_type
from beamrec.io.registry import reject_password
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError

__all__ = [
    "PASSWORD_VARIABLE",
    "PLACEHOLDER",
    "begin_snapshot",
    "column_types",
    "connect",
    "connect_for_writing",
    "fetch",
    "quote",
    "select_expression",
    "table_names",
    "write_table",
]

PASSWORD_VARIABLE = "BEAMREC_SOURCE_PASSWORD"  # noqa: S105
PLACEHOLDER = "%s"

_ROWS_PER_FETCH = 10_000
_ROWS_PER_INSERT = 5_000
_CONNECT_SECONDS = 10
_READ_SECONDS = 600
# Values stay text: Arrow parses a column of it several times faster than PyMySQL a value at a time.
_CONVERSIONS = {key: value for key, value in conversions.items() if not isinstance(key, int)}
_HINTS = {
    1044: "grant the user SELECT on the shop's tables",
    1045: f"check the user and the password in {PASSWORD_VARIABLE}",
    1049: "check the database name",
    1142: "grant the user SELECT on the shop's tables",
    1698: f"check the user and the password in {PASSWORD_VARIABLE}",
    2003: "check host and port, that the server runs, and its certificate",
    2026: "the server offers no TLS; enable it there, or say tls=off in the URI if the network is trusted",
}


@contextlib.contextmanager
def connect(uri: str) -> Iterator[pymysql.connections.Connection]:
    """Opens a connection that reads.

    Raises:
      UsageError: the URI is malformed.
      UnavailableError: the server does not answer, refuses the login, fails TLS or is lost on the way.
    """
    parts = _parse(uri)
    shown = f"mysql://{parts.hostname}:{parts.port or 3306}{parts.path}"
    try:
        connection = _open(parts)
        try:
            yield connection
        finally:
            _drop(connection)
    except (pymysql.err.MySQLError, OSError) as error:
        raise _unavailable(shown, error) from None


@contextlib.contextmanager
def connect_for_writing(uri: str) -> Iterator[pymysql.connections.Connection]:
    """Opens a connection that may create tables; MySQL commits each of them by itself."""
    with connect(uri) as connection:
        yield connection
        connection.commit()


def begin_snapshot(connection: pymysql.connections.Connection) -> str:
    """Starts InnoDB's consistent read; MySQL shares it between connections only under a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
    return "one connection, START TRANSACTION WITH CONSISTENT SNAPSHOT"


def column_types(connection: pymysql.connections.Connection, table: str) -> dict[str, pa.DataType]:
    """Columns of a table or view with their Arrow types."""
    sql = (
        "SELECT column_name, column_type FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position"
    )
    rows = [row for rows in fetch(connection, sql, (table,)) for row in rows]
    if not rows:
        raise UsageError(
            f"expected a table {table} in the database, found none that this user may see; "
            "name the right one in --shop or grant SELECT on it"
        )
    try:
        return {name: arrow_type(declared) for name, declared in rows}
    except ValueError as error:
        raise UsageError(f"table {table}: {error}; give --shop a view without that column") from None


def quote(identifier: str) -> str:
    """Backticks, one inside doubled; percent signs too, as PyMySQL formats every statement with `%`."""
    return "`" + identifier.replace("`", "``").replace("%", "%%") + "`"


def select_expression(column: str, type_: pa.DataType) -> str:
    """A FLOAT as text has six digits only, and BIT comes as raw bytes: both are asked for as numbers."""
    if type_ == pa.float32():
        return f"CAST({quote(column)} AS DOUBLE)"
    return f"{quote(column)} + 0" if type_ == pa.uint64() else quote(column)


def fetch(
    connection: pymysql.connections.Connection, sql: str, parameters: Sequence[Any] = ()
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows in lists of at most 10,000, streamed; values are text, bytes or None."""
    cursor = connection.cursor(SSCursor)
    cursor.execute(sql, tuple(parameters))
    while rows := cursor.fetchmany(_ROWS_PER_FETCH):
        yield list(rows)
    cursor.close()


def table_names(connection: pymysql.connections.Connection) -> set[str]:
    """Names of the tables and views, in lower case."""
    sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
    return {name.lower() for rows in fetch(connection, sql) for (name,) in rows}


def write_table(
    connection: pymysql.connections.Connection,
    table: str,
    columns: Mapping[str, str],
    primary_key: Sequence[str],
    batches: Iterable[pa.RecordBatch],
) -> None:
    """Makes a table and fills it; replaces one of that name."""
    definitions = [f"{quote(name)} {declared}" for name, declared in columns.items()]
    keys = ", ".join(quote(name) for name in primary_key)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {quote(table)}", ())
        cursor.execute(
            f"CREATE TABLE {quote(table)} ({', '.join(definitions)}, PRIMARY KEY ({keys})) "
            "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
            (),
        )
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS_PER_INSERT):
                rows = _literals(connection, batch.slice(start, _ROWS_PER_INSERT))
                cursor.execute(f"INSERT INTO {quote(table)} VALUES {rows}", ())  # noqa: S608
    connection.commit()


def _literals(connection: pymysql.connections.Connection, batch: pa.RecordBatch) -> str:
    """`(1,'a'),(2,NULL)`: one statement for thousands of rows; text is escaped by the driver."""
    columns = [_sql_text(connection, column) for column in batch.columns]
    joined = pc.binary_join_element_wise(*columns, ",")
    return ",".join(f"({row})" for row in joined.to_pylist()).replace("%", "%%")


def _sql_text(connection: pymysql.connections.Connection, column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        escape = connection.escape
        return pa.array(["NULL" if value is None else escape(value) for value in column.to_pylist()])
    return pc.fill_null(pc.cast(column, pa.string()), "NULL")


def _parse(uri: str) -> SplitResult:
    reject_password(uri, "--source", PASSWORD_VARIABLE)
    try:
        parts = urlsplit(uri)
        known = set(dict(parse_qsl(parts.query, keep_blank_values=True))) <= {"tls", "ssl_ca"}
        complete = parts.hostname and len(parts.path) > 1 and (parts.port is None or parts.port > 0)
    except ValueError:
        known = complete = False
    if not (known and complete):
        raise UsageError("--source: expected mysql://user@host:port/database?tls=verify|off&ssl_ca=PATH")
    return parts


def _open(parts: SplitResult) -> pymysql.connections.Connection:
    return pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username) if parts.username else None,
        # As bytes: PyMySQL encodes text as Latin-1, the servers expect UTF-8.
        password=os.environ.get(PASSWORD_VARIABLE, "").encode(),
        database=unquote(parts.path[1:]),
        charset="utf8mb4",
        conv=_CONVERSIONS,
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        **_tls(parts),
    )


def _drop(connection: pymysql.connections.Connection) -> None:
    """Closes at once; `close()`, and a result's destructor, would first read all rows that are left."""
    if connection._result is not None:
        connection._result.unbuffered_active = False
    connection._force_close()


def _tls(parts: SplitResult) -> dict[str, Any]:
    """TLS arguments; given a context of our own, PyMySQL refuses a server without TLS."""
    options = dict(parse_qsl(parts.query))
    mode = options.get("tls", "off" if _is_loopback(parts.hostname or "") else "verify")
    if mode not in ("verify", "off"):
        raise UsageError(f"--source: tls: expected verify or off, got {mode!r}")
    if mode == "off" and "ssl_ca" not in options:
        return {"ssl_disabled": True}
    try:
        return {"ssl": ssl.create_default_context(cafile=options.get("ssl_ca"))}
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--source: ssl_ca: cannot read the certificates: {error}") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unavailable(shown: str, error: Exception) -> BeamrecError:
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    hint = _HINTS.get(code, "check the server's log, then run the command again")
    return UnavailableError(f"{shown}: {error.args[-1] if error.args else error}; {hint}")
