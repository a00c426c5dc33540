"""The bounded source: ratings, customers and products of an SQL database, range by range, as Arrow.

One connection reads everything inside one snapshot. Ratings are read in ranges of the partition column,
so that one range holds whole partitions and the stages behind it need no shuffle.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.io.arrow_types import check_key_type, to_array
from beamrec.io.registry import backend, reject_password, scheme_of
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.ranges import RatingsRange, SourceSnapshot
from beamrec.schemas.shop import Shop, Table

__all__ = ["RATINGS", "SNAPSHOT", "Backend", "KeyRange", "ReadRatings", "plan_ranges", "read_ratings"]

RATINGS = "ratings"
SNAPSHOT = "snapshot"


class Backend(Protocol):
    """What a module registered under `tables` offers; a connection is the driver's own."""

    PLACEHOLDER: str

    def connect(self, uri: str) -> AbstractContextManager[Any]:
        """Opens a connection for reading; raises UnavailableError or UsageError."""

    def begin_snapshot(self, connection: Any) -> str:
        """Makes all later reads see one moment; returns how, for the manifest."""

    def column_types(self, connection: Any, table: str) -> dict[str, pa.DataType]:
        """Columns of a table with their Arrow types; raises UsageError if there is no such table."""

    def quote(self, identifier: str) -> str:
        """An identifier as it stands in SQL, whatever characters it holds."""

    def select_expression(self, column: str, type_: pa.DataType) -> str:
        """SQL of a column whose fetched values `to_array` takes without loss."""

    def fetch(self, connection: Any, sql: str, parameters: Sequence[Any] = ()) -> Iterator[list[Any]]:
        """Rows in lists of at most some ten thousand, streamed."""

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
        """Names of the tables and views, in lower case."""


@dataclasses.dataclass(frozen=True)
class KeyRange:
    """An inclusive range of the partition column; both ends None is the range of NULL keys."""

    lower: Any
    upper: Any

    def predicate(self, column: str, placeholder: str) -> tuple[str, tuple[Any, ...]]:
        """The SQL condition on an already quoted column, with its parameters."""
        if self.lower is None:
            return f"{column} IS NULL", ()
        return f"{column} >= {placeholder} AND {column} <= {placeholder}", (self.lower, self.upper)


def plan_ranges(key_counts: Iterable[tuple[Any, int]], max_rows: int) -> list[KeyRange]:
    """Packs keys into ranges of at most `max_rows` rows; a key with more rows is a range of its own.

    Args:
      key_counts: (key, number of rows), ascending by key in the database's own order; None is NULL.
      max_rows: rows that a worker holds at a time.
    """
    ranges: list[KeyRange] = []
    rows_in_last = 0
    for key, rows in key_counts:
        fits = ranges and key is not None and ranges[-1].lower is not None
        if fits and rows_in_last + rows <= max_rows:
            ranges[-1] = dataclasses.replace(ranges[-1], upper=key)
            rows_in_last += rows
        else:
            ranges.append(KeyRange(key, key))
            rows_in_last = rows
    return ranges


@dataclasses.dataclass(frozen=True)
class _TableReader:
    """One table with the columns that are read, as the database spells and types them."""

    backend: Backend
    connection: Any
    name: str
    schema: pa.Schema
    expressions: tuple[str, ...]
    key: str

    @classmethod
    def open(cls, module: Backend, connection: Any, table: str, columns: Sequence[str]) -> "_TableReader":
        types = module.column_types(connection, table)
        actual = _match_columns(columns, types, table)
        return cls(
            backend=module,
            connection=connection,
            name=table,
            schema=pa.schema([pa.field(c, types[a]) for c, a in zip(columns, actual, strict=True)]),
            expressions=tuple(module.select_expression(a, types[a]) for a in actual),
            key=module.quote(actual[0]),
        )

    @property
    def source(self) -> str:
        return self.backend.quote(self.name)

    def count(self) -> int:
        rows = self.backend.fetch(self.connection, f"SELECT COUNT(*) FROM {self.source}")  # noqa: S608
        return int(next(iter(rows))[0][0])

    def key_counts(self) -> Iterator[tuple[Any, int]]:
        """Rows per first column, ascending; integer keys as int."""
        sql = f"SELECT {self.key}, COUNT(*) FROM {self.source} GROUP BY {self.key} ORDER BY {self.key}"  # noqa: S608
        is_integer = pa.types.is_integer(self.schema.field(0).type)
        for rows in self.backend.fetch(self.connection, sql):
            for key, count in rows:
                yield int(key) if is_integer and key is not None else key, int(count)

    def read(self, range_: KeyRange | None = None) -> pa.RecordBatch:
        """All rows, or those whose first column lies in the range, typed by `schema`."""
        sql = f"SELECT {', '.join(self.expressions)} FROM {self.source}"  # noqa: S608
        parameters: tuple[Any, ...] = ()
        if range_ is not None:
            condition, parameters = range_.predicate(self.key, self.backend.PLACEHOLDER)
            sql += f" WHERE {condition}"
        chunks = [self._batch(rows) for rows in self.backend.fetch(self.connection, sql, parameters)]
        return _one_batch(chunks, self.schema)

    def _batch(self, rows: list[Any]) -> pa.RecordBatch:
        columns = zip(*rows, strict=True)
        arrays = [
            to_array(values, field.type, f"table {self.name}, column {field.name}")
            for values, field in zip(columns, self.schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def read_ratings(uri: str, shop: Shop, range_rows: int) -> Iterator[SourceSnapshot | RatingsRange]:
    """Reads a shop in one snapshot: first what the snapshot is, then one range after the other.

    Args:
      uri: `sqlite:///path` or `mysql://user@host:port/db`.
      shop: names of tables and columns; matched regardless of case.
      range_rows: ratings that a range holds at most, unless one partition alone has more.

    Raises:
      UnavailableError: the database does not answer or refuses the login.
      UsageError: a table or column is missing or a key has another type than the Shop says.
      BadDataError: there are no ratings, a customer or product is there twice, or a value does not fit
        its column's type.
    """
    module: Backend = backend("tables", uri, "--source")
    with module.connect(uri) as connection:
        method = module.begin_snapshot(connection)
        taken_at = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        ratings = _TableReader.open(module, connection, shop.ratings.name, _rating_columns(shop))
        customers = _open_entities(module, connection, shop.customers)
        products = _open_entities(module, connection, shop.products)
        _check_ratings(shop, ratings.schema)
        counts = {reader.name: reader.count() for reader in (ratings, customers, products)}
        if not counts[ratings.name]:
            raise BadDataError(f"table {ratings.name} of --source holds no ratings: nothing to train on")
        types = _training_types(shop, ratings.schema, customers.schema, products.schema)
        yield SourceSnapshot(scheme_of(uri), method, taken_at, counts, types)
        all_products = _unique(products.read(), shop.products)
        for range_ in plan_ranges(ratings.key_counts(), range_rows):
            yield RatingsRange(
                ratings=ratings.read(range_),
                customers=_unique(customers.read(range_), shop.customers),
                products=all_products,
                taken_at=taken_at,
            )


@dataclasses.dataclass(eq=False)
class ReadRatings(beam.PTransform):  # type: ignore[misc]
    """Reads a shop as `RatingsRange`s (output RATINGS) of one `SourceSnapshot` (output SNAPSHOT)."""

    uri: str
    shop: Shop
    range_rows: int = 200_000

    def __post_init__(self) -> None:
        reject_password(self.uri, "--source", "BEAMREC_SOURCE_PASSWORD")
        if self.range_rows < 1:
            raise UsageError(f"--range-rows: expected at least 1, got {self.range_rows}")

    def expand(self, begin: Any) -> Any:
        return (
            begin
            | "Once" >> beam.Impulse()
            | "Ranges" >> beam.ParDo(_Read(self)).with_outputs(SNAPSHOT, main=RATINGS)
        )


class _Read(beam.DoFn):  # type: ignore[misc]
    def __init__(self, options: ReadRatings) -> None:
        self._options = options

    def process(self, _: bytes) -> Iterator[Any]:
        options = self._options
        for part in read_ratings(options.uri, options.shop, options.range_rows):
            yield beam.pvalue.TaggedOutput(SNAPSHOT, part) if isinstance(part, SourceSnapshot) else part


def _rating_columns(shop: Shop) -> tuple[str, ...]:
    return (shop.ratings.customer, shop.ratings.product, shop.ratings.rating)


def _open_entities(module: Backend, connection: Any, table: Table) -> _TableReader:
    reader = _TableReader.open(module, connection, table.name, (table.key, *table.columns))
    check_key_type(reader.schema.field(0).type, table.key_type, f"{table.name}.{table.key}")
    return reader


def _check_ratings(shop: Shop, ratings: pa.Schema) -> None:
    for position, table in enumerate((shop.customers, shop.products)):
        field = ratings.field(position)
        check_key_type(field.type, table.key_type, f"{shop.ratings.name}.{field.name}")
    rating = ratings.field(2)
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(kind(rating.type) for kind in numeric):
        raise UsageError(f"{shop.ratings.name}.{rating.name}: expected numbers, got {rating.type}")


def _training_types(
    shop: Shop, ratings: pa.Schema, customers: pa.Schema, products: pa.Schema
) -> dict[str, str]:
    """Types of the training files' columns; keys have the type of the table that they are the key of."""
    fields = {field.name: field.type for field in [*customers, *products]}
    fields[shop.ratings.rating] = ratings.field(2).type
    return {name: str(fields[name]) for name in (shop.partition_column, *shop.training_columns)}


def _match_columns(wanted: Sequence[str], available: Mapping[str, Any], table: str) -> list[str]:
    """The database's spelling of each wanted column: the exact one, else the only one but for case."""
    matched = []
    for name in wanted:
        alike = [a for a in available if a.lower() == name.lower()]
        exact = [a for a in alike if a == name]
        if len(exact or alike) != 1:
            found = "several that differ in case" if alike else f"only {', '.join(available)}"
            raise UsageError(
                f"table {table}: expected a column {name}, found {found}; name the right one in --shop"
            )
        matched.append((exact or alike)[0])
    return matched


def _one_batch(chunks: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if not chunks:
        return pa.RecordBatch.from_pylist([], schema=schema)
    return pa.concat_batches(chunks)


def _unique(batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """Rows ascending by key, without those that have none; raises BadDataError if a key is there twice."""
    known = batch.filter(pc.is_valid(batch.column(0)))
    ordered = known.take(pc.sort_indices(known.column(0)))
    keys = ordered.column(0)
    repeated = pc.equal(keys[1:], keys[:-1])
    if pc.any(repeated).as_py():
        key = keys.filter(pc.fill_null(pa.concat_arrays([repeated, pa.array([False])]), False))[0].as_py()
        raise BadDataError(
            f"table {table.name}: expected one row per {table.key}, found {key!r} more than once; "
            "a join would multiply its ratings"
        )
    return ordered
