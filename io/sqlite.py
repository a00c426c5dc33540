"""SQLite behind `sqlite:///relative/path` and `sqlite:////absolute/path`."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote as quote_url
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.arrow_types import arrow_type
from beamrec.io.backend import Access, Query, Snapshot
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = [
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

PLACEHOLDER = "?"

_ROWS_PER_FETCH = 10_000
_PREFIX = "sqlite:///"
# What `typeof` says of the values of a column without a declared type (an expression of a view).
_STORED = {
    frozenset({"integer"}): pa.int64(),
    frozenset({"real"}): pa.float64(),
    frozenset({"integer", "real"}): pa.float64(),
    frozenset({"text"}): pa.string(),
    frozenset({"blob"}): pa.binary(),
    frozenset(): pa.string(),
}


@contextlib.contextmanager
def connect(uri: str, secret: str | None = None) -> Iterator[sqlite3.Connection]:
    """Opens an existing database read-only; a file has no password.

    Raises:
      UsageError: there is no such file.
      UnavailableError: it cannot be read, or is not an SQLite database.
    """
    path = _path(uri)
    if not path.is_file():
        absolute = Path("/", unquote(uri.removeprefix(_PREFIX)))
        hint = f"; did you mean sqlite:///{absolute}?" if absolute.is_file() else ""
        raise UsageError(f"{uri}: there is no file {path.absolute()}{hint}")
    with _session(f"file:{quote_url(str(path))}?mode=ro", uri) as connection:
        # What is not UTF-8 stays bytes, which no text column takes: a dead letter, not a failed run.
        connection.text_factory = _text
        yield connection


@contextlib.contextmanager
def connect_for_writing(uri: str) -> Iterator[sqlite3.Connection]:
    """Opens a database, made if it is not there; commits at the end, or undoes everything on an error."""
    path = _path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _session(f"file:{quote_url(str(path))}?mode=rwc", uri) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


@contextlib.contextmanager
def _session(file_uri: str, uri: str) -> Iterator[sqlite3.Connection]:
    try:
        # No isolation level: the module would otherwise begin and commit transactions by itself.
        with contextlib.closing(
            # Ranges are read ahead in another thread, one at a time.
            sqlite3.connect(file_uri, uri=True, isolation_level=None, timeout=30, check_same_thread=False)
        ) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        raise UnavailableError(f"{uri}: {error}; check the file, its rights and who has it locked") from None
    except sqlite3.DatabaseError as error:
        raise UnavailableError(f"{uri}: {error}; expected an SQLite database") from None


def open_snapshot(
    stack: contextlib.ExitStack, access: Access, connection: sqlite3.Connection, tables: Sequence[str]
) -> Snapshot:
    """Opens a read transaction; SQLite shows it one state until it ends."""
    if access.mode == "shared":
        raise UsageError("--snapshot shared: SQLite has no snapshot for several connections; use auto")
    connection.execute("BEGIN")
    # A deferred transaction takes its snapshot at the first read, not at BEGIN.
    connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    return Snapshot("one connection, one read transaction", (connection,))


def reconnect(stack: contextlib.ExitStack, access: Access, token: str | None) -> sqlite3.Connection:
    """A file does not lose its connection: never called, as no ConnectionLostError is raised here."""
    raise UnavailableError(f"{access.uri}: cannot be read any more; run the command again")


def close(connection: sqlite3.Connection) -> None:
    """Ends reading."""
    connection.close()


def column_types(connection: sqlite3.Connection, table: str) -> dict[str, pa.DataType]:
    """Columns of a table or view with the Arrow types that MySQL would give for the declared ones."""
    rows = connection.execute(f"PRAGMA table_info({quote(table)})").fetchall()
    if not rows:
        raise UsageError(
            f"expected a table {table} in the database, found none; name the right one in --shop"
        )
    return {name: _type(connection, table, name, declared) for _, name, declared, *_ in rows}


def collation(connection: sqlite3.Connection, table: str, column: str) -> str:
    """How a text column compares: SQLite names no column's collation, but uses it behind a subquery too."""
    texts = f"SELECT {quote(column)} AS x FROM {quote(table)} WHERE 0 UNION ALL SELECT 'a'"  # noqa: S608
    ((case, blanks),) = connection.execute(f"SELECT x = 'A', x = 'a ' FROM ({texts})").fetchall()  # noqa: S608
    return f"equal but for case: {case}, but for trailing blanks: {blanks}"


def quote(identifier: str) -> str:
    """Standard double quotes; one inside is doubled."""
    return '"' + identifier.replace('"', '""') + '"'


def fetch(
    connection: sqlite3.Connection, sql: str, parameters: Sequence[object] = ()
) -> Iterator[list[tuple[object, ...]]]:
    """Rows in lists of at most 10,000."""
    cursor = connection.execute(sql, tuple(parameters))
    while rows := cursor.fetchmany(_ROWS_PER_FETCH):
        yield rows


def read(connection: sqlite3.Connection, query: Query, bulk: bool) -> list[Sequence[object] | pa.Array]:
    """Columns of a query, as Python's values: SQLite has no quicker way."""
    columns = ", ".join(_expression(name, type_) for name, type_ in query.columns)
    where = f" WHERE {query.condition}" if query.condition else ""
    sql = f"SELECT {columns} FROM {quote(query.table)}{where}"  # noqa: S608
    rows = [row for rows in fetch(connection, sql, query.parameters) for row in rows]
    return list(zip(*rows, strict=True)) if rows else [() for _ in query.columns]


def _expression(column: str, type_: pa.DataType) -> str:
    """Decimals come as text: SQLite keeps 95.70 as a binary fraction, whose 15 digits as text are exact."""
    return f"CAST({quote(column)} AS TEXT)" if pa.types.is_decimal(type_) else quote(column)


def table_names(connection: sqlite3.Connection) -> set[str]:
    """Names of the tables and views."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
    return {name for (name,) in rows}


def write_table(
    connection: sqlite3.Connection,
    table: str,
    columns: Mapping[str, str],
    primary_key: Sequence[str],
    batches: Iterable[pa.RecordBatch],
) -> None:
    """Makes a table and fills it; replaces one of that name."""
    connection.execute(f"DROP TABLE IF EXISTS {quote(table)}")
    definitions = [f"{quote(name)} {declared}" for name, declared in columns.items()]
    keys = ", ".join(quote(name) for name in primary_key)
    connection.execute(f"CREATE TABLE {quote(table)} ({', '.join(definitions)}, PRIMARY KEY ({keys}))")
    marks = ", ".join([PLACEHOLDER] * len(columns))
    statement = f"INSERT INTO {quote(table)} VALUES ({marks})"  # noqa: S608
    for batch in batches:
        values = [_native(column).to_pylist() for column in batch.columns]
        connection.executemany(statement, zip(*values, strict=True))


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _native(column: pa.Array) -> pa.Array:
    """SQLite binds no decimals; as text they get the column's numeric affinity."""
    return pc.cast(column, pa.string()) if pa.types.is_decimal(column.type) else column


def _type(connection: sqlite3.Connection, table: str, column: str, declared: str) -> pa.DataType:
    name = declared.strip().lower()
    if name == "integer":
        return pa.int64()  # SQLite's own 64-bit integer
    if name and name not in ("num", "numeric", "any"):
        found = arrow_type(declared)
        # Every floating point number of SQLite has eight bytes, whatever its column is called.
        return pa.float64() if found == pa.float32() else found
    sql = f"SELECT DISTINCT typeof({quote(column)}) FROM {quote(table)}"  # noqa: S608
    stored = frozenset(kind for (kind,) in connection.execute(sql)) - {"null"}
    if stored not in _STORED:
        kinds = ", ".join(sorted(stored))
        raise UsageError(f"table {table}, column {column}: declared without a type, it mixes {kinds}")
    return _STORED[stored]


def _path(uri: str) -> Path:
    path = unquote(uri.removeprefix(_PREFIX))
    if not uri.startswith(_PREFIX) or not path:
        raise UsageError(f"{uri}: expected sqlite:///relative/path or sqlite:////absolute/path")
    return Path(path)
