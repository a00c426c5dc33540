"""One table of a shop database, read as typed Arrow batches; rows that do not fit their types come apart."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from beamrec.io.arrow_types import NOT_OF_THE_TYPE, from_fitting, misfits, refuse_unknown, to_array
from beamrec.io.backend import Backend, Query
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.ranges import MalformedRow

__all__ = ["Row", "Rows", "TableReader", "match_columns"]

Row = tuple[Any, ...]
Rows = tuple[pa.RecordBatch, tuple[MalformedRow, ...]]

_KEYS_PER_QUERY = 500
_INTEGER = re.compile(r"-?[0-9]+")


@dataclasses.dataclass(frozen=True)
class TableReader:
    """A table with the columns that are read.

    Attributes:
      name: the table as the Shop names it.
      schema: the Shop's column names with the database's types; the key first.
      actual: the same columns as the database spells them.
    """

    backend: Backend
    name: str
    schema: pa.Schema
    actual: tuple[str, ...]
    bulk: bool

    @classmethod
    def open(
        cls, backend: Backend, connection: Any, table: str, columns: Sequence[str], bulk: bool
    ) -> "TableReader":
        """Looks the table's columns up; raises UsageError if one is not there or cannot be read."""
        types = backend.column_types(connection, table)
        actual = match_columns(columns, types, table)
        refuse_unknown({name: types[name] for name in actual}, table)
        fields = [pa.field(column, types[name]) for column, name in zip(columns, actual, strict=True)]
        return cls(backend, table, pa.schema(fields), tuple(actual), bulk)

    def column(self, position: int) -> str:
        """A column as it stands in SQL."""
        return self.backend.quote(self.actual[position])

    @property
    def source(self) -> str:
        """The table as it stands in SQL."""
        return self.backend.quote(self.name)

    def count(self, connection: Any) -> int:
        """`COUNT(*)`."""
        rows = self.backend.fetch(connection, f"SELECT COUNT(*) FROM {self.source}")  # noqa: S608
        return int(next(iter(rows))[0][0])

    def key_counts(
        self, connection: Any, condition: str = "1 = 1", parameters: Row = ()
    ) -> Iterator[tuple[Any, int]]:
        """Rows per key that meet a condition, ascending in the database's order; integer keys as int."""
        key = self.column(0)
        sql = f"SELECT {key}, COUNT(*) FROM {self.source} WHERE {condition} GROUP BY {key} ORDER BY {key}"  # noqa: S608
        for rows in self.backend.fetch(connection, sql, parameters):
            for value, count in rows:
                yield self._key(value, 0), int(count)

    def bounds(
        self, connection: Any, position: int, step: int, condition: str = "1 = 1", parameters: Row = ()
    ) -> list[Any]:
        """Every `step`-th value of a column among the rows that meet a condition, ascending, each once.

        Reads on from the last bound, so that each entry of an index is passed once.
        """
        column, mark = self.column(position), self.backend.PLACEHOLDER
        found: list[Any] = []
        while True:
            beyond = f"{column} > {mark}" if found else f"{column} IS NOT NULL"
            sql = (
                f"SELECT {column} FROM {self.source} WHERE {condition} AND {beyond} "  # noqa: S608
                f"ORDER BY {column} LIMIT 1 OFFSET {step - 1}"
            )
            fetched = self.backend.fetch(connection, sql, (*parameters, *found[-1:]))
            values = [value for rows in fetched for (value,) in rows]
            if not values:
                return found
            found.append(self._key(values[0], position))

    def read(self, connection: Any, condition: str | None = None, parameters: Row = ()) -> Rows:
        """Rows that meet a condition on quoted columns, typed by `schema`; and those that cannot be."""
        columns = tuple(zip(self.actual, self.schema.types, strict=True))
        query = Query(self.name, columns, condition, parameters)
        return self._typed(self.backend.read(connection, query, self.bulk))

    def equal_keys(self, connection: Any, values: Sequence[Any]) -> dict[Any, Any]:
        """Keys of this table that the database holds equal to values of another: value → key.

        Collations may ignore case, accents and trailing blanks; only the server knows their rules.
        """
        found: dict[Any, Any] = {}
        for start in range(0, len(values), _KEYS_PER_QUERY):
            chunk = values[start : start + _KEYS_PER_QUERY]
            # Most values that are not there byte for byte are not there at all: one query for many.
            if self._keys_equal_to(connection, chunk):
                for value in chunk:
                    # Of several equal keys any one would do; the smallest is the same in every run.
                    keys = self._keys_equal_to(connection, [value])
                    found.update({value: min(keys)} if keys else {})
        return found

    def _keys_equal_to(self, connection: Any, values: Sequence[Any]) -> list[Any]:
        marks = ", ".join([self.backend.PLACEHOLDER] * len(values))
        sql = f"SELECT {self.column(0)} FROM {self.source} WHERE {self.column(0)} IN ({marks})"  # noqa: S608
        return [key for rows in self.backend.fetch(connection, sql, values) for (key,) in rows]

    def _key(self, value: Any, position: int) -> Any:
        """A key as a bound of ranges: an integer, also of text; what SQLite holds besides stays as it is."""
        field = self.schema.field(position)
        if pa.types.is_string(field.type) and isinstance(value, bytes):
            # As a parameter it would be a BLOB, which SQLite holds above every text.
            raise BadDataError(
                f"table {self.name}, column {field.name}: a key is not text in UTF-8; mend it in the database"
            )
        is_number = pa.types.is_integer(field.type) and isinstance(value, str) and _INTEGER.fullmatch(value)
        return int(value) if is_number else value

    def _typed(self, columns: list[Sequence[Any] | pa.Array]) -> Rows:
        try:
            arrays = [
                to_array(values, type_) for values, type_ in zip(columns, self.schema.types, strict=True)
            ]
            return pa.RecordBatch.from_arrays(arrays, schema=self.schema), ()
        except NOT_OF_THE_TYPE:
            return self._sorted_out(columns)

    def _sorted_out(self, columns: list[Sequence[Any] | pa.Array]) -> Rows:
        """Rows with a value that does not fit, apart from the others; the first such column is named."""
        bad: dict[int, int] = {}
        for position, (values, type_) in enumerate(zip(columns, self.schema.types, strict=True)):
            for row in misfits(values, type_):
                bad.setdefault(row, position)
        malformed = tuple(self._malformed(columns, row, bad[row]) for row in sorted(bad))
        kept = [[_plain(v) for row, v in enumerate(values) if row not in bad] for values in columns]
        arrays = [from_fitting(values, type_) for values, type_ in zip(kept, self.schema.types, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema), malformed

    def _malformed(self, columns: list[Any], row: int, position: int) -> MalformedRow:
        values = {
            field.name: _fitted(_plain(column[row]), field.type)
            for field, column in zip(self.schema, columns, strict=True)
        }
        field = self.schema.field(position)
        return MalformedRow(self.name, field.name, str(field.type), values)


def match_columns(wanted: Sequence[str], available: Mapping[str, Any], table: str) -> list[str]:
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


def _plain(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else value


def _fitted(value: Any, type_: pa.DataType) -> Any:
    """The value as its column has it, so that a key is found again; what does not fit stays as it came."""
    try:
        return to_array([value], type_)[0].as_py()
    except NOT_OF_THE_TYPE:
        return value
