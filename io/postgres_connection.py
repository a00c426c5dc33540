"""Connections that read a shop's tables in PostgreSQL or Amazon Redshift: settings, snapshots, errors.

Redshift says that it is PostgreSQL 8.0.2. It has no exported snapshots, no `COPY … TO STDOUT`, its cursors
give a thousand rows at a time on a small cluster, and every transaction in it sees one moment, whatever
isolation is asked for.
"""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from beamrec.io.backend import PASSWORD_VARIABLE, source_password
from beamrec.io.postgres import NETWORK_OPTIONS, connection_options, refusal_hint
from beamrec.schemas.errors import (
    BadDataError,
    BeamrecError,
    ConnectionLostError,
    UnavailableError,
    UsageError,
)

__all__ = ["PASSWORD_VARIABLE", "Connection", "begin", "close", "open_connection", "translated"]


_EXPECTED = "postgresql://user@host:port/database?schema=&sslmode=&sslrootcert="
# The first version that knows the setting, and what makes it ours for one transaction. The shop's role may
# have limits of its own on a transaction that waits, which would end a shared snapshot.
_SETTINGS = (
    (0, "datestyle TO 'ISO'"),
    (0, "timezone TO 'UTC'"),
    (0, "extra_float_digits TO 2"),  # 17 digits, the most that Redshift knows; since 12 the shortest exact
    (0, "statement_timeout TO 3600000"),
    (9_02_00, "cursor_tuple_fraction TO 1"),
    (9_03_00, "lock_timeout TO 60000"),
    (9_06_00, "idle_in_transaction_session_timeout TO 0"),
    (17_00_00, "transaction_timeout TO 0"),
)
# Admin shutdown, crash, starting up, limits on waiting, too many connections, memory, disk; a replica that
# had to cancel the statement, deadlock, a lock that was not to be had.
_MAY_PASS = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "53", "40001", "40P01", "55P03")
_HINTS = {
    "42501": "grant the user SELECT on the shop's tables and USAGE on their schema",
    "42P01": "name the right table in --shop, or its schema by ?schema= in the URI",
    "57014": "somebody ended the statement; run the command again",
}
_NOT_UTF_8 = ("22021", "22P05")
# "Invalid snapshot identifier", since 17 "does not exist", and a race with its end.
_GONE = (
    psycopg2.errors.InvalidParameterValue,
    psycopg2.errors.UndefinedObject,
    psycopg2.errors.ObjectNotInPrerequisiteState,
)
# Values stay text: Arrow parses a column of it several times faster than Python a value at a time.
_TEXT = psycopg2.extensions.new_type(
    (16, 20, 21, 23, 26, 114, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 3802),
    "TEXT",
    psycopg2.extensions.UNICODE,
)
# CHAR(n) is filled up with blanks that PostgreSQL itself ignores in every comparison.
_CHAR = psycopg2.extensions.new_type(
    (1042,), "CHAR", lambda value, cursor: None if value is None else value.rstrip(" ")
)


class Connection(psycopg2.extensions.connection):  # type: ignore[misc]
    """A connection that knows where it leads.

    Attributes:
      where: host, port and database, for messages.
      schema: searched for tables before `public`; None for the role's own search path.
    """

    where: str = ""
    schema: str | None = None

    @property
    def is_redshift(self) -> bool:
        """Whether it is Amazon Redshift, or as old as the PostgreSQL that this grew from."""
        return int(self.server_version) < 9_02_00

    @property
    def holds_any_bytes(self) -> bool:
        """Whether text in it may be of any encoding: the server did not ask for one."""
        return bool(self.info.parameter_status("server_encoding") == "SQL_ASCII")


def open_connection(uri: str, secret: str | None = None) -> Connection:
    """Opens a connection, in a transaction that only reads.

    Raises:
      UsageError: the URI is malformed.
      ConnectionLostError: the server does not answer.
      UnavailableError: it refuses the login or fails TLS.
    """
    options = _options(uri)
    schema = options.pop("schema", None)
    where = f"postgresql://{options['host']}:{options['port']}/{options['dbname']}"
    password = _password(secret)
    with translated(where, password):
        connection: Connection = psycopg2.connect(
            **options,
            **({"password": password} if password else {}),
            **NETWORK_OPTIONS,
            client_encoding="UTF8",
            connection_factory=Connection,
        )
    connection.where, connection.schema = where, schema
    for type_ in (_TEXT, _CHAR):
        psycopg2.extensions.register_type(type_, connection)
    return connection


def begin(
    connection: Connection,
    token: str | None = None,
    isolation: str = "REPEATABLE READ",
    readonly: bool = True,
) -> None:
    """Ends the connection's transaction and begins another, with settings that the role cannot spoil.

    Args:
      connection: an open connection.
      token: the exported snapshot to join; None for one of its own, taken by the first query.
      isolation: `REPEATABLE READ` sees one moment, `READ COMMITTED` that of each statement.
      readonly: refuse to write.

    Raises:
      UnavailableError: whoever exported the snapshot is gone.
    """
    with translated(connection.where):
        connection.rollback()
        connection.set_session(isolation_level=isolation, readonly=readonly)
        with connection.cursor() as cursor:
            cursor.execute("; ".join(_settings(connection)))
            if token is not None:
                _join(connection, cursor, token)


def _settings(connection: Connection) -> list[str]:
    version = connection.server_version
    settings = [setting for since, setting in _SETTINGS if version >= since]
    if connection.schema is not None:
        quoted = psycopg2.extensions.quote_ident(connection.schema, connection)
        settings.append(f"search_path TO {quoted}, public")
    return [f"SET LOCAL {setting}" for setting in settings]


def _join(connection: Connection, cursor: psycopg2.extensions.cursor, token: str) -> None:
    try:
        cursor.execute("SET TRANSACTION SNAPSHOT %s", (token,))
    except _GONE:
        raise UnavailableError(f"{connection.where}: the shared snapshot is gone") from None


def close(connection: Connection) -> None:
    """Drops a connection at once."""
    with contextlib.suppress(psycopg2.Error):
        connection.close()


@contextlib.contextmanager
def translated(where: str, password: str | None = None) -> Iterator[None]:
    """The driver's errors as ours; libpq repeats what it was given, so a password is taken out."""
    try:
        yield
    except psycopg2.Error as error:
        raise _as_ours(where, error, password) from None


def _as_ours(where: str, error: psycopg2.Error, password: str | None) -> BeamrecError:
    code = error.pgcode or ""
    # Of a refused login libpq has the text alone; its details say less than our hint, and logs withhold them.
    told = "\n".join(line for line in str(error).splitlines() if not line.startswith("DETAIL:"))
    text = " ".join((error.diag.message_primary or told or type(error).__name__).split())
    if password:
        text = text.replace(password, "…")
    if code in _NOT_UTF_8:
        return BadDataError(f"{where}: a text value is not UTF-8: {text}; mend it in the database")
    # A connection that breaks has no code, and now and then no class of its own.
    lost_classes = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError)
    refused = refusal_hint(text) if not code else None
    lost = code.startswith(_MAY_PASS) if code else type(error) in lost_classes and not refused
    hint = refused or _HINTS.get(code, "check that the server runs, its log, then run the command again")
    if refused and "password" in refused:
        hint = f"{refused} in {PASSWORD_VARIABLE} or --source-secret"
    return (ConnectionLostError if lost else UnavailableError)(f"{where}: {text}; {hint}")


def _options(uri: str) -> dict[str, str]:
    options = connection_options(uri, "--source", PASSWORD_VARIABLE, more=("schema",))
    if len(urlsplit(uri).path) < 2 or options.get("schema") == "":
        raise UsageError(f"--source: expected {_EXPECTED}")
    return options


def _password(secret: str | None) -> str:
    password = source_password(secret)
    # What is not UTF-8 in the environment comes as surrogates.
    if "\0" in password or any("\ud800" <= character <= "\udfff" for character in password):
        raise UsageError("--source: the password holds a NUL or is not UTF-8; PostgreSQL takes no such one")
    return password
