"""Embeddings files that were written elsewhere, in the spellings that are common there.

Read as a release's own file where it is one, so at the same speed; else row by row, which knows: a byte order
mark, a header in other case, with more columns or none at all, vectors with blanks instead of commas (as
NumPy prints them), in braces (as PostgreSQL prints arrays) or not quoted, and integer ids as `103.0`.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from beamrec.model.embeddings import EMBEDDINGS_HEADER, KeyType, read_embeddings, wrong_id
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.integer_ids import canonical_id

__all__ = ["line_of_foreign_row", "read_foreign_embeddings"]

_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_MAX_FLOAT = float(np.finfo(np.float32).max)


def read_foreign_embeddings(path: Path, key_type: KeyType) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [rows, dim] float32; every vector has as many numbers as the first.

    Raises:
      BadDataError: with file and line: a number is not finite or missing, or an id empty or there twice.
    """
    first = next(_rows(path), None)
    if first is None:
        return [], np.zeros((0, 0), np.float32)
    dim = len(_numbers(first[2], f"{path}:{first[0]}"))
    try:
        return read_embeddings(path, dim, key_type=key_type)
    except BadDataError:
        return _read_tolerantly(path, dim, key_type)


def line_of_foreign_row(path: Path, row: int) -> int:
    """The line where a row of vectors begins, from 0; for messages."""
    return next(itertools.islice(_rows(path), row, None))[0]


def _read_tolerantly(path: Path, dim: int, key_type: KeyType) -> tuple[list[str], np.ndarray]:
    ids: dict[str, None] = {}
    vectors: list[np.ndarray] = []
    for line, given, cell in _rows(path):
        key = canonical_id(given, key_type)
        wrong = "a new id" if key in ids else wrong_id(key, key_type)
        if wrong:
            raise BadDataError(f"{path}:{line}: expected {wrong}, got {given[:80]!r}")
        ids[key] = None
        vectors.append(_numbers(cell, f"{path}:{line}"))
        if len(vectors[-1]) != dim:
            raise BadDataError(
                f"{path}:{line}: expected {dim} numbers, as in the first row; got {len(vectors[-1])}"
            )
    return list(ids), np.array(vectors, np.float32).reshape(len(ids), dim)


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, id, vector's text) of each row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        line = 1
        try:
            first = next(rows, None)
            if first is None:
                return
            header = [cell.strip().lower() for cell in first]
            places = _places(header, path)
            if header.count("embedding") != 1:
                yield 1, *_cells(first, places, f"{path}:1")
            line = rows.line_num + 1
            for row in rows:
                if row:
                    yield line, *_cells(row, places, f"{path}:{line}")
                line = rows.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadDataError(f"{path}:{line}: {error}") from None


def _places(header: list[str], path: Path) -> tuple[int, int]:
    """Where id and vector stand; without a header the id is first."""
    if "embedding" not in header:
        return 0, 1
    if any(header.count(name) != 1 for name in EMBEDDINGS_HEADER):
        raise BadDataError(f"{path}:1: expected the header id,embedding; got {','.join(header)[:80]!a}")
    return header.index("id"), header.index("embedding")


def _cells(row: list[str], places: tuple[int, int], where: str) -> tuple[str, str]:
    if len(row) <= max(places):
        raise BadDataError(f"{where}: expected an id and a vector, got {len(row)} columns")
    key, start = row[places[0]], places[1]
    # A vector that is not quoted was cut at its own commas.
    opened = row[start].strip()[:1]
    end = start + 1
    while opened in _BRACKETS and not row[end - 1].rstrip().endswith(_BRACKETS[opened]) and end < len(row):
        end += 1
    return key, ",".join(row[start:end])


def _numbers(cell: str, where: str) -> np.ndarray:
    """The vector [dim] float32 that a cell holds."""
    text = cell.strip()
    if "..." in text:
        raise BadDataError(
            f"{where}: the vector is cut short by '...', as NumPy prints long ones; write it with "
            "`json.dumps(vector.tolist())`"
        )
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        raise BadDataError(f"{where}: expected a vector as [0.1,…], got {text[:40]!a}")
    try:
        values = np.array([float(number) for number in _SEPARATOR.split(text[1:-1].strip())])
    except ValueError as error:
        raise BadDataError(f"{where}: expected finite numbers as [0.1,…]: {error}") from None
    if not (np.abs(values) <= _MAX_FLOAT).all():
        raise BadDataError(f"{where}: expected finite numbers within float32")
    return values.astype(np.float32)
