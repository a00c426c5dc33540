"""PostgreSQL and Amazon Redshift behind `postgresql://user@host:port/database?schema=&sslmode=&sslrootcert=`.

Off the loopback, certificate and host name are verified unless `sslmode=` says otherwise. The password
comes from the environment or a secret manager, on the worker. Tables are looked up in `schema` and then in
`public`; without it, by the role's own search path. A user with SELECT on the tables suffices.

Redshift is read row by row through one connection, in the one moment that its transactions see. Its
external tables and late-binding views are not found, and nothing can be written to it this way.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg2
import pyarrow as pa
from pyarrow import csv

from beamrec.io.backend import Access, Query, Snapshot
from beamrec.io.csv_rows import parse_rows
from beamrec.io.postgres_connection import (
    PASSWORD_VARIABLE,
    Connection,
    begin,
    close,
    open_connection,
    translated,
)
from beamrec.schemas.errors import ConnectionLostError, UnavailableError, UsageError

__all__ = [
    "PASSWORD_VARIABLE",
    "PLACEHOLDER",
    "close",
    "collation",
    "column_types",
    "connect",
    "connect_for_writing",
    "fetch",
    "open_snapshot",
    "quote",
    "read",
    "reconnect",
    "table_names",
    "write_table",
]

PLACEHOLDER = "%s"

_ROWS_PER_FETCH = 10_000
_ONE = "one connection, REPEATABLE READ"
_SHARED = "{} connections in one snapshot (pg_export_snapshot)"
_INDEPENDENT = "{} connections, checksums of every range read again at the end"
_TYPES = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.int8(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
    # NUMERIC without a precision holds whatever it is given. A third has 20 digits after the point there;
    # a value that needs more room than this does not fit and is sorted out, never rounded.
    "numeric": pa.decimal128(38, 20),
}
_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")
_MAX_DIGITS = 76
_DISPLAY_WIDTH = re.compile(r"\b((?:small|big)?int)\(\d+\)", re.IGNORECASE)
_COLUMNS = """
SELECT a.attname, CASE t.typtype
  WHEN 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod)
  ELSE pg_catalog.format_type(a.atttypid, a.atttypmod) END
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE c.relname = %s AND c.relkind IN ('r', 'v', 'm', 'f', 'p') AND pg_catalog.pg_table_is_visible(c.oid)
  AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""
_TABLES = """
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p') AND pg_catalog.pg_table_is_visible(c.oid)
  AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""
_cursor_numbers = itertools.count()


@contextlib.contextmanager
def connect(uri: str, secret: str | None = None) -> Iterator[Connection]:
    """Opens a connection that reads, in one moment.

    Raises:
      UsageError: the URI is malformed.
      ConnectionLostError: the server does not answer or is lost on the way.
      UnavailableError: it refuses the login or fails TLS.
    """
    connection = open_connection(uri, secret)
    try:
        begin(connection)
        with translated(connection.where):
            yield connection
    finally:
        close(connection)


@contextlib.contextmanager
def connect_for_writing(uri: str) -> Iterator[Connection]:
    """Opens a connection that may create tables; all of it is committed at the end, or nothing."""
    connection = open_connection(uri)
    try:
        if connection.is_redshift:
            raise UsageError(f"{connection.where}: Amazon Redshift loads tables from S3 only")
        begin(connection, readonly=False)
        with translated(connection.where):
            yield connection
            connection.commit()
    finally:
        close(connection)


def open_snapshot(
    stack: contextlib.ExitStack, access: Access, connection: Connection, tables: Sequence[str]
) -> Snapshot:
    """A snapshot that a connection of its own exports, and that every reader joins.

    That connection only waits, so that a reader that is lost can be replaced in the same snapshot. Fewer
    readers than asked for come if the server has no room for more. Where no snapshot can be exported
    (Redshift, a pooler, no connection to spare), one connection reads everything.
    """
    if access.mode == "checksums":
        return _independent(stack, access, connection)
    if access.mode == "shared" and connection.is_redshift:
        raise UsageError(
            "--snapshot shared: Amazon Redshift shares no snapshot between connections; use auto"
        )
    if access.mode != "connection" and not connection.is_redshift:
        try:
            return _shared(stack, access, connection)
        except UnavailableError:
            if access.mode == "shared":
                raise
    begin(connection)
    next(fetch(connection, "SELECT 1"))  # the first query takes the snapshot, BEGIN does not
    return Snapshot(_ONE, (connection,))


def reconnect(stack: contextlib.ExitStack, access: Access, token: str | None) -> Connection:
    """A new connection: in the snapshot of the token, else in one of its own.

    Raises:
      ConnectionLostError: the server does not answer.
      UnavailableError: the connection that exported the snapshot is gone, and the snapshot with it.
    """
    connection = _open(stack, access)
    begin(connection, token, _isolation(access))
    return connection


def _shared(stack: contextlib.ExitStack, access: Access, connection: Connection) -> Snapshot:
    keeper = _open(stack, access)
    begin(keeper)
    ((token,),) = next(fetch(keeper, "SELECT pg_catalog.pg_export_snapshot()"))
    begin(connection, token)
    readers = [connection]
    # A server may have room for some connections and not for all.
    with contextlib.suppress(ConnectionLostError):
        while len(readers) < access.readers:
            readers.append(reconnect(stack, access, token))
    return Snapshot(_SHARED.format(len(readers)), tuple(readers), token)


def _independent(stack: contextlib.ExitStack, access: Access, connection: Connection) -> Snapshot:
    readers = [connection, *(_open(stack, access) for _ in range(access.readers - 1))]
    for reader in readers:
        begin(reader, isolation=_isolation(access))
    return Snapshot(_INDEPENDENT.format(len(readers)), tuple(readers), verify=True)


def _isolation(access: Access) -> str:
    """A range that is read again on the same connection must be seen as it is then."""
    return "READ COMMITTED" if access.mode == "checksums" else "REPEATABLE READ"


def _open(stack: contextlib.ExitStack, access: Access) -> Connection:
    connection = open_connection(access.uri, access.secret)
    stack.callback(close, connection)
    return connection


def column_types(connection: Connection, table: str) -> dict[str, pa.DataType]:
    """Columns of a table, view or foreign table with their Arrow types.

    A type that Arrow has no equal for is text: times, intervals, arrays, JSON, UUIDs, enumerations.
    """
    rows = [row for rows in fetch(connection, _COLUMNS, (table,)) for row in rows]
    if not rows:
        ((path,),) = next(fetch(connection, "SELECT pg_catalog.current_setting('search_path')"))
        raise UsageError(
            f"{connection.where}: expected a table {table}, found none that this user may see in the schemas "
            f"{path}; name the right one in --shop, its schema by ?schema= in the URI, or grant the user "
            "USAGE on the schema and SELECT on the table"
        )
    return {name: _arrow_type(declared) for name, declared in rows}


def collation(connection: Connection, table: str, column: str) -> str:
    """A column's collation and, for types that bring a comparison of their own (citext), the type."""
    sql = (
        "SELECT a.attcollation, pg_catalog.format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute a "
        "JOIN pg_catalog.pg_class c ON c.oid = a.attrelid WHERE c.relname = %s AND a.attname = %s "
        "AND pg_catalog.pg_table_is_visible(c.oid)"
    )
    rows = [row for rows in fetch(connection, sql, (table, column)) for row in rows]
    return str([(name, "citext" if type_ == "citext" else "text") for name, type_ in rows])


def _arrow_type(declared: str) -> pa.DataType:
    numeric = _NUMERIC.fullmatch(declared)
    if numeric:
        return _decimal(int(numeric.group(1)), int(numeric.group(2)))
    return _TYPES.get(re.sub(r"\(\d+\)", "", declared), pa.string())


def _decimal(precision: int, scale: int) -> pa.DataType:
    # 0.00015 is a numeric(2,5), 12300 a numeric(3,-2); Arrow, and Parquet, want digits around the point.
    digits = max(precision - min(scale, 0), scale)
    if digits > _MAX_DIGITS:
        return pa.string()
    return (pa.decimal128 if digits <= 38 else pa.decimal256)(digits, max(scale, 0))


def quote(identifier: str) -> str:
    """Double quotes, one inside doubled; percent signs too, as psycopg2 formats every statement with `%`."""
    return '"' + identifier.replace('"', '""').replace("%", "%%") + '"'


def fetch(
    connection: Connection, sql: str, parameters: Sequence[Any] = ()
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows in lists of at most 10,000, streamed (from Redshift not); values are text, bytes or None."""
    name = None if connection.is_redshift else f"beamrec_{next(_cursor_numbers)}"
    with translated(connection.where):
        cursor = connection.cursor(name)
        try:
            cursor.execute(sql, tuple(parameters))
            while rows := cursor.fetchmany(_ROWS_PER_FETCH):
                yield rows
        finally:
            with contextlib.suppress(psycopg2.Error):
                cursor.close()


def read(connection: Connection, query: Query, bulk: bool) -> list[Sequence[Any] | pa.Array]:
    """Columns of a query: copied out as one text that Arrow parses, else row by row."""
    codecs = [_codec(connection, type_) for _, type_ in query.columns]
    columns = ", ".join(
        expression.format(quote(name))
        for (name, _), (expression, *_) in zip(query.columns, codecs, strict=True)
    )
    where = f" WHERE {query.condition}" if query.condition else ""
    sql = f"SELECT {columns} FROM {quote(query.table)}{where}"  # noqa: S608
    if bulk and not connection.is_redshift:
        found = _copy(connection, sql, query.parameters, [type_ for _, type_, _ in codecs])
    else:
        rows = [row for rows in fetch(connection, sql, query.parameters) for row in rows]
        found = list(zip(*rows, strict=True)) if rows else [() for _ in query.columns]
    return [decode(values) if decode else values for values, (*_, decode) in zip(found, codecs, strict=True)]


_Decode = Callable[[Sequence[Any] | pa.Array], list[Any]]


def _codec(connection: Connection, type_: pa.DataType) -> tuple[str, pa.DataType, _Decode | None]:
    """How a column comes: SQL around its name, the Arrow type of that as CSV, and what to do with it then."""
    if pa.types.is_binary(type_):
        return "encode({}, 'hex')", pa.string(), _from_hex
    if pa.types.is_string(type_):
        if connection.holds_any_bytes:
            return "encode(convert_to(CAST({} AS text), 'SQL_ASCII'), 'hex')", pa.string(), _text_from_hex
        # Text of anything, and CHAR(n) without the blanks it is filled up with. TEXT of Redshift is short.
        return f"CAST({{}} AS {'varchar(65535)' if connection.is_redshift else 'text'})", type_, None
    if type_ == pa.float32():
        return "CAST({} AS double precision)", type_, None
    if type_ == pa.int8():
        return "CAST({} AS integer)", type_, None
    # Arrow parses no decimal256 from CSV, and a decimal128 modulo 2**128: harmless where the server keeps
    # to the precision, but it does not know of ours for plain NUMERIC. As text it is cast with care.
    as_text = pa.types.is_decimal256(type_) or type_ == _TYPES["numeric"]
    return "{}", pa.string() if as_text else type_, None


def _copy(connection: Connection, sql: str, parameters: Sequence[Any], types: list[pa.DataType]) -> list[Any]:
    data = io.BytesIO()
    with translated(connection.where), connection.cursor() as cursor:
        query = cursor.mogrify(sql, tuple(parameters)).decode()
        cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)", data)
    return list(parse_rows(data.getvalue(), types))


def _from_hex(values: Sequence[Any] | pa.Array) -> list[bytes | None]:
    texts = values.to_pylist() if isinstance(values, pa.Array) else values
    return [None if text is None else bytes.fromhex(text) for text in texts]


def _text_from_hex(values: Sequence[Any] | pa.Array) -> list[str | bytes | None]:
    """Text; bytes where it is not UTF-8."""
    return [None if data is None else _text(data) for data in _from_hex(values)]


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def table_names(connection: Connection) -> set[str]:
    """Names of the tables and views as the server spells them: two may differ in case only."""
    return {name for rows in fetch(connection, _TABLES) for (name,) in rows}


def write_table(
    connection: Connection,
    table: str,
    columns: Mapping[str, str],
    primary_key: Sequence[str],
    batches: Iterable[pa.RecordBatch],
) -> None:
    """Makes a table and fills it; replaces one of that name."""
    # MySQL's display width: int(11) is a plain integer.
    declared = {name: _DISPLAY_WIDTH.sub(r"\1", type_) for name, type_ in columns.items()}
    definitions = [f"{quote(name)} {type_}" for name, type_ in declared.items()]
    keys = ", ".join(quote(name) for name in primary_key)
    with translated(connection.where), connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {quote(table)}", ())
        cursor.execute(f"CREATE TABLE {quote(table)} ({', '.join(definitions)}, PRIMARY KEY ({keys}))", ())
        into = quote(table).replace("%%", "%")
        for batch in batches:
            data = io.BytesIO()
            csv.write_csv(batch, data, csv.WriteOptions(include_header=False))
            data.seek(0)
            cursor.copy_expert(f"COPY {into} FROM STDIN (FORMAT csv)", data)
        cursor.execute(f"ANALYZE {quote(table)}", ())
