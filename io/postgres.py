"""PostgreSQL connections: URIs without passwords, verified TLS, timeouts, and waiting out an outage."""

import dataclasses
import functools
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import psycopg2
import psycopg2.extensions

from beamrec.io import embedded
from beamrec.io.postgres_pool import Limits, Pool, is_elsewhere, is_lost, passes, passes_for_a_while
from beamrec.io.store_waits import WAITS
from beamrec.schemas.errors import ConnectionLostError, RefusedError, UnavailableError, UsageError

__all__ = [
    "NETWORK_OPTIONS",
    "PASSWORD_VARIABLES",
    "Database",
    "Limits",
    "connect",
    "connection_options",
    "default_uri",
    "refusal_hint",
    "resolve_uri",
    "with_secret",
]

PASSWORD_VARIABLES = ("BEAMREC_VECTOR_DB_PASSWORD", "VECTOR_DB_PASSWORD")
"""Environment variables that may hold the password, the first one set wins; the second is the course's."""

NETWORK_OPTIONS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""libpq's options against a network that goes silent: seconds, the last one milliseconds."""

_LIMITS = Limits()
_MAX_BACKOFF_SECONDS = 10.0
_A_WHILE_SECONDS = 300.0
_QUERY_OPTIONS = frozenset(
    {"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "application_name"}
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Where the systems keep one file of root certificates: Debian and Alpine, Red Hat, SUSE.
_ROOT_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
# libpq reports a refused login only as text; waiting does not mend these.
_REFUSALS = {
    "authentication failed": "check the user and the password",
    "no password supplied": "check the user and the password",
    "not permitted to log in": "check the user",
    "pg_hba.conf": "the server's pg_hba.conf must allow this user, database, host and encryption",
    "certificate": "check the server's certificate, its name, and the authority that sslrootcert= names",
    "does not exist": "check the database name and the user",
    "permission denied": "grant the user CONNECT on the database",
    "not currently accepting connections": "the database is closed to logins; ask who runs it",
    "does not support SSL": "enable TLS on the server, or say sslmode=disable if the network is trusted",
}

_DENIED = re.compile(r"permission denied for (schema|table|view|relation|sequence) (\S+)")

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def default_uri(home: str | os.PathLike[str]) -> str:
    """What a bare `embedded:` means: the server under `home`, by an absolute path that workers find."""
    return embedded.embedded_uri(home)


def resolve_uri(uri: str, home: str | os.PathLike[str]) -> str:
    """What `--vector-db` means: a bare `embedded:` is the server under `home`."""
    return default_uri(home) if uri == "embedded:" else uri


def with_secret(uri: str, secret: str | None) -> str:
    """The URI with where its password is (`io.secrets`), for workers that have another environment.

    Raises:
      UsageError: `secret` is no such URI.
    """
    if not secret:
        return uri
    if uri.startswith("embedded:"):
        raise UsageError("--vector-db-secret: the embedded server asks for no password; give its URI alone")
    from beamrec.io.secrets import check_secret  # cloud libraries, only where they are asked for

    check_secret(secret, "--vector-db-secret")
    return f"{uri}{'&' if '?' in uri else '?'}secret={quote(secret, safe='')}"


def connection_options(
    uri: str,
    option: str = "--vector-db",
    password_variable: str = PASSWORD_VARIABLES[0],
    more: Collection[str] = (),
) -> dict[str, str]:
    """libpq's options for `postgresql://user@host:port/db?…`; the password is not among them.

    Off the loopback and Unix sockets the server's certificate and host name are verified, unless the URI
    itself says another `sslmode`.

    Args:
      uri: where to connect.
      option: the flag that it came from, for messages.
      password_variable: where the password belongs, for messages.
      more: options of the query that are not libpq's; they are in the answer.

    Raises:
      UsageError: it is no such URI, holds a password, or an option that is not known.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:  # its message may repeat a password
        raise UsageError(
            f"{option}: the host is not one: expected postgresql://user@host:port/db, an IPv6 host as [::1]"
        ) from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise UsageError(
            f"{option}: expected postgresql://user@host:port/db or embedded:, got a URI of scheme "
            f"{parts.scheme or '(none)'!r}"
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.password or "password" in query:
        raise UsageError(
            f"{option}: the URI holds a password; take it out and put it into {password_variable}"
        )
    known = _QUERY_OPTIONS | set(more)
    unknown = sorted(set(query) - known)
    if unknown:
        raise UsageError(f"{option}: unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
    if query.get("sslmode", "disable") not in _SSL_MODES:
        raise UsageError(
            f"{option}: sslmode: expected one of {', '.join(_SSL_MODES)}, got {query['sslmode']!r}"
        )
    try:
        port = str(parts.port or 5432)
    except ValueError:
        raise UsageError(
            f"{option}: the port is not a number; expected postgresql://user@host:port/db"
        ) from None
    return _verified(
        {
            "host": parts.hostname or "localhost",
            "port": port,
            "user": unquote(parts.username or "postgres"),
            "dbname": unquote(parts.path.lstrip("/")) or "postgres",
            "application_name": "beamrec",
        }
        | query
    )


def _verified(options: dict[str, str]) -> dict[str, str]:
    """Adds what verifies the server: always off the loopback, elsewhere if the URI asks for it."""
    if not options["host"].startswith("/") and options["host"] not in _LOOPBACK:
        options.setdefault("sslmode", "verify-full")
    if options.get("sslmode", "").startswith("verify") and not _own_root_certificates():
        options.setdefault("sslrootcert", _root_certificates())
    return options


def _own_root_certificates() -> bool:
    """Whether libpq finds root certificates by itself, as its documentation says."""
    return bool(os.environ.get("PGSSLROOTCERT")) or Path("~/.postgresql/root.crt").expanduser().exists()


def _root_certificates() -> str:
    """The system's root certificates as a file.

    libpq's own word for them, `system`, finds none: the library inside psycopg2-binary looks for them in
    the folder that it was built in.
    """
    candidates = (ssl.get_default_verify_paths().cafile, *_ROOT_CERTIFICATES)
    return next((path for path in candidates if path and Path(path).is_file()), "system")


def refusal_hint(message: str) -> str | None:
    """What to do about a login that the server, or TLS, refused; None if waiting may mend it."""
    return next((hint for text, hint in _REFUSALS.items() if text in message), None)


def connect(
    uri: str, password_env: str | None = None, limits: Limits = _LIMITS
) -> psycopg2.extensions.connection:
    """A new connection; `embedded:/folder` starts that server if it is not running.

    Args:
      uri: `postgresql://user@host:port/db`, with `?secret=` if the password is not in the environment, or
        `embedded:/folder`.
      password_env: environment variable of the password; None for `PASSWORD_VARIABLES`.
      limits: how long to wait for what.

    Raises:
      UsageError: the URI is wrong.
      UnavailableError: no connection; the message says where and why, and never holds the password.
    """
    if uri.startswith("embedded:"):
        uri = embedded.ensure_running(embedded.folder_of(uri)).uri
    options = connection_options(uri, more=("secret",))
    where = f"PostgreSQL at {options['host']}:{options['port']}/{options['dbname']}"
    names = (password_env,) if password_env else PASSWORD_VARIABLES
    secret = options.pop("secret", None)
    password = _password(secret, names)
    try:
        return psycopg2.connect(
            **options,
            **({"password": password} if password else {}),
            **NETWORK_OPTIONS | {"connect_timeout": limits.connect_seconds},
            options=f"-c statement_timeout={limits.statement_seconds}s "
            f"-c lock_timeout={limits.lock_seconds}s -c timezone=UTC",
        )
    except psycopg2.Error as error:
        reason = " ".join(str(error).split())
        if password:
            reason = reason.replace(password, "…")
        raise UnavailableError(
            f"{where}: no connection as user {options['user']}: {reason.removesuffix('?')}; "
            f"{_what_to_check(reason, (secret,) if secret else names)}"
        ) from None


def _password(secret: str | None, names: Collection[str]) -> str | None:
    if secret:
        from beamrec.io.secrets import read_secret  # cloud libraries, only where they are asked for

        return read_secret(secret, "--vector-db secret=")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _what_to_check(reason: str, passwords: Collection[str]) -> str:
    hint = refusal_hint(reason)
    if hint is None:
        return "check that it runs, and host and port in the URI"
    return f"{hint}, in {' or '.join(passwords)}" if "password" in hint else hint


@dataclasses.dataclass
class Database:
    """A pool of lazy connections, picklable by what it is made of; broken ones are replaced at the next use.

    Attributes:
      uri: as `connect` takes it.
      patient: wait out an outage, without end, instead of raising.
      limits: connections at a time, and how long to wait for what.
      password_env: environment variable of the password; None for `PASSWORD_VARIABLES`.
    """

    uri: str
    patient: bool = False
    limits: Limits = _LIMITS
    password_env: str | None = None
    _worked: bool = dataclasses.field(default=False, init=False, repr=False, compare=False)

    @functools.cached_property
    def _pool(self) -> Pool:
        return Pool(lambda: connect(self.uri, self.password_env, self.limits), self.limits.connections)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def transaction(self, work: Callable[[Any], Answer], patient: bool | None = None) -> Answer:
        """Runs `work(cursor)` in one transaction and returns its answer; `work` may run more than once.

        While all connections are lent it waits. A connection that broke while idle is replaced once in any
        case; with `patient` every outage is waited out with a growing pause (10 s at most), and what may
        pass on a server that answers for five minutes: a statement timeout, a server that only reads, and a
        refused login if one had succeeded before (a password is rotated in two places, one after another).

        Raises:
          UnavailableError: the database is away, refuses us, or does not answer in time.
          psycopg2.Error: the statement is wrong.
        """
        patient = self.patient if patient is None else patient
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return self._attempt(work)
            except (psycopg2.Error, UnavailableError) as error:
                reused = isinstance(error, _BrokenWhileIdleError) and attempt == 0
                if not reused and not (patient and self._may_pass(error, time.monotonic() - began)):
                    raise _explained(error) from error
                attempt += 1
                self._wait(attempt, error)

    def _attempt(self, work: Callable[[Any], Answer]) -> Answer:
        with self._pool.lend() as (connection, used_before):
            try:
                with connection, connection.cursor() as cursor:
                    answer = work(cursor)
                self._worked = True
                return answer
            except psycopg2.Error as error:
                lost = is_lost(error, connection)
                if lost or is_elsewhere(error):
                    connection.close()
                    self._pool.close_idle()
                if not lost:
                    raise
                kind = _BrokenWhileIdleError if used_before else ConnectionLostError
                raise kind(_described(error)) from error

    def _may_pass(self, error: Exception, waited_seconds: float) -> bool:
        """Whether waiting can mend the error; some do not last, or are told after a while."""
        if isinstance(error, psycopg2.Error):
            return passes(error) or (passes_for_a_while(error) and waited_seconds < _A_WHILE_SECONDS)
        if isinstance(error, RefusedError) or refusal_hint(str(error)) is not None:
            return self._worked and waited_seconds < _A_WHILE_SECONDS
        return True

    def _wait(self, attempt: int, error: Exception) -> None:
        pause = min(_MAX_BACKOFF_SECONDS, 0.05 * 2 ** min(attempt, 10))
        if attempt > 1:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            _log.warning("vector store unavailable, trying again in %.1f s: %s", pause, first_line)
        # Not all workers at once: they all lost the server in the same moment.
        pause *= random.uniform(0.5, 1)  # noqa: S311
        time.sleep(pause)
        WAITS.add("vector_db", pause)

    def close(self) -> None:
        """Closes the connections that nobody uses; the next use opens another."""
        self._pool.close_idle()


class _BrokenWhileIdleError(ConnectionLostError):
    """A connection that had worked before was lost: the server may be there nevertheless."""


def _explained(error: Exception) -> Exception:
    """What the user sees: an outage or a missing privilege as UnavailableError, else the error itself."""
    if isinstance(error, psycopg2.Error) and (
        passes(error)
        or passes_for_a_while(error)
        or isinstance(error, psycopg2.OperationalError | psycopg2.errors.InsufficientPrivilege)
    ):
        return UnavailableError(_described(error))
    return error


def _described(error: psycopg2.Error) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    denied = _DENIED.search(text) if isinstance(error, psycopg2.errors.InsufficientPrivilege) else None
    return f"PostgreSQL: {text}{_grant(*denied.groups()) if denied else ''}"


def _grant(kind: str, name: str) -> str:
    """What the owner may say to mend it; PostgreSQL names neither the privilege nor a table's schema."""
    if kind == "schema":
        return f"; its owner may say: GRANT USAGE, CREATE ON SCHEMA {name} TO this user"
    return (
        f"; its owner may say: GRANT SELECT ON {name} TO this user, and to write, INSERT, UPDATE, DELETE too "
        "(ON ALL TABLES IN SCHEMA beamrec for what is ours); loading and dropping releases is the owner's"
    )
