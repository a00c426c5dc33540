"""Embeddings and popularity files: read and written in blocks, with errors that name file and line.

A block of a well-formed file is split by Arrow and its numbers are parsed as one JSON array, so that no
Python runs per row. A block that is anything but plain is read again row by row, which finds the line.
"""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from beamrec.schemas.embeddings import UNIT_TOLERANCE, KeyType, expected_length, wrong_id, wrong_lengths
from beamrec.schemas.errors import BadDataError

__all__ = [
    "EMBEDDINGS_HEADER",
    "UNIT_TOLERANCE",
    "KeyType",
    "check_lengths",
    "length_range",
    "line_of_row",
    "read_embeddings",
    "read_popularity",
    "vector_lengths",
    "write_embeddings",
    "write_popularity",
    "wrong_id",
]

EMBEDDINGS_HEADER, _POPULARITY_HEADER = ("id", "embedding"), ("id", "ratings")

_BLOCK_BYTES = 8 * 2**20
_BLOCK_ROWS = 8_192
# csv's own limit on a field, and a vector of the most dimensions in the most digits is a third of it.
_MAX_ROW_BYTES = 2**17
_MAX_FLOAT = float(np.finfo(np.float32).max)
_NUMBERS = b"0123456789+-.eE, \t"
_PLAIN_ID = re.compile(r'[^",\r\n]*')


# Writing ----------------------------------------------------------------------------------------------


def write_embeddings(path: Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Writes `id,embedding` with every float32 in the fewest digits that give it back exactly.

    Args:
      ids: [rows].
      vectors: [rows, dim] float32.

    Raises:
      ValueError: there are not as many ids as vectors.
    """
    if len(ids) != len(vectors):
        raise ValueError(f"{path}: expected an id for each vector; got {len(ids)} and {len(vectors)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write((",".join(EMBEDDINGS_HEADER) + "\n").encode())
        for start in range(0, len(ids), _BLOCK_ROWS):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK_ROWS], np.float32)
            cells = orjson.dumps(block, option=orjson.OPT_SERIALIZE_NUMPY).decode()[2:-2].split("],[")
            keys = ids[start : start + _BLOCK_ROWS]
            file.writelines(
                f'{_quoted(key)},"[{cell}]"\n'.encode() for key, cell in zip(keys, cells, strict=True)
            )


def _quoted(key: str) -> str:
    return key if _PLAIN_ID.fullmatch(key) else '"' + key.replace('"', '""') + '"'


def write_popularity(path: Path, ids: Sequence[str], ratings: Sequence[int]) -> None:
    """Writes `id,ratings`, most popular first: the fallback list, and the popularity seen in training."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_POPULARITY_HEADER)
        rows.writerows(zip(ids, ratings, strict=True))


def vector_lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean length [rows] float64 of vectors [rows, dim] float32, without a copy of all of them."""
    lengths = np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float64)
        lengths[start : start + _BLOCK_ROWS] = np.linalg.norm(block, axis=1)
    return lengths


def length_range(lengths: np.ndarray) -> tuple[float, float] | None:
    """The least and the greatest of lengths [rows]; None if there are none."""
    return (float(lengths.min()), float(lengths.max())) if len(lengths) else None


# Reading ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Block:
    """Whole rows of a CSV file, and the lines that stand before them."""

    data: bytes
    lines_before: int


def read_embeddings(
    path: Path, dim: int, rows: int | None = None, key_type: KeyType = "string"
) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [rows, dim] float32 of an embeddings file.

    Args:
      path: header `id,embedding`, then rows as `S10_1678,"[0.1,…]"`.
      dim: how many numbers each vector must have.
      rows: how many rows there must be; None if any number will do.
      key_type: `int` wants ids that are 64-bit integers in their shortest form.

    Raises:
      BadDataError: with file and line: a wrong header, dimension or number, a missing row, or an id that is
        empty, not of its type, or there twice.
    """
    size = path.stat().st_size
    if rows is not None and rows * (2 * dim + 3) > size:
        raise BadDataError(f"{path}: expected {rows} rows of {dim} numbers; {size} bytes cannot hold them")
    vectors = np.empty((rows or 0, dim), np.float32)
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for block in _blocks(path):
        keys, found = _parse_block(block, path, dim, key_type)
        if rows is None:
            parts.append(found)
        elif len(ids) + len(keys) <= rows:
            vectors[len(ids) : len(ids) + len(keys)] = found
        ids += keys
    if rows is not None and len(ids) != rows:
        line = line_of_row(path, min(rows, len(ids)))
        raise BadDataError(f"{path}:{line}: expected {rows} rows, as the manifest says; got {len(ids)}")
    _check_unique(ids, path)
    return ids, np.concatenate([vectors, *parts]) if parts else vectors


def _check_unique(ids: Sequence[str], path: Path) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    for row, key in enumerate(ids):
        if key in seen:
            raise BadDataError(f"{path}:{line_of_row(path, row)}: expected a new id, got {key!r} again")
        seen.add(key)


def _blocks(path: Path) -> Iterator[_Block]:
    """The rows behind the header in blocks of about `_BLOCK_BYTES`, cut where no value goes on."""
    with path.open("rb") as file:
        header = file.readline(_MAX_ROW_BYTES).rstrip(b"\r\n")
        if header != ",".join(EMBEDDINGS_HEADER).encode():
            raise BadDataError(
                f"{path}:1: expected the header {','.join(EMBEDDINGS_HEADER)}, got {header[:80]!a}"
            )
        lines, rest = 1, b""
        while data := file.read(_BLOCK_BYTES):
            rest += data
            end = _end_of_rows(rest)
            if len(rest) - end > _MAX_ROW_BYTES:
                line = lines + rest.count(b"\n", 0, end) + 1
                raise BadDataError(
                    f"{path}:{line}: expected a row of at most {_MAX_ROW_BYTES} bytes; this one goes on, or "
                    "a quote is not closed"
                )
            yield _Block(rest[:end], lines)
            lines += rest.count(b"\n", 0, end)
            rest = rest[end:]
        if rest:
            yield _Block(rest, lines)


def _end_of_rows(data: bytes) -> int:
    """Where the last whole row ends: behind a newline that has an even number of quotes before it."""
    end = data.rfind(b"\n") + 1
    quotes = data.count(b'"', 0, end)
    while end and quotes % 2:
        before = data.rfind(b"\n", max(0, len(data) - 2 * _MAX_ROW_BYTES), end - 1) + 1
        quotes -= data.count(b'"', before, end)
        end = before
    return end


def _parse_block(block: _Block, path: Path, dim: int, key_type: KeyType) -> tuple[list[str], np.ndarray]:
    found = _parse_plain(block.data, dim, key_type)
    return _parse_rows(block, path, dim, key_type) if found is None else found


def _parse_plain(data: bytes, dim: int, key_type: KeyType) -> tuple[list[str], np.ndarray] | None:
    """Ids and vectors of rows that are beyond doubt; None for a closer look."""
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                column_names=EMBEDDINGS_HEADER, use_threads=False, block_size=len(data) + 1
            ),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(EMBEDDINGS_HEADER, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    keys, cells = (column.combine_chunks() for column in table.columns)
    vectors = _plain_vectors(cells, dim)
    ids: list[str] = keys.to_pylist()
    if vectors is None or any(wrong_id(key, key_type) for key in ids):
        return None
    return ids, vectors


def _plain_vectors(cells: pa.StringArray, dim: int) -> np.ndarray | None:
    """Vectors [rows, dim] float32 of cells that are each `[`, `dim` numbers between commas, `]`."""
    rows = len(cells)
    _, ends, data = cells.buffers()
    if not rows or data is None:
        return None
    bounds = np.frombuffer(ends, np.int32)[cells.offset : cells.offset + rows + 1]
    text = data.to_pybytes()[bounds[0] : bounds[-1]]
    brackets = text.count(b"["), text.count(b"]"), text.count(b"][")
    framed = pc.and_(pc.starts_with(cells, "["), pc.ends_with(cells, "]"))
    whole = pc.and_(framed, pc.equal(pc.count_substring(cells, ","), dim - 1))
    if brackets != (rows, rows, rows - 1) or not pc.all(whole).as_py():
        return None
    flat = text.replace(b"][", b",")
    if flat[1:-1].translate(None, _NUMBERS):
        return None
    try:
        values = np.array(orjson.loads(flat), np.float64)
    except (orjson.JSONDecodeError, OverflowError, ValueError):
        return None
    if len(values) != rows * dim or not (np.abs(values) <= _MAX_FLOAT).all():
        return None
    return values.astype(np.float32).reshape(rows, dim)


def _parse_rows(block: _Block, path: Path, dim: int, key_type: KeyType) -> tuple[list[str], np.ndarray]:
    """As `_parse_plain`, row by row."""
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for line, key, cell in _rows(block, path):
        wrong = wrong_id(key, key_type)
        if wrong:
            raise BadDataError(f"{path}:{line}: expected {wrong}, got {key[:80]!r}")
        ids.append(key)
        vectors.append(_parse_vector(cell, dim, f"{path}:{line}"))
    return ids, np.array(vectors, np.float32).reshape(len(ids), dim)


def _parse_vector(cell: str, dim: int, where: str) -> np.ndarray:
    try:
        values = orjson.loads(cell)  # strict: it knows neither NaN nor Infinity
    except orjson.JSONDecodeError as error:
        raise BadDataError(f"{where}: expected finite numbers as [0.1,…]: {error}") from None
    if not isinstance(values, list) or len(values) != dim:
        found = f"{len(values)} numbers" if isinstance(values, list) else type(values).__name__
        raise BadDataError(f"{where}: expected {dim} numbers, got {found}")
    numbers = all(type(value) in (int, float) for value in values)
    if not numbers or not all(abs(value) <= _MAX_FLOAT for value in values):
        raise BadDataError(f"{where}: expected finite numbers within float32")
    return np.array(values, np.float64).astype(np.float32)


def line_of_row(path: Path, row: int) -> int:
    """The line where a row behind the header begins (a quoted id may hold newlines); for messages."""
    passed = 0
    for block in _blocks(path):
        for line, *_ in _rows(block, path):
            if passed == row:
                return line
            passed += 1
    with path.open("rb") as file:
        return 1 + sum(1 for _ in file)


def check_lengths(
    path: Path,
    lengths: np.ndarray,
    normalized: bool,
    operator: str,
    line_of: Callable[[Path, int], int] = line_of_row,
) -> None:
    """Checks that a release may hold the vectors of a file.

    Args:
      path: the file, for the message.
      lengths: of its vectors, [rows] float64.
      normalized: whether the release says that every vector has length one.
      operator: of the release's distance.
      line_of: the line of a row of the file.

    Raises:
      BadDataError: with file and line, a vector has another length than it must have.
    """
    wrong = wrong_lengths(lengths, normalized, operator)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadDataError(
            f"{path}:{line_of(path, row)}: expected a vector of {expected_length(normalized, operator)}, "
            f"got length {lengths[row]:.6g}"
        )


def read_popularity(path: Path) -> list[str]:
    """Item ids, most popular first.

    Raises:
      BadDataError: with file and line, if a row is not `id,ratings`, or an id stands there twice.
    """
    ids: dict[str, None] = {}
    with path.open("rb") as file:
        header = file.readline(_MAX_ROW_BYTES).rstrip(b"\r\n")
        if header != ",".join(_POPULARITY_HEADER).encode():
            raise BadDataError(f"{path}:1: expected the header {','.join(_POPULARITY_HEADER)}")
        for line, key, count in _rows(_Block(file.read(), 1), path):
            if not (count.isascii() and count.isdigit()):
                raise BadDataError(f"{path}:{line}: expected a number of ratings, got {count[:80]!r}")
            if key in ids:
                raise BadDataError(f"{path}:{line}: expected a new id, got {key[:80]!r} again")
            ids[key] = None
    return list(ids)


def _rows(block: _Block, path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, first, second) of CSV rows of two columns; the line is that where the row begins."""
    line = block.lines_before + 1
    rows = csv.reader(_lines(block.data), strict=True)
    try:
        for row in rows:
            if len(row) != 2:
                raise BadDataError(f"{path}:{line}: expected 2 columns, got {len(row)}")
            yield line, row[0], row[1]
            line = block.lines_before + rows.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadDataError(f"{path}:{line}: {error}") from None


def _lines(data: bytes) -> Iterator[str]:
    """One line at a time, so that bytes that are not UTF-8 are told of the line they are in."""
    return (line.decode("utf-8") for line in io.BytesIO(data))
