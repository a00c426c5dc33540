"""MySQL and MariaDB behind `mysql://user@host:port/database?tls=verify|off&ssl_ca=PATH`.

Off the loopback, certificate and host name are verified unless `tls=off` says otherwise. The password
comes from the environment or a secret manager, on the worker.
"""

import contextlib
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pymysql
from pymysql.connections import Connection
from pymysql.cursors import SSCursor

from beamrec.io.arrow_types import arrow_type
from beamrec.io.backend import Access, Query, Snapshot
from beamrec.io.csv_rows import can_pack, parse_rows
from beamrec.io.mysql_connection import PASSWORD_VARIABLE, close, open_connection, shown, translated
from beamrec.schemas.errors import UnavailableError, UsageError

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
_ROWS_PER_INSERT = 5_000
_LOCK_SECONDS = 5
_PACKED_BYTES = 1 << 30
# Connection → table → its columns that hold no NULL.
_NOT_NULL: weakref.WeakKeyDictionary[Connection, dict[str, frozenset[str]]] = weakref.WeakKeyDictionary()
_SHARED = "{} connections, START TRANSACTION WITH CONSISTENT SNAPSHOT under one LOCK TABLES"


@contextlib.contextmanager
def connect(uri: str, secret: str | None = None) -> Iterator[Connection]:
    """Opens a connection that reads.

    Raises:
      UsageError: the URI is malformed.
      ConnectionLostError: the server does not answer or is lost on the way.
      UnavailableError: it refuses the login or fails TLS.
    """
    connection = open_connection(uri, secret)
    try:
        with translated(shown(uri)):
            yield connection
    finally:
        close(connection)


@contextlib.contextmanager
def connect_for_writing(uri: str) -> Iterator[Connection]:
    """Opens a connection that may create tables; MySQL commits each of them by itself."""
    with connect(uri) as connection:
        yield connection
        connection.commit()


def open_snapshot(
    stack: contextlib.ExitStack,
    access: Access,
    connection: Connection,
    tables: Sequence[str],
) -> Snapshot:
    """InnoDB's consistent read; several connections share it if all begin it under one brief lock.

    Tables of an engine without transactions have no snapshot: what is read is read again at the end.
    """
    if access.mode == "checksums" or not _are_transactional(connection, tables):
        return _independent(stack, access, connection)
    others = _more(stack, access, access.readers - 1) if access.mode in ("auto", "shared") else []
    if others or access.mode == "shared":
        refused = _begin_together(access, [connection, *others], tables)
        if refused is None:
            return Snapshot(_SHARED.format(len(others) + 1), (connection, *others))
        for other in others:
            close(other)
        if access.mode == "shared":
            raise UnavailableError(
                f"{shown(access.uri)}: no snapshot for several connections: {refused}; "
                "grant LOCK TABLES on the database, or leave --snapshot at auto"
            )
    _begin(connection)
    return Snapshot("one connection, START TRANSACTION WITH CONSISTENT SNAPSHOT", (connection,))


def reconnect(stack: contextlib.ExitStack, access: Access, token: str | None) -> Connection:
    """A new connection in a snapshot of its own: MySQL has no way to join an older one."""
    (connection,) = _more(stack, access, 1)
    with translated(shown(access.uri)):
        _begin(connection)
    return connection


def _more(stack: contextlib.ExitStack, access: Access, count: int) -> list[Connection]:
    found = []
    for _ in range(count):
        found.append(open_connection(access.uri, access.secret))
        stack.callback(close, found[-1])
    return found


def _begin(connection: Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")


def _begin_together(access: Access, connections: Sequence[Connection], tables: Sequence[str]) -> str | None:
    """Begins a snapshot on every connection while a lock keeps writers out; returns why it could not."""
    locks = ", ".join(f"{quote(table)} READ" for table in tables)
    locker = open_connection(access.uri, access.secret)
    try:
        with locker.cursor() as cursor:
            # A writer that waits behind this lock must not wait long.
            cursor.execute(f"SET SESSION lock_wait_timeout = {_LOCK_SECONDS}")
            cursor.execute(f"LOCK TABLES {locks}", ())
            for connection in connections:
                _begin(connection)
        return None
    except pymysql.err.MySQLError as error:
        return str(error.args[-1]) if error.args else type(error).__name__
    finally:
        close(locker)  # and so unlocks


def _independent(stack: contextlib.ExitStack, access: Access, connection: Connection) -> Snapshot:
    others = _more(stack, access, access.readers - 1)
    method = f"{len(others) + 1} connections, checksums of every range read again at the end"
    return Snapshot(method, (connection, *others), verify=True)


def _are_transactional(connection: Connection, tables: Sequence[str]) -> bool:
    """Whether every table has a transactional engine; a view might be over any table of the database."""
    marks = ", ".join(["LOWER(%s)"] * len(tables))
    named = f"LOWER(t.table_name) IN ({marks})"
    sql = (
        f"SELECT SUM(t.table_type = 'VIEW' AND {named}), SUM(e.transactions <> 'YES' AND {named}), "  # noqa: S608
        "SUM(e.transactions <> 'YES') FROM information_schema.tables t "
        "LEFT JOIN information_schema.engines e ON e.engine = t.engine WHERE t.table_schema = DATABASE()"
    )
    ((views, others, of_database),) = next(fetch(connection, sql, (*tables, *tables)))
    return not int(others or 0) and not (int(views or 0) and int(of_database or 0))


def column_types(connection: Connection, table: str) -> dict[str, pa.DataType]:
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
    return {name: arrow_type(declared) for name, declared in rows}


def collation(connection: Connection, table: str, column: str) -> str:
    """The name of a column's collation without its character set: utf8mb3 and utf8mb4 have the same rules."""
    sql = (
        "SELECT collation_name FROM information_schema.columns WHERE table_schema = DATABASE() "
        "AND table_name = %s AND column_name = %s"
    )
    names = [name for rows in fetch(connection, sql, (table, column)) for (name,) in rows]
    return ", ".join(re.sub(r"^utf8(mb3|mb4)?_", "", name or "") for name in names)


def quote(identifier: str) -> str:
    """Backticks, one inside doubled; percent signs too, as PyMySQL formats every statement with `%`."""
    return "`" + identifier.replace("`", "``").replace("%", "%%") + "`"


def fetch(
    connection: Connection, sql: str, parameters: Sequence[Any] = ()
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows in lists of at most 10,000, streamed; values are text, bytes or None."""
    with translated(_place(connection)):
        cursor = connection.cursor(SSCursor)
        try:
            cursor.execute(sql, tuple(parameters))
            while rows := cursor.fetchmany(_ROWS_PER_FETCH):
                yield list(rows)
        finally:
            _finish(connection, cursor)


def _finish(connection: Connection, cursor: SSCursor) -> None:
    """Reads the rows that nobody asked for, or the next query would; closes a lost connection."""
    with contextlib.suppress(pymysql.err.MySQLError, OSError):
        if connection.open:
            cursor.close()
            return
    close(connection)  # or the cursor's destructor would wait for rows


def read(connection: Connection, query: Query, bulk: bool) -> list[Sequence[Any] | pa.Array]:
    """Columns of a query: packed by the server into one text that Arrow parses, else row by row.

    One row costs PyMySQL 5 µs, whatever is in it. The server packs 200,000 into one in 60 ms, on the same
    connection and so in the same snapshot; a text that it had to cut short is read row by row.
    """
    if bulk and all(can_pack(type_) for _, type_ in query.columns):
        packed = _read_packed(connection, query)
        if packed is not None:
            return packed
    columns = ", ".join(_expression(name, type_) for name, type_ in query.columns)
    sql, parameters = _select(columns, query)
    rows = [row for rows in fetch(connection, sql, parameters) for row in rows]
    return list(zip(*rows, strict=True)) if rows else [() for _ in query.columns]


def _read_packed(connection: Connection, query: Query) -> list[Sequence[Any] | pa.Array] | None:
    """The columns, or None if the server's limits on a text cut it."""
    filled = _not_null(connection, query.table)
    fields = ", ',', ".join(_csv_field(name, type_, name in filled) for name, type_ in query.columns)
    # A line end within the text, and none after it: the last sign tells whether the text is whole.
    text = f"GROUP_CONCAT({fields}, '\\n' SEPARATOR '')"
    # As bytes, since PyMySQL would make a Python text of it that Arrow cannot read.
    columns = f"COUNT(*), CAST({text} AS BINARY)"
    sql, parameters = _select(columns, query)
    with translated(_place(connection)), connection.cursor() as cursor:
        cursor.execute(f"SET SESSION group_concat_max_len = {_PACKED_BYTES}")
        cursor.execute(sql, parameters)
        ((count, data),) = cursor.fetchall()
    if not (data or b"").endswith(b"\n") and int(count):
        return None
    arrays: list[Sequence[Any] | pa.Array] = list(parse_rows(data or b"", [t for _, t in query.columns]))
    return arrays if len(arrays[0]) == int(count) else None


def _select(columns: str, query: Query) -> tuple[str, tuple[Any, ...]]:
    where = f" WHERE {query.condition}" if query.condition else ""
    return f"SELECT {columns} FROM {quote(query.table)}{where}", query.parameters  # noqa: S608


def _expression(column: str, type_: pa.DataType) -> str:
    """A FLOAT as text has six digits only, and BIT comes as raw bytes: both are asked for as numbers."""
    if type_ == pa.float32():
        return f"{quote(column)} * 1e0"
    return f"{quote(column)} + 0" if type_ == pa.uint64() else quote(column)


def _not_null(connection: Connection, table: str) -> frozenset[str]:
    """Columns declared NOT NULL: not to ask for NULL in each row saves a third of packing it."""
    known = _NOT_NULL.setdefault(connection, {})
    if table not in known:
        sql = (
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = %s AND is_nullable = 'NO'"
        )
        known[table] = frozenset(name for rows in fetch(connection, sql, (table,)) for (name,) in rows)
    return known[table]


def _csv_field(column: str, type_: pa.DataType, filled: bool) -> str:
    value = _expression(column, type_)
    if pa.types.is_string(type_):
        # Each by itself: no character set of a column holds what another's does.
        value = f"""CONCAT('"', REPLACE(CONVERT({value} USING utf8mb4), '"', '""'), '"')"""
    # A NULL that should not be there hides its row, and the count of rows tells.
    return value if filled else f"IFNULL({value}, '')"


def table_names(connection: Connection) -> set[str]:
    """Names of the tables and views as the server spells them: two may differ in case only."""
    sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
    return {name for rows in fetch(connection, sql) for (name,) in rows}


def write_table(
    connection: Connection,
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


def _literals(connection: Connection, batch: pa.RecordBatch) -> str:
    """`(1,'a'),(2,NULL)`: one statement for thousands of rows; text is escaped by the driver."""
    columns = [_sql_text(connection, column) for column in batch.columns]
    joined = pc.binary_join_element_wise(*columns, ",")
    return ",".join(f"({row})" for row in joined.to_pylist()).replace("%", "%%")


def _sql_text(connection: Connection, column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        escape = connection.escape
        return pa.array(["NULL" if value is None else escape(value) for value in column.to_pylist()])
    return pc.fill_null(pc.cast(column, pa.string()), "NULL")


def _place(connection: Connection) -> str:
    name = connection.db or b""
    return f"mysql://{connection.host}:{connection.port}/{name if isinstance(name, str) else name.decode()}"
