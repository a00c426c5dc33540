"""Upsert of a record batch into any table, vectors included, by one statement.

Names are quoted as identifiers and values as literals by psycopg2. `beamrec.io.vector_transforms` makes a
Beam transform of it.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql
from psycopg2.extras import execute_values

from beamrec.io.vector_search import Table, identifier, vector_texts
from beamrec.schemas.errors import BadDataError

__all__ = ["VectorUpsert", "array_columns", "newest_rows", "upsert"]


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclasses.dataclass(frozen=True)
class VectorUpsert:
    """Where rows go, and which one stays.

    Attributes:
      table: its name, with its schema or found by the search path; its columns have the batch's names.
      key: columns of its primary key or of a unique index.
      newer: columns that say which of two rows of one key is newer, the first that differs decides; NULL is
        older than everything, text should have COLLATE "C". Without them what comes last stays.

    Raises:
      ValueError: at construction, without a key, or with a column in both.
    """

    table: Table
    key: tuple[str, ...] = ("id",)
    newer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        identifier(self.table)
        names = (*self.key, *self.newer)
        if not self.key or isinstance(self.key, str) or isinstance(self.newer, str):
            raise ValueError(f"VectorUpsert: expected tuples of columns, got {self.key!r} and {self.newer!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"VectorUpsert: a column stands twice in key and newer: {names}")


def newest_rows(batch: pa.RecordBatch, key: Sequence[str], newer: Sequence[str] = ()) -> pa.RecordBatch:
    """One row of each key, sorted by key: the newest, of equally new ones the last.

    What is newer is what is greater in PostgreSQL: NULL is the oldest, NaN the newest of all. One statement
    must not touch a key twice, and writers that lock keys in one order cannot deadlock.

    Raises:
      BadDataError: a key is NULL.
      KeyError: the batch has no such column.
    """
    batch = _decoded(batch)
    for name in key:
        if batch.column(name).null_count:
            raise BadDataError(f"upsert: column {name} is part of the key, and NULL in a row")
    order = {name: batch.column(name) for name in key}
    for name in newer:
        if pa.types.is_floating(batch.column(name).type):  # Arrow sorts NaN beside NULL
            order[f"\0{name} is NaN"] = pc.is_nan(batch.column(name))
        order[name] = batch.column(name)
    order["\0position"] = pa.array(np.arange(batch.num_rows))
    keys = [(name, "ascending", "at_start") for name in order]
    rows = batch.take(pc.sort_indices(pa.table(order), keys))
    last = np.ones(batch.num_rows, bool)
    if batch.num_rows:
        same = np.ones(batch.num_rows - 1, bool)
        for name in key:
            column = rows.column(name)
            same &= pc.equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
        last[:-1] = ~same
    return rows.filter(pa.array(last))


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Dictionary-encoded columns as plain ones: Arrow does not compare their values."""
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def upsert(
    cursor: psycopg2.extensions.cursor,
    target: VectorUpsert,
    batch: pa.RecordBatch,
    array_columns: Collection[str] = (),
) -> int:
    """Writes a batch; returns how many rows were inserted or changed.

    Lists go into columns of the type `vector` (or `halfvec`, or jsonb), structs and maps into jsonb, both as
    objects.

    Args:
      array_columns: those of the table whose type is an array, such as real[]; see `array_columns`.

    Raises:
      BadDataError: a key is NULL, a text holds NUL, or a nested value has no JSON: NaN, a key twice.
      psycopg2.ProgrammingError: the table is not what the target says.
      psycopg2.DataError: a value does not fit its column.
    """
    rows = newest_rows(batch, target.key, target.newer)
    if not rows.num_rows:
        return 0
    names = rows.schema.names
    columns = [_values(name, rows.column(name), name in array_columns) for name in names]
    values = list(zip(*columns, strict=True))
    try:
        # execute_values takes every other % for a place of its own.
        statement = " VALUES %s ".join(
            part.as_string(cursor).replace("%", "%%") for part in _statement(target, names)
        )
        execute_values(cursor, statement, values, page_size=len(values))
    except ValueError as error:  # psycopg2's own: a text, or one in an array, holds NUL
        raise BadDataError(f"upsert into {target.table}: {error}") from error
    return int(cursor.rowcount)


def array_columns(cursor: psycopg2.extensions.cursor, table: Table, names: Sequence[str]) -> frozenset[str]:
    """Those of a table's columns whose type is an array of PostgreSQL's."""
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(columns, identifier(table)))
    numbers = {column.name: column.type_code for column in cursor.description}
    cursor.execute(
        "SELECT oid FROM pg_type WHERE oid = ANY(%s) AND typcategory = 'A'", [list(numbers.values())]
    )
    arrays = {row[0] for row in cursor.fetchall()}
    return frozenset(name for name, number in numbers.items() if number in arrays)


def _statement(target: VectorUpsert, names: Sequence[str]) -> tuple[sql.Composable, sql.Composable]:
    """The statement before and behind its values."""
    changed = [name for name in names if name not in target.key]
    sets = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in changed)
    update = sql.SQL("UPDATE SET {}{}").format(sets, _only_newer(target.newer))
    insert = sql.SQL("INSERT INTO {} AS t ({})").format(
        identifier(target.table), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    on_conflict = sql.SQL("ON CONFLICT ({}) DO {}").format(
        sql.SQL(", ").join(map(sql.Identifier, target.key)), update if changed else sql.SQL("NOTHING")
    )
    return insert, on_conflict


def _only_newer(newer: Sequence[str]) -> sql.Composable:
    if not newer:
        return sql.SQL("")
    # Whether there is a value comes first: a row comparison with NULL is neither true nor false.
    sides = [
        sql.SQL(", ").join(
            sql.SQL("{0}.{1} IS NOT NULL, {0}.{1}").format(sql.SQL(side), sql.Identifier(name))
            for name in newer
        )
        for side in ("excluded", "t")
    ]
    return sql.SQL(" WHERE ({}) > ({})").format(*sides)


def _values(name: str, column: pa.Array, is_array: bool) -> list[Any]:
    """A column as psycopg2 takes it: vectors as pgvector's text, other nested values as JSON."""
    kind = column.type
    if is_array or not pa.types.is_nested(kind):
        return list(column.to_pylist())
    if not all(pc.all(pc.is_finite(numbers), min_count=0).as_py() for numbers in _floats(column)):
        raise BadDataError(f"upsert: column {name}: a nested value holds NaN or infinity, which is no JSON")
    if pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32() and not column.null_count:
        return list(vector_texts(column.flatten().to_numpy().reshape(len(column), kind.list_size)))
    try:
        values = column.to_pylist(maps_as_pydicts="strict")
        return [None if value is None else _json(value) for value in values]
    except (TypeError, KeyError) as error:
        raise BadDataError(f"upsert: column {name}: a value has no JSON: {error}") from error


def _floats(column: pa.Array) -> Iterator[pa.Array]:
    """The floating-point numbers inside a nested column."""
    kind = column.type
    if pa.types.is_floating(kind):
        yield column
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            yield from _floats(child)
    elif pa.types.is_map(kind):
        yield from _floats(column.items)
    elif any(is_kind(kind) for is_kind in _LISTS):
        yield from _floats(column.flatten())


def _json(value: Any) -> str:
    return orjson.dumps(value, default=_number, option=orjson.OPT_NON_STR_KEYS).decode()


def _number(value: Any) -> orjson.Fragment:
    """A decimal with all its digits."""
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"{value!r} is of type {type(value).__name__}")
