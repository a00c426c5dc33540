"""Reading one key range of a shop: ratings, their customers, and what the database holds equal."""

import dataclasses
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.key_ranges import (
    KeyRange,
    Slice,
    entity_condition,
    plan_slices,
    ratings_condition,
    slice_condition,
)
from beamrec.io.table_reader import Row, Rows, TableReader
from beamrec.schemas.key_index import KeyIndex
from beamrec.schemas.ranges import MalformedRow, RangeCheck, RatingsRange

__all__ = ["Part", "Products", "ShopTables", "digest", "read_products", "read_range", "slices_of"]

_ROWS_PER_READ = 50_000
_local = threading.local()


@dataclasses.dataclass(frozen=True)
class ShopTables:
    """The three tables of a shop."""

    ratings: TableReader
    customers: TableReader
    products: TableReader

    @property
    def all(self) -> tuple[TableReader, ...]:
        """Ratings first."""
        return self.ratings, self.customers, self.products


@dataclasses.dataclass(frozen=True)
class Part:
    """A range, or one slice of the range of a partition with very many rows.

    Attributes:
      alone: whether the range of NULL keys is the only one.
    """

    range: KeyRange
    slice: Slice
    is_first: bool
    alone: bool


@dataclasses.dataclass(frozen=True)
class Products:
    """All products, which every range shares.

    Attributes:
      rows: with their malformed rows.
      index: finds them by key.
    """

    rows: Rows
    index: KeyIndex


def slices_of(tables: ShopTables, connection: Any, range_: KeyRange, max_rows: int) -> list[Slice]:
    """Where to cut the range of a single key with more than `max_rows` ratings."""
    ratings = tables.ratings
    condition, parameters = ratings_condition(range_, ratings.column(0), ratings.backend.PLACEHOLDER)
    return plan_slices(ratings.bounds(connection, 1, max_rows, condition, parameters))


def read_range(
    tables: ShopTables, connection: Any, part: Part, products: Products, taken_at: str
) -> tuple[RatingsRange, list[RangeCheck]]:
    """Ratings and customers of a range, and what to compare at the end.

    Keys of ratings that the database holds equal to the key of a customer or product, though their bytes
    differ, are replaced by that key: collations may ignore case, accents and trailing blanks.
    """
    mark = tables.ratings.backend.PLACEHOLDER
    condition, parameters = ratings_condition(part.range, tables.ratings.column(0), mark)
    more, its_parameters = slice_condition(part.slice, tables.ratings.column(1), mark)
    where = f"{condition} AND {more}", (*parameters, *its_parameters)
    rated = tables.ratings.read(connection, *where)
    checks = [_check(tables.ratings, where, rated)]
    whose = entity_condition(part.range, tables.customers.column(0), mark, part.alone)
    customers = tables.customers.read(connection, *whose)
    if part.is_first:
        checks.append(_check(tables.customers, whose, customers))
    ratings = _with_equal_keys(connection, rated[0], 0, tables.customers, KeyIndex(customers[0].column(0)))
    ratings = _with_equal_keys(connection, ratings, 1, tables.products, products.index)
    malformed = (*rated[1], *customers[1], *products.rows[1])
    range_ = RatingsRange(
        ratings, customers[0], products.rows[0], taken_at, malformed, counts_customers=part.is_first
    )
    return range_, checks


def read_products(tables: ShopTables, connection: Any) -> tuple[Products, list[RangeCheck]]:
    """All products, some ten thousand at a time, and what to compare at the end."""
    table = tables.products
    column, mark = table.column(0), table.backend.PLACEHOLDER
    batches: list[pa.RecordBatch] = []
    malformed: tuple[MalformedRow, ...] = ()
    checks: list[RangeCheck] = []
    for part in plan_slices(table.bounds(connection, 0, _ROWS_PER_READ)):
        where = slice_condition(part, column, mark)
        rows = table.read(connection, *where)
        batches.append(rows[0])
        malformed += rows[1]
        checks.append(_check(table, where, rows))
    batch = pa.concat_batches(batches)
    return Products((batch, malformed), KeyIndex(batch.column(0))), checks


def digest(rows: Rows) -> tuple[int, int]:
    """Number of rows and the sum of their 64-bit hashes, malformed rows included."""
    batch, malformed = rows
    columns = ", ".join(f"c{position}" for position in range(batch.num_columns))
    names = [f"c{position}" for position in range(batch.num_columns)]
    rows_ = pa.Table.from_arrays([_hashable(column) for column in batch.columns], names=names)
    sql = f"SELECT count(*), coalesce(sum(hash({columns})::HUGEINT), 0) FROM read_rows"  # noqa: S608
    connection = _engine()
    connection.register("read_rows", rows_)
    ((count, total),) = connection.execute(sql).fetchall()
    connection.unregister("read_rows")
    words = sum(zlib.crc32(repr(row).encode()) for row in malformed)
    return int(count) + len(malformed), int(total) + words


def _hashable(column: pa.Array) -> pa.Array:
    """DuckDB has no decimals of more than 38 digits."""
    return pc.cast(column, pa.string()) if pa.types.is_decimal256(column.type) else column


def _engine() -> duckdb.DuckDBPyConnection:
    """One a thread: making one costs more than hashing 200,000 rows."""
    engine: duckdb.DuckDBPyConnection | None = getattr(_local, "engine", None)
    if engine is None:
        engine = _local.engine = duckdb.connect(config={"threads": 1})
    return engine


def _check(table: TableReader, where: tuple[str, Row], rows: Rows) -> RangeCheck:
    return RangeCheck(table.name, *where, digest(rows))


def _with_equal_keys(
    connection: Any, ratings: pa.RecordBatch, position: int, table: TableReader, entities: KeyIndex
) -> pa.RecordBatch:
    keys = ratings.column(position)
    if not pa.types.is_string(keys.type):
        return ratings
    missed = pc.is_null(entities.rows(keys))
    if pc.sum(missed, min_count=0).as_py() == keys.null_count:
        return ratings
    unknown = pc.unique(keys.filter(missed).drop_null()).to_pylist()
    equal = table.equal_keys(connection, unknown)
    return ratings.set_column(position, ratings.schema.field(position), _replaced(keys, equal))


def _replaced(keys: pa.Array, equal: Mapping[Any, Any]) -> pa.Array:
    if not equal:
        return keys
    encoded = keys.dictionary_encode()
    values = [equal.get(key, key) for key in encoded.dictionary.to_pylist()]
    return pa.array(values, keys.type).take(encoded.indices)
