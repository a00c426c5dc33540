"""Lines of JSON as columns of a fixed schema, without losing what does not fit it."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa

from beamrec.schemas.records import OTHER_FIELDS

__all__ = ["to_columns"]

_DIGITS = re.compile(r"[+-]?\d{1,18}")
_INT64 = 1 << 63
_EXACT_FLOAT = 1 << 53
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def to_columns(lines: Sequence[bytes], schema: pa.Schema) -> pa.Table:
    """Parses lines into `schema`, whose last column is `OTHER_FIELDS`.

    Args:
      lines: one JSON object each.

    Returns:
      As many rows. A field without a column, or with a value that its column cannot hold exactly, stands
      in `OTHER_FIELDS`; of the latter the column holds what it can.
    """
    fields = [field for field in schema if field.name != OTHER_FIELDS]
    return pa.Table.from_pylist([_row(orjson.loads(line), fields) for line in lines], schema=schema)


def _row(record: dict[str, Any], fields: Sequence[pa.Field]) -> dict[str, Any]:
    row, other = {}, record
    for field in fields:
        value = record.get(field.name)
        row[field.name], exact = _fit(value, field.type)
        if exact:
            other.pop(field.name, None)
    row[OTHER_FIELDS] = orjson.dumps(other).decode() if other else None
    return row


def _fit(value: Any, kind: pa.DataType) -> tuple[Any, bool]:
    """What a column of a type holds of a value, and whether that is all of it."""
    if value is None:
        return None, True
    if pa.types.is_list(kind):
        return _fit_list(value, kind.value_type)
    if pa.types.is_struct(kind):
        return _fit_struct(value, kind)
    fitted = _fit_scalar(value, kind)
    return fitted, fitted is not None


def _fit_list(value: Any, kind: pa.DataType) -> tuple[Any, bool]:
    if not isinstance(value, list):
        return None, False
    fitted = [_fit(entry, kind) for entry in value]
    return [entry for entry, _ in fitted], all(exact for _, exact in fitted)


def _fit_struct(value: Any, kind: pa.StructType) -> tuple[Any, bool]:
    if not isinstance(value, Mapping):
        return None, False
    fitted = {kind[i].name: _fit(value.get(kind[i].name), kind[i].type) for i in range(kind.num_fields)}
    exact = value.keys() <= fitted.keys() and all(exact for _, exact in fitted.values())
    return {name: entry for name, (entry, _) in fitted.items()}, exact


def _fit_scalar(value: Any, kind: pa.DataType) -> Any:
    """The value as the type has it, None if it does not fit; a number may be written as text."""
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else None
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    if pa.types.is_int64(kind):
        return _fit_integer(value)
    if pa.types.is_timestamp(kind):
        return _time(value)
    number = isinstance(value, float) or (type(value) is int and abs(value) <= _EXACT_FLOAT)
    return float(value) if number else None


def _fit_integer(value: Any) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return value if type(value) is int and -_INT64 <= value < _INT64 else None


def _time(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) and _RFC3339.fullmatch(value) else None
