"""Nearest neighbours of a batch of vectors in any table with a pgvector column, by one statement.

Names are quoted as identifiers and values as literals by psycopg2: nothing of a name, a filter or a vector is
ever taken for SQL. `beamrec.io.vector_transforms` makes a Beam transform of it.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import orjson
import psycopg2
import pyarrow as pa
from psycopg2 import sql

from beamrec.io.csv_rows import parse_rows

__all__ = [
    "Condition",
    "Operator",
    "Table",
    "VectorSearch",
    "identifier",
    "nearest",
    "result_type",
    "vector_texts",
]

Operator = Literal["<->", "<=>", "<#>"]
"""pgvector's L2 distance, cosine distance and negative inner product."""

_Comparison = Literal["=", "<>", "<", "<=", ">", ">=", "@>", "in", "not in", "is null", "is not null"]
_Scan = Literal["off", "strict_order", "relaxed_order"]

# What comes as a number; everything else comes as PostgreSQL's own text of it.
_TYPES = {
    16: pa.bool_(), 20: pa.int64(), 21: pa.int16(), 23: pa.int32(), 700: pa.float32(), 701: pa.float64(),
}  # fmt: skip


Table = str | tuple[str, ...]
"""`documents`, `app.documents`, or for a name that holds a dot its parts, `("app", "docu.ments")`."""


def identifier(table: Table) -> sql.Identifier:
    """A table's name, quoted.

    Raises:
      ValueError: it is empty, or has more parts than a schema and a name.
    """
    parts = tuple(table.split(".")) if isinstance(table, str) else table
    if not 1 <= len(parts) <= 2 or not all(parts):
        raise ValueError(f"table: expected `table` or `schema.table`, got {table!r}")
    return sql.Identifier(*parts)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A filter on one column.

    Attributes:
      column: its name.
      operator: a comparison; `@>` is PostgreSQL's `contains` for jsonb and arrays.
      value: what it is compared with; a sequence for `in` and `not in`, nothing for `is null`. For `@>` a
        dict is JSON, a sequence an array of the type that its values have, and text whatever the column
        holds: `'["a", "b"]'` for jsonb, `'{0.5,7}'` for real[].

    Raises:
      ValueError: at construction, for an operator that is not known, a value that does not go with it, NULL
        in a sequence (`not in` would find nothing), or text with a NUL, which PostgreSQL has not.
    """

    column: str
    operator: _Comparison
    value: Any = None

    def __post_init__(self) -> None:
        if self.operator not in get_args(_Comparison):
            raise ValueError(
                f"Condition on {self.column}: operator: expected one of {', '.join(get_args(_Comparison))}; "
                f"got {self.operator!r}"
            )
        if (self.value is None) != self.operator.startswith("is "):
            raise ValueError(
                f"Condition on {self.column}: {self.operator!r} with the value {self.value!r}; ask for NULL "
                "by `is null`"
            )
        if self.operator.endswith("in") and (
            isinstance(self.value, str | bytes) or not isinstance(self.value, Sequence)
        ):
            raise ValueError(f"Condition on {self.column}: expected a list of values, got {self.value!r}")
        self._check_values()

    def _check_values(self) -> None:
        several = isinstance(self.value, Sequence) and not isinstance(self.value, str | bytes)
        values = list(self.value) if several else [self.value]
        if self.operator.endswith("in") and any(value is None for value in values):
            raise ValueError(f"Condition on {self.column}: a list holds None; ask for NULL by `is null`")
        if any(isinstance(value, str) and "\0" in value for value in values):
            raise ValueError(f"Condition on {self.column}: a text holds NUL, which none in PostgreSQL does")

    def sql(self) -> sql.Composable:
        """The condition with its value as a literal."""
        column = sql.Identifier(self.column)
        if self.operator.startswith("is "):
            return sql.SQL("{} {}").format(column, sql.SQL(self.operator))
        if self.operator.endswith("in"):
            if not self.value:
                return sql.SQL("false" if self.operator == "in" else "true")
            values = sql.SQL(", ").join(map(sql.Literal, self.value))
            return sql.SQL("{} {} ({})").format(column, sql.SQL(self.operator), values)
        value = orjson.dumps(self.value).decode() if isinstance(self.value, dict) else self.value
        return sql.SQL("{} {} {}").format(column, sql.SQL(self.operator), sql.Literal(value))


@dataclasses.dataclass(frozen=True)
class VectorSearch:
    """Where to look for neighbours, and how.

    Attributes:
      table: its name, with its schema or found by the search path.
      k: neighbours a vector, fewer where the table (or the index, with a filter) has no more.
      id_column, vector_column: of the table; a row without a vector is nobody's neighbour.
      operator: what neighbours are ordered by; an index is used if it was made for this operator.
      columns: further columns that come with each neighbour.
      where: conditions that all must hold.
      dim: for a column declared without a dimension, whose index stands on the cast to `vector(dim)`.
      reported: operator of the distance that is returned, where another one orders alike.
      exact: read the whole table, or what the conditions leave of it, and not a vector's index.
      ef_search: width of the search in an HNSW index; None for the server's setting.
      probes: lists searched in an IVFFlat index; None for the server's setting.
      iterative_scan: goes on in the index until `k` rows pass the filter (pgvector 0.8); by default with
        a filter `strict_order`, without one the server's setting.

    Raises:
      ValueError: at construction, for a value out of range.
    """

    table: Table
    k: int = 10
    id_column: str = "id"
    vector_column: str = "embedding"
    operator: Operator = "<->"
    columns: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    dim: int | None = None
    reported: Operator | None = None
    exact: bool = False
    ef_search: int | None = None
    probes: int | None = None
    iterative_scan: _Scan | None = None

    def __post_init__(self) -> None:
        identifier(self.table)
        for name in ("operator", "reported"):
            if getattr(self, name) not in (*get_args(Operator), *([None] if name == "reported" else [])):
                raise ValueError(
                    f"VectorSearch: {name}: expected one of {', '.join(get_args(Operator))}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.iterative_scan not in (None, *get_args(_Scan)):
            raise ValueError(
                f"VectorSearch: iterative_scan: expected one of {', '.join(get_args(_Scan))}, "
                f"got {self.iterative_scan!r}"
            )
        for name in ("k", "dim", "ef_search", "probes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"VectorSearch: {name}: expected an integer of at least 1, got {value!r}")
        if {"id", "distance"} & set(self.columns) or len(set(self.columns)) != len(self.columns):
            raise ValueError(
                f"VectorSearch: columns: expected distinct names, not id or distance; got {self.columns}"
            )

    def settings(self) -> dict[str, str]:
        """pgvector's settings for one transaction."""
        scan = self.iterative_scan or ("strict_order" if self.where else None)
        wanted = {
            "hnsw.ef_search": self.ef_search,
            "ivfflat.probes": self.probes,
            "hnsw.iterative_scan": scan,
            # An IVFFlat index knows no strict order; the answer is put in order in any case.
            "ivfflat.iterative_scan": "relaxed_order" if scan == "strict_order" else scan,
            # Vector indexes know no other way to be read.
            "enable_indexscan": "off" if self.exact else None,
        }
        return {name: str(value) for name, value in wanted.items() if value is not None}


def result_type(cursor: psycopg2.extensions.cursor, search: VectorSearch) -> pa.DataType:
    """The type of the answers: list<struct<id, distance, the further columns>>.

    Numbers are Arrow's, all other types text as PostgreSQL writes them.
    """
    names = [search.id_column, *search.columns]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(columns, identifier(search.table)))
    types = [_TYPES.get(column.type_code, pa.string()) for column in cursor.description]
    fields = [("id", types[0]), ("distance", pa.float64()), *zip(search.columns, types[1:], strict=True)]
    return pa.list_(pa.struct(fields))


def nearest(
    cursor: psycopg2.extensions.cursor,
    search: VectorSearch,
    vectors: npt.NDArray[np.float32],
    result: pa.DataType,
) -> pa.ListArray:
    """The neighbours of each vector, nearest first, those of one distance in the order of their ids.

    Args:
      vectors: [n, dim] float32, finite.
      result: what `result_type` said of this search.

    Returns:
      [n] lists of `result`'s type.

    Raises:
      psycopg2.ProgrammingError: the table is not what the search says.
      psycopg2.DataError: the vectors have another dimension.
    """
    if not len(vectors):
        return pa.array([], result)
    settings = search.settings()
    if settings:
        calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        cursor.execute(f"SELECT {calls}", [text for setting in settings.items() for text in setting])
    data = io.BytesIO()
    query = _statement(search, vectors, result).as_string(cursor)
    cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)", data)
    types = [field.type for field in result.value_type]
    numbers, *columns = parse_rows(data.getvalue(), [pa.int64(), *types])
    counts = np.bincount(numbers.to_numpy(), minlength=len(vectors) + 1)
    offsets = pa.array(np.cumsum(counts).astype(np.int32))
    rows = pa.StructArray.from_arrays(columns, fields=list(result.value_type))
    return pa.ListArray.from_arrays(offsets, rows, type=result)


def _statement(search: VectorSearch, vectors: npt.NDArray[np.float32], result: pa.DataType) -> sql.Composable:
    column: sql.Composable = sql.Identifier(search.vector_column)
    if search.dim is not None:
        column = sql.SQL("({}::vector({}))").format(column, sql.Literal(search.dim))
    names = (search.id_column, *search.columns)
    shown = [_shown(name, field.type) for name, field in zip(names, _without_distance(result), strict=True)]
    conditions = [condition.sql() for condition in search.where]
    return sql.SQL(
        "SELECT u.n, f.* FROM unnest({vectors}::vector[]) WITH ORDINALITY AS u (v, n) CROSS JOIN LATERAL "
        "(SELECT {id} AS id, {column} {reported} u.v AS distance{columns} FROM {table}{where} "
        "ORDER BY {column} {operator} u.v LIMIT {k}) AS f "
        "WHERE f.distance IS NOT NULL ORDER BY u.n, f.distance, f.id"
    ).format(
        vectors=sql.Literal("{" + ",".join(f'"{text}"' for text in vector_texts(vectors)) + "}"),
        id=shown[0],
        column=column,
        reported=sql.SQL(search.reported or search.operator),
        columns=sql.SQL("").join(sql.SQL(", {}").format(expression) for expression in shown[1:]),
        table=identifier(search.table),
        where=sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL(""),
        operator=sql.SQL(search.operator),
        k=sql.Literal(search.k),
    )


def _without_distance(result: pa.DataType) -> list[pa.Field]:
    return [field for field in result.value_type if field.name != "distance"]


def _shown(name: str, type_: pa.DataType) -> sql.Composable:
    """A column as CSV holds it: numbers as they are, anything else as text."""
    number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
    return sql.SQL("{}" if number else "{}::text").format(sql.Identifier(name))


def vector_texts(vectors: npt.NDArray[np.float32]) -> list[str]:
    """Vectors [n, dim] as pgvector reads them, `[0.1,…]`, exact to the last bit."""
    rows = np.ascontiguousarray(vectors, np.float32)
    return [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY).decode() for row in rows]
