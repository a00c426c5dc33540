"""Vector search and upsert in PostgreSQL with pgvector, as Beam transforms of Arrow record batches.

They know nothing of releases and need no table of ours: take them alone.

    found = queries | SearchPgvector(
        "postgresql://user@host/db",
        VectorSearch("app.documents", k=5, columns=("title",), where=(Condition("lang", "=", "en"),)),
        query="vector",
    )
    written = documents | UpsertPgvector(
        "postgresql://user@host/db", VectorUpsert("app.documents", key=("id",), newer=("updated_at",))
    )

One SQL statement a batch. A worker process has one pool of connections for each database, however many
threads and transforms it has: whoever finds all of them lent waits, and so does the runner's source behind
it. An outage, a restart of the server, a deadlock and a full disk are waited out with a growing pause, and
the batch is asked for or written again; what waiting cannot mend (a missing table, a wrong dimension, a
refused login) fails at once. The password comes from `BEAMREC_VECTOR_DB_PASSWORD`, or the environment
variable named by `password_env`, on the worker.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import apache_beam as beam
import numpy as np
import psycopg2
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils import shared

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.embedded import folder_of
from beamrec.io.postgres import Database, Limits, connection_options
from beamrec.io.vector_search import Condition, VectorSearch, nearest, result_type
from beamrec.io.vector_upsert import VectorUpsert, array_columns, upsert
from beamrec.schemas.errors import BadDataError, UsageError

__all__ = ["Condition", "Limits", "SearchPgvector", "UpsertPgvector", "VectorSearch", "VectorUpsert"]

Answer = TypeVar("Answer")
_LIMITS = Limits(connections=4, connect_seconds=10, statement_seconds=60, lock_seconds=30)
_Access = tuple[str, Limits, str | None]
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class _Databases:
    """The pools of a worker process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[_Access, Database] = {}

    def of(self, access: _Access) -> Database:
        """The pool for an access, made once."""
        uri, limits, password_env = access
        with self._lock:
            return self._known.setdefault(access, Database(uri, True, limits, password_env))


class _PgvectorDoFn(beam.DoFn):  # type: ignore[misc]
    _shared = shared.Shared()

    def __init__(self, what: str, access: _Access) -> None:
        self._what = what
        self._access = access

    def setup(self) -> None:
        self._databases = self._shared.acquire(_Databases)  # kept: without a holder it would be made anew
        self._database = self._databases.of(self._access)

    def _ask(self, work: Callable[[psycopg2.extensions.cursor], Answer]) -> Answer:
        try:
            answer: Answer = self._database.transaction(work)
            return answer
        except (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.IntegrityError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(f"{self._what}: PostgreSQL: {first_line}") from error


class _SearchDoFn(_PgvectorDoFn):
    def __init__(self, access: _Access, search: VectorSearch, query: str, into: str) -> None:
        super().__init__(f"SearchPgvector in {search.table}", access)
        self._search = search
        self._query, self._into = query, into
        self._result: pa.DataType | None = None

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        result = self._result = self._result or self._ask(lambda cursor: result_type(cursor, self._search))
        there, vectors = self._vectors(batch)
        found = self._ask(lambda cursor: nearest(cursor, self._search, vectors, result))
        Metrics.counter("pgvector", "searched").inc(len(vectors))
        places = pa.array(np.cumsum(there) - 1, mask=~there)
        yield batch.append_column(self._into, found.take(places))

    def _vectors(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Which rows have a vector, and these: ([rows] bool, [vectors, dim] float32)."""
        if self._query not in batch.schema.names:
            raise UsageError(f"{self._what}: expected a column {self._query!r}, got {batch.schema.names}")
        if self._into in batch.schema.names:
            raise UsageError(
                f"{self._what}: the batch has a column {self._into!r} already; give `into` another name"
            )
        column = batch.column(self._query)
        if not any(is_kind(column.type) for is_kind in _LISTS):
            raise UsageError(
                f"{self._what}: column {self._query}: expected lists of numbers, got {column.type}"
            )
        there = column.is_valid().to_numpy(zero_copy_only=False)
        given = column.drop_null()
        lengths = np.unique(given.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise BadDataError(f"{self._what}: column {self._query}: vectors of several lengths, {lengths}")
        try:
            # Not `safe`: an integer beyond 2²⁴ is rounded, as every float64 is.
            numbers = given.flatten().cast(pa.float32(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadDataError(f"{self._what}: column {self._query}: expected numbers: {error}") from error
        vectors = numbers.to_numpy(zero_copy_only=False)
        if not np.isfinite(vectors).all():  # a NULL among the numbers is NaN here
            raise BadDataError(f"{self._what}: column {self._query}: a vector holds NaN, infinity or NULL")
        return there, vectors.reshape(len(given), *lengths) if len(given) else np.empty((0, 0), np.float32)


class _UpsertDoFn(_PgvectorDoFn):
    def __init__(self, access: _Access, target: VectorUpsert) -> None:
        super().__init__(f"UpsertPgvector into {target.table}", access)
        self._target = target
        self._arrays: dict[tuple[str, ...], frozenset[str]] = {}

    def process(self, batch: pa.RecordBatch) -> Iterator[int]:
        names = tuple(batch.schema.names)
        missing = sorted({*self._target.key, *self._target.newer} - set(names))
        if missing:
            raise UsageError(f"{self._what}: expected a column {missing[0]!r}, got {list(names)}")
        if names not in self._arrays:
            self._arrays[names] = self._ask(lambda cursor: array_columns(cursor, self._target.table, names))
        written = self._ask(lambda cursor: upsert(cursor, self._target, batch, self._arrays[names]))
        Metrics.counter("pgvector", "upserted").inc(written)
        yield written


@dataclasses.dataclass(eq=False)
class _OnPgvector(beam.PTransform):  # type: ignore[misc]
    """What both transforms are told.

    Attributes:
      uri: `postgresql://user@host:port/db`, without a password, or `embedded:/absolute/folder`.

    Raises:
      UsageError: at construction, for another URI.
    """

    uri: str

    def __post_init__(self) -> None:
        super().__init__()
        if self.uri.startswith("embedded:"):
            folder_of(self.uri, "uri")
        else:
            connection_options(self.uri, "uri")


@dataclasses.dataclass(eq=False)
class SearchPgvector(_OnPgvector):
    """The nearest neighbours of each row's vector.

    Attributes:
      search: where and how to look.
      query: the batch's column of vectors, lists of numbers; a row with NULL there gets NULL.
      into: name of the column that is added: list<struct<id, distance, the columns asked for>>, nearest
        first. Numbers come as Arrow's, all other types as PostgreSQL's text.
      limits: connections of a worker at a time, and how long it waits for what.
      password_env: environment variable of the password on the worker.
    """

    search: VectorSearch
    query: str = "vector"
    into: str = "neighbours"
    limits: Limits = _LIMITS
    password_env: str | None = None

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[batches with `query`] -> [the same with `into`]."""
        access = (self.uri, self.limits, self.password_env)
        search = beam.ParDo(_SearchDoFn(access, self.search, self.query, self.into))
        return batches | "Search" >> search.with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class UpsertPgvector(_OnPgvector):
    """Inserts rows, or replaces those of the same key.

    A batch is reduced to one row a key and written in the order of the keys, so that writers do not
    deadlock. It is written whole or not at all, and after an outage again: with `newer` that changes
    nothing, without it the row of a batch that is written again replaces what came between.

    Attributes:
      target: where rows go, and which one stays.
      limits: connections of a worker at a time, and how long it waits for what.
      password_env: environment variable of the password on the worker.
    """

    target: VectorUpsert
    limits: Limits = _LIMITS
    password_env: str | None = None

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[batches with the table's columns] -> number of rows inserted or changed, a batch each."""
        access = (self.uri, self.limits, self.password_env)
        return batches | "Upsert" >> beam.ParDo(_UpsertDoFn(access, self.target)).with_output_types(int)
