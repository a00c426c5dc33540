"""Connections to MySQL and MariaDB: URIs without passwords, verified TLS, errors that say what to do."""

import contextlib
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import pymysql
from pymysql.connections import Connection
from pymysql.converters import conversions

from beamrec.io.backend import PASSWORD_VARIABLE, source_password
from beamrec.io.registry import reject_password
from beamrec.schemas.errors import BeamrecError, ConnectionLostError, UnavailableError, UsageError
from beamrec.schemas.hosts import is_loopback

__all__ = ["PASSWORD_VARIABLE", "close", "open_connection", "shown", "translated"]


_CONNECT_SECONDS = 10
_READ_SECONDS = 600
# Values stay text: Arrow parses a column of it several times faster than PyMySQL a value at a time.
_CONVERSIONS = {key: value for key, value in conversions.items() if not isinstance(key, int)}
_HINTS = {
    1044: "grant the user SELECT on the shop's tables",
    1045: f"check the user and the password in {PASSWORD_VARIABLE}",
    1049: "check the database name",
    1142: "grant the user SELECT on the shop's tables",
    1143: "grant the user SELECT on the shop's tables",
    1698: f"check the user and the password in {PASSWORD_VARIABLE}",
    2003: "check host and port, that the server runs, and its certificate",
    2026: "the server offers no TLS; enable it there, or say tls=off in the URI if the network is trusted",
}
# Too many connections, shutdown, network, interrupted, lock waits, killed, gone, lost. PyMySQL has no number
# for a socket that it has closed, nor for some misuse, which is an error of another class.
_MAY_PASS = {1040, 1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1205, 1213, 1317, 1927}
_MAY_PASS |= {2002, 2003, 2006, 2013, 2055}
_WITHOUT_NUMBER = (pymysql.err.InterfaceError, pymysql.err.OperationalError)


def shown(uri: str) -> str:
    """Where a URI leads, for messages."""
    parts = _parse(uri)
    return f"mysql://{parts.hostname}:{parts.port or 3306}{parts.path}"


def open_connection(uri: str, secret: str | None = None) -> Connection:
    """Opens a connection.

    Raises:
      UsageError: the URI is malformed.
      ConnectionLostError: the server does not answer.
      UnavailableError: it refuses the login or fails TLS.
    """
    parts = _parse(uri)
    with translated(shown(uri)):
        connection = pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username) if parts.username else None,
            # As bytes: PyMySQL encodes text as Latin-1, the servers expect UTF-8. What is not UTF-8 in the
            # environment comes as surrogates.
            password=source_password(secret).encode("utf-8", "surrogateescape"),
            database=unquote(parts.path[1:]),
            charset="utf8mb4",
            conv=_CONVERSIONS,
            # A TIMESTAMP is shown in the session's zone, where an hour comes twice when summer time ends.
            init_command="SET time_zone = '+00:00'",
            connect_timeout=_CONNECT_SECONDS,
            # PyMySQL's own limit ends with TCP's connection: what says nothing after it is no server.
            read_timeout=_CONNECT_SECONDS,
            **_tls(parts),
        )
    connection._read_timeout = _READ_SECONDS
    return connection


def close(connection: Connection) -> None:
    """Closes at once; `close()`, and a result's destructor, would first read all rows that are left."""
    if connection._result is not None:
        connection._result.unbuffered_active = False
    connection._force_close()


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """The driver's errors as ours."""
    try:
        yield
    except (pymysql.err.MySQLError, OSError) as error:
        raise _as_ours(where, error) from None


def _as_ours(where: str, error: Exception) -> BeamrecError:
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[-1] if error.args else error) or type(error).__name__
    hint = _HINTS.get(code, "check host and port, the server's log, then run the command again")
    # PyMySQL reports a certificate that does not verify as a server that cannot be reached.
    may_pass = code in _MAY_PASS or (code == 0 and isinstance(error, _WITHOUT_NUMBER))
    lost = may_pass and "certificate" not in text.lower()
    lost = lost or isinstance(error, ConnectionError | TimeoutError)
    return (ConnectionLostError if lost else UnavailableError)(f"{where}: {text}; {hint}")


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


def _tls(parts: SplitResult) -> dict[str, Any]:
    """TLS arguments; given a context of our own, PyMySQL refuses a server without TLS."""
    options = dict(parse_qsl(parts.query))
    mode = options.get("tls", "off" if is_loopback(parts.hostname or "") else "verify")
    if mode not in ("verify", "off"):
        raise UsageError(f"--source: tls: expected verify or off, got {mode!r}")
    if mode == "off" and "ssl_ca" not in options:
        return {"ssl_disabled": True}
    try:
        return {"ssl": ssl.create_default_context(cafile=options.get("ssl_ca"))}
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--source: ssl_ca: cannot read the certificates: {error}") from None
