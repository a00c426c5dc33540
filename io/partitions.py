"""Hive partitions: which rows belong to which folder, and what a folder is called."""

import datetime as dt
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.errors import BadDataError, UsageError

__all__ = [
    "BUCKET",
    "add_buckets",
    "bucket_numbers",
    "check_partition_columns",
    "check_partition_types",
    "split_partitions",
]

BUCKET = "bucket"

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# pyarrow and Spark leave out names that begin with these; DuckDB's globs and every reader's unescaping
# stumble over the others.
_UNREADABLE = re.compile(r"^[_.]|[=%?/\\\x00-\x1f\x7f]")
_MAX_NAME_BYTES = 255
# Other characters stay as they are: Spark decodes %C3%9F to two characters, the others to one.
_ESCAPED = re.compile(r"[\x00-\x7f](?<![A-Za-z0-9_.~-])")


def check_partition_columns(columns: Sequence[str], option: str) -> None:
    """Refuses columns whose names some reader of Hive folders does not understand.

    Raises:
      UsageError: a name begins with `_` or `.` or holds one of `= % ? / \\` or a control character.
    """
    for column in columns:
        if _UNREADABLE.search(column):
            raise UsageError(
                f"{option} {column!r}: a folder of that name is hidden from some readers, or misread; "
                "expected no leading _ or . and none of = % ? / \\: rename it by a view, or use --buckets"
            )


def check_partition_types(schema: pa.Schema, columns: Sequence[str], option: str) -> None:
    """Refuses columns whose values do not come back exactly from a path.

    Raises:
      UsageError: a column holds neither integers nor text nor dates.
    """
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_date32)
    for column in columns:
        found = schema.field(column).type
        if not any(kind(found) for kind in kinds):
            raise UsageError(f"{option} {column}: expected integers, text or dates, got {found}")


def bucket_numbers(keys: pa.Array, buckets: int) -> npt.NDArray[np.int32]:
    """The bucket of each key: the first eight hexadecimal digits of the MD5 of its text, modulo `buckets`.

    The text is a key's UTF-8, an integer's decimal digits; so 103 is in one bucket whatever the width of
    its column, and any database can say in which: `CONV(LEFT(MD5(k), 8), 16, 10) % 64` in MySQL. Only
    distinct keys are hashed.

    Args:
      keys: [rows] integers or text without NULL.
      buckets: at least 1.
    """
    encoded = pc.dictionary_encode(keys)
    digests = (hashlib.md5(str(key).encode(), usedforsecurity=False).digest() for key in _values(encoded))
    numbers = np.fromiter((int.from_bytes(digest[:4]) % buckets for digest in digests), np.int32)
    rows: npt.NDArray[np.int32] = numbers[encoded.indices.to_numpy()]
    return rows


def add_buckets(batch: pa.RecordBatch, key: str, buckets: int) -> pa.RecordBatch:
    """The batch with a last column `bucket`: numbers as text of one width (at least three), from "000"."""
    width = max(3, len(str(buckets - 1)))
    names = pa.array([f"{number:0{width}}" for number in range(buckets)])
    return batch.append_column(BUCKET, names.take(pa.array(bucket_numbers(batch.column(key), buckets))))


def split_partitions(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each partition under its folder, such as `country=Norway/city=Oslo`.

    ASCII characters with a meaning are percent-encoded, NULL is `__HIVE_DEFAULT_PARTITION__`. The order of
    rows within a partition is kept, and nothing is copied where each partition's rows stand together already.

    Args:
      batch: all columns.
      columns: partition columns, outermost first; none gives one partition with an empty folder.

    Yields:
      Partitions in the order of their first rows, with all columns.

    Raises:
      BadDataError: a value makes no folder that every reader gives back.
    """
    if not columns or not batch.num_rows:
        yield from [("", batch)] if batch.num_rows else []
        return
    codes = _codes(batch, columns)
    starts = _starts(codes)
    if len(np.unique(codes[starts])) < len(starts):
        order = np.argsort(codes, kind="stable")
        batch, codes = batch.take(pa.array(order)), codes[order]
        starts = _starts(codes)
    firsts = batch.select(list(columns)).take(pa.array(starts)).columns
    ends = [*starts[1:].tolist(), batch.num_rows]
    for start, end, values in zip(
        starts.tolist(), ends, zip(*map(_values, firsts), strict=True), strict=True
    ):
        yield _folder(columns, values), batch.slice(start, end - start)


def _values(array: pa.Array) -> list[Any]:
    values: list[Any] = (array.dictionary if pa.types.is_dictionary(array.type) else array).to_pylist()
    return values


def _codes(batch: pa.RecordBatch, columns: Sequence[str]) -> npt.NDArray[np.int64]:
    """[rows] one number per distinct combination of values, ascending by first appearance."""
    codes = np.zeros(batch.num_rows, np.int64)
    for column in columns:
        encoded = pc.dictionary_encode(batch.column(column), null_encoding="encode")
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        if column != columns[0]:
            # Numbers stay below the number of rows: five columns multiplied would not fit.
            codes = pc.dictionary_encode(pa.array(codes)).indices.to_numpy().astype(np.int64)
    return codes


def _starts(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts: npt.NDArray[np.int64] = np.flatnonzero(np.diff(codes, prepend=-1))
    return starts


def _folder(columns: Sequence[str], values: Sequence[Any]) -> str:
    return "/".join(f"{name}={_escape(name, value)}" for name, value in zip(columns, values, strict=True))


def _escape(column: str, value: Any) -> str:
    if value is None:
        return _HIVE_NULL
    text = value if isinstance(value, str) else _text(value)
    escaped = _ESCAPED.sub(lambda match: f"%{ord(match.group()):02X}", text)
    if not text or text == _HIVE_NULL:
        raise BadDataError(
            f"column {column}: {text!r} as a partition value reads as NULL, or not at all, in some readers; "
            "partition by another column, or use --buckets"
        )
    length = len(f"{column}={escaped}".encode())
    if length > _MAX_NAME_BYTES:
        raise BadDataError(
            f"column {column}: a value makes a folder name of {length} bytes, expected at most "
            f"{_MAX_NAME_BYTES}; partition by another column, or use --buckets"
        )
    return escaped


def _text(value: int | dt.date) -> str:
    return value.isoformat() if isinstance(value, dt.date) else str(value)
