"""What a shop database behind the bounded source offers: one module a system, the same functions in each."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, Protocol

import pyarrow as pa

__all__ = ["PASSWORD_VARIABLE", "Access", "Backend", "Query", "Snapshot", "SnapshotMode", "source_password"]

PASSWORD_VARIABLE = "BEAMREC_SOURCE_PASSWORD"  # noqa: S105
SnapshotMode = Literal["auto", "shared", "connection", "checksums"]


@dataclasses.dataclass(frozen=True)
class Access:
    """How a shop database is reached.

    Attributes:
      uri: scheme, user, host, database; never a password.
      secret: where the password comes from (`io.secrets`); None is the environment.
      readers: connections that read at a time.
      mode: how all of them see one moment; `auto` is the best that server and rights allow.
      bulk: read many rows in one packed answer where the system can; else row by row.
    """

    uri: str
    secret: str | None = None
    readers: int = 2
    mode: SnapshotMode = "auto"
    bulk: bool = True


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Connections that see one moment.

    Attributes:
      method: how, for the manifest.
      readers: open connections, at least one.
      token: lets a later connection see the same moment (PostgreSQL); None where the system has no such
        thing, and a connection made later sees a later moment.
      verify: whether the moment is not one for all: what was read is read again at the end and compared.
    """

    method: str
    readers: tuple[Any, ...]
    token: str | None = None
    verify: bool = False


@dataclasses.dataclass(frozen=True)
class Query:
    """Rows of one table.

    Attributes:
      table: name as the database spells it, not quoted.
      columns: (name as the database spells it, Arrow type), in order.
      condition: SQL after WHERE with the backend's placeholders; None for all rows.
      parameters: values of the placeholders.
    """

    table: str
    columns: tuple[tuple[str, pa.DataType], ...]
    condition: str | None = None
    parameters: tuple[Any, ...] = ()


class Backend(Protocol):
    """What a module registered under `tables` offers; a connection is the driver's own.

    Every function may raise `ConnectionLostError`, `UnavailableError` for what waiting does not mend, and
    `UsageError`; a driver's error leaves the module from none of them while within `connect`. Messages
    name host and database, never a password. Connections are used by one thread at a time, but not always
    by the same. SQL that callers write is `SELECT … WHERE … GROUP BY … ORDER BY … LIMIT … OFFSET` over quoted
    names and placeholders; comparison, grouping and order of a column must agree with each other.
    """

    PLACEHOLDER: str

    def connect(self, uri: str, secret: str | None = None) -> AbstractContextManager[Any]:
        """Opens a connection for reading; `secret` says where the password is, None is the environment."""

    def open_snapshot(
        self, stack: ExitStack, access: Access, connection: Any, tables: Sequence[str]
    ) -> Snapshot:
        """Makes up to `access.readers` connections, the given one among them, see one moment.

        Connections that it opens are closed with the stack. Raises UsageError where `access.mode` asks for
        what the server or the user's rights do not allow.
        """

    def reconnect(self, stack: ExitStack, access: Access, token: str | None) -> Any:
        """A new connection in a snapshot: that of the token, else one of its own."""

    def close(self, connection: Any) -> None:
        """Drops a connection at once, also a broken one; never raises."""

    def column_types(self, connection: Any, table: str) -> dict[str, pa.DataType]:
        """Columns of a table with their Arrow types; raises UsageError if there is no such table.

        Integers, float32, float64, decimals, string, binary, date32 and timestamps; Booleans are int8.
        """

    def collation(self, connection: Any, table: str, column: str) -> str:
        """What a text column is compared and ordered by: equal texts for columns that agree."""

    def quote(self, identifier: str) -> str:
        """An identifier as it stands in SQL, whatever characters it holds."""

    def fetch(self, connection: Any, sql: str, parameters: Sequence[Any] = ()) -> Iterator[list[Any]]:
        """Rows in lists of at most some ten thousand, streamed; for metadata and keys."""

    def read(self, connection: Any, query: Query, bulk: bool) -> list[Sequence[Any] | pa.Array]:
        """Columns of a query, each an array or a list of values that `arrow_types.to_array` takes.

        A value that the column's type cannot hold comes as it is: the caller sorts it out.
        """

    def write_table(
        self,
        connection: Any,
        table: str,
        columns: Mapping[str, str],
        primary_key: Sequence[str],
        batches: Iterable[pa.RecordBatch],
    ) -> None:
        """Makes a table (columns as name → declared type) and fills it; replaces one of that name."""

    def connect_for_writing(self, uri: str) -> AbstractContextManager[Any]:
        """Opens a connection that may create tables; makes an SQLite file that is not there."""

    def table_names(self, connection: Any) -> set[str]:
        """Names of the tables and views, as the database spells them."""


def source_password(secret: str | None) -> str:
    """The password of the shop database, from where `Access.secret` says, else from the environment."""
    if secret is None:
        return os.environ.get(PASSWORD_VARIABLE, "")
    from beamrec.io.secrets import read_secret  # cloud libraries, only where they are asked for

    return read_secret(secret, "--source-secret")
