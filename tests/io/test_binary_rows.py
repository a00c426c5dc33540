"""Rows of a binary COPY, made here as PostgreSQL's documentation says."""

import struct
import tracemalloc

import numpy as np
import pytest

from beamrec.io.binary_rows import BinaryRows

_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)


def copied(ids: list[str], vectors: np.ndarray) -> bytes:
    """What COPY sends of ids and vectors [rows, dim]."""
    rows = []
    for key, vector in zip(ids, vectors, strict=True):
        value = struct.pack(">hh", len(vector), 0) + vector.astype(">f4").tobytes()
        name = key.encode()
        rows.append(struct.pack(">hi", 2, len(name)) + name + struct.pack(">i", len(value)) + value)
    return _HEADER + b"".join(rows) + _TRAILER


@pytest.mark.parametrize(("rows", "dim"), [(0, 3), (1, 1), (7, 2_000), (5_000, 3)])
def test_vectors_are_read_bit_by_bit_wherever_they_stand(rows: int, dim: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(rows, dim)).astype(np.float32)
    ids = ["x" * (number % 5) + "ü" for number in range(rows)]
    read = BinaryRows(copied(ids, vectors), 2)
    np.testing.assert_array_equal(read.vectors(1, dim), vectors)
    assert read.texts(0, np.ones(rows, bool)).to_pylist() == ids


def test_vectors_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="expected vectors of 4 numbers"):
        BinaryRows(copied(["a"], np.ones((1, 3), np.float32)), 2).vectors(1, 4)


def test_reading_vectors_takes_little_more_than_the_vectors() -> None:
    vectors = np.ones((8_000, 500), np.float32)
    read = BinaryRows(copied(["a"] * len(vectors), vectors), 2)
    tracemalloc.start()
    try:
        read.vectors(1, 500)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * vectors.nbytes
