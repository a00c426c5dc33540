"""A bounded pool of PostgreSQL connections, and which errors waiting can mend.

Whoever comes while all connections are lent waits: that is the backpressure of a worker, which asks no
more of the server at a time than it has connections, however many threads it has.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

import psycopg2
import psycopg2.extensions

__all__ = ["Limits", "Pool", "is_elsewhere", "is_lost", "passes", "passes_for_a_while"]

_Connection: TypeAlias = psycopg2.extensions.connection

# Connection exceptions, shutdown, crash, starting up, limits on waiting; too many connections, memory, disk;
# a deadlock, a serialization failure, a lock that was not to be had.
_PASS = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "53", "40001", "40P01", "55P03")
_READ_ONLY = "25006"
# A statement timeout of an overloaded server, a primary that a failover has just made a replica, a disk that
# does not answer: they may pass, but a statement that never ends in time and a replica that stays one do not.
_PASS_FOR_A_WHILE = ("57014", _READ_ONLY, "58030")
_BREAKS = ("08", "57P", "25P")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a worker may ask of the server at a time, and how long it waits for each answer.

    Attributes:
      connections: most open at a time.
      connect_seconds: for a connection; whole seconds, and libpq takes 1 as 2.
      statement_seconds: for a statement, after which the server ends it.
      lock_seconds: for a lock.

    Raises:
      ValueError: at construction, for a value below 1.
    """

    connections: int = 4
    connect_seconds: int = 10
    statement_seconds: int = 600  # a load builds an index in one statement
    lock_seconds: int = 60

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Limits: {field.name}: expected an integer of at least 1, got {value!r}")


class Pool:
    """At most `size` connections, made as they are needed, the one used last lent first.

    Args:
      open_connection: makes one.
      size: how many may be lent at a time.
    """

    def __init__(self, open_connection: Callable[[], _Connection], size: int) -> None:
        self._open = open_connection
        self._room = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []

    @contextlib.contextmanager
    def lend(self) -> Iterator[tuple[_Connection, bool]]:
        """A connection, and whether it was used before; a closed one is not taken back."""
        with self._room:
            with self._lock:
                known = self._idle.pop() if self._idle else None
            connection = known or self._open()
            try:
                yield connection, known is not None
            finally:
                if not connection.closed:
                    with self._lock:
                        self._idle.append(connection)

    def close_idle(self) -> None:
        """Closes the connections that nobody holds: after a restart of the server all of them are broken."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def is_lost(error: psycopg2.Error, connection: _Connection) -> bool:
    """Whether the connection is of no use any more.

    libpq reports a broken connection without a code, in the middle of a COPY even as a plain DatabaseError.
    """
    code = error.pgcode
    if code is None:
        return bool(connection.closed) or type(error) in (psycopg2.OperationalError, psycopg2.DatabaseError)
    return bool(connection.closed) or code.startswith(_BREAKS)


def is_elsewhere(error: psycopg2.Error) -> bool:
    """Whether the server that was connected to writes no more: its address may lead to another by now."""
    return bool(error.pgcode == _READ_ONLY)


def passes(error: psycopg2.Error) -> bool:
    """Whether waiting mends the error: an outage, a restart, a full disk, a deadlock; no matter how long."""
    return (error.pgcode or "").startswith(_PASS)


def passes_for_a_while(error: psycopg2.Error) -> bool:
    """Whether the error may pass, but must be reported if it does not: timeouts, a server that only reads."""
    return error.pgcode in _PASS_FOR_A_WHILE
