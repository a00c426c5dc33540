"""A connection of its own for work on one release: its lock, its steps, and what its errors mean.

A session that holds the lock of a release is the only one that makes or drops its tables. The server lets
go of the lock when the process that holds it is gone, whatever the server is doing for it at that moment.
"""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator

import psycopg2
import psycopg2.extensions

from beamrec.io.pgvector_waiting import lock_holder
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UnavailableError

__all__ = ["SAY_SECONDS", "Session", "lock_key", "open_session"]

_LOCK_POLL_SECONDS = 0.2
SAY_SECONDS = 5.0
"""Who waits for longer says so, and for whom."""

# A big copy or index takes its time, and a transaction idles while neighbours are computed here.
_SETTINGS = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
# Without it a server that builds an index does not notice for minutes that its client was killed.
_CHECK_CONNECTION = "SET client_connection_check_interval = '1s'"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Session:
    """An open session; outside of `step` every statement is a transaction of its own."""

    connection: psycopg2.extensions.connection

    @contextlib.contextmanager
    def step(self) -> Iterator[psycopg2.extensions.cursor]:
        """A cursor in one transaction, committed at the end of the `with` block."""
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
            except BaseException:
                if not self.connection.closed:
                    with contextlib.suppress(psycopg2.Error):
                        cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    @contextlib.contextmanager
    def cursor(self) -> Iterator[psycopg2.extensions.cursor]:
        """A cursor whose statements are committed one by one."""
        with self.connection.cursor() as cursor:
            yield cursor

    def try_lock(self, release_id: str) -> bool:
        """Takes the lock of a release if nobody holds it; it is kept until `unlock`, or the end."""
        with self.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [lock_key(release_id)])
            return bool(cursor.fetchone()[0])

    def lock(self, release_id: str, what: str | None = None) -> None:
        """Takes the lock of a release, waiting for whoever holds it; after five seconds it says for whom.

        Args:
          release_id: or another name that no release can have.
          what: for that message, what the other command is at work on; `release ID` if not given.
        """
        began, said = time.monotonic(), False
        while not self.try_lock(release_id):
            if not said and time.monotonic() - began > SAY_SECONDS:
                with self.cursor() as cursor:
                    holder = lock_holder(cursor, lock_key(release_id))
                what = what or f"release {release_id}"
                _log.warning("%s: waiting for another command that is at work on it, %s", what, holder)
                said = True
            time.sleep(_LOCK_POLL_SECONDS)

    def unlock(self, release_id: str) -> None:
        """Lets go of the lock of a release."""
        with self.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [lock_key(release_id)])


@contextlib.contextmanager
def open_session(uri: str, what: str) -> Iterator[Session]:
    """A session, closed at the end of the `with` block.

    Args:
      uri: as `postgres.connect` takes it.
      what: what it is for, for messages: "release load".

    Raises:
      UnavailableError: the store is away, was lost, is full, or refuses us; the message says what to do.
    """
    connection = connect(uri)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(_SETTINGS)
            # It came with version 14, and not for every system.
            with contextlib.suppress(psycopg2.errors.UndefinedObject, psycopg2.errors.InvalidParameterValue):
                cursor.execute(_CHECK_CONNECTION)
        yield Session(connection)
    except psycopg2.Error as error:
        explained = _explained(error, what)
        if explained is None:
            raise
        raise explained from error
    finally:
        with contextlib.suppress(psycopg2.Error):
            connection.close()


def _explained(error: psycopg2.Error, what: str) -> UnavailableError | None:
    """What the user can mend, with what to do; None for what is our own mistake."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, psycopg2.errors.DiskFull):
        hint = "its disk is full: free some space (`beamrec release gc` drops old releases)"
    elif isinstance(error, psycopg2.errors.InsufficientPrivilege):
        return UnavailableError(
            f"{what}: PostgreSQL: {text}; this user may not do that: run it as the owner of the schema "
            "beamrec, or GRANT USAGE, CREATE ON SCHEMA beamrec and the ownership of its tables"
        )
    elif isinstance(error, psycopg2.errors.LockNotAvailable):
        hint = "another session keeps a table locked"
    elif isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or error.pgcode is None:
        hint = "the server went away, or ended the statement; see its log"
    else:
        return None
    return UnavailableError(f"{what}: PostgreSQL: {text}; {hint}, then run the command again: it goes on")


def lock_key(release_id: str) -> int:
    """The advisory lock of a release."""
    return int.from_bytes(hashlib.sha256(release_id.encode()).digest()[:8], "big", signed=True)
