"""Rows of PostgreSQL's binary COPY as Arrow columns, without a Python object for every value.

The format (PostgreSQL's documentation, COPY): a header of 19 bytes; a row is its number of fields as int16,
then each field as an int32 length, -1 for NULL, and its bytes; the end is the number -1. All big-endian. An
array is its number of dimensions, flags, element type, then length and lower bound, then its elements as
fields.
"""

import array
import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["BinaryRows"]

_HEADER = 19
_ARRAY_HEADER = 20
_CHUNK_BYTES = 2**22
_COUNT = struct.Struct(">h")
_LENGTH = struct.Struct(">i")
_Ints = npt.NDArray[np.int64]


class BinaryRows:
    """What a COPY sent.

    Args:
      data: all of it.
      fields: number of columns.
    """

    def __init__(self, data: bytes | memoryview, fields: int) -> None:
        self._data = np.frombuffer(data, np.uint8)
        # Positions and lengths of the fields: [rows, fields].
        self._starts, self._lengths = _fields(data, fields)

    @classmethod
    def copied(cls, cursor: Any, query: str, fields: int) -> "BinaryRows":
        """The answer to a query, whose parameters stand in it as literals."""
        data = io.BytesIO()
        cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT binary)", data)
        return cls(data.getbuffer(), fields)

    def __len__(self) -> int:
        return len(self._starts)

    def is_null(self, field: int) -> npt.NDArray[np.bool_]:
        """Whether the field is NULL: [rows]."""
        return self._lengths[:, field] < 0

    def texts(self, field: int, rows: npt.NDArray[np.bool_]) -> pa.StringArray:
        """A column of text in the rows chosen, none of it NULL."""
        return self._strings(self._starts[rows, field], self._lengths[rows, field])

    def text_lists(self, field: int, rows: npt.NDArray[np.bool_]) -> pa.ListArray:
        """A column of text[] in the rows chosen, nothing in it NULL."""
        sizes, places = self._arrays(field, rows)
        widest = int(sizes.max(initial=0))
        starts = np.zeros((len(sizes), widest), np.int64)
        lengths = np.zeros((len(sizes), widest), np.int64)
        # Where an element begins is known once the one before it is: a column of elements at a time.
        for number in range(widest):
            there = sizes > number
            lengths[there, number] = self._numbers(places[there], ">i4")
            starts[there, number] = places[there] + 4
            places[there] += 4 + lengths[there, number]
        used = np.arange(widest) < sizes[:, None]
        return _lists(sizes, self._strings(starts[used], lengths[used]))

    def float_lists(self, field: int, rows: npt.NDArray[np.bool_]) -> pa.ListArray:
        """A column of real[] in the rows chosen, nothing in it NULL, as lists of float64."""
        sizes, places = self._arrays(field, rows)
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        values = self._numbers(np.repeat(places, sizes) + 8 * within + 4, ">f4")
        # By their shortest text: 0.71 stays 0.71, and does not become 0.7099999785423279.
        return _lists(sizes, pa.array(values.astype(np.float32)).cast(pa.string()).cast(pa.float64()))

    def vectors(self, field: int, dim: int) -> npt.NDArray[np.float32]:
        """A column of vectors, [rows, dim].

        Raises:
          ValueError: one has another dimension.
        """
        if (self._lengths[:, field] != 4 + 4 * dim).any():
            raise ValueError(f"binary COPY: expected vectors of {dim} numbers")
        found = np.empty((len(self._starts), dim), np.float32)
        if not len(found):
            return found
        # A vector's bytes at every place: taken by their rows, where an index of every byte took eight more.
        windows = np.lib.stride_tricks.sliding_window_view(self._data, 4 * dim)
        chunk = max(1, _CHUNK_BYTES // (4 * dim))
        for start in range(0, len(found), chunk):
            rows = slice(start, start + chunk)
            # pgvector sends the dimension and two unused bytes before the numbers.
            found[rows] = windows[self._starts[rows, field] + 4].view(">f4")
        return found

    def _arrays(self, field: int, rows: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints]:
        """Number of elements of each array, and where its first one stands."""
        starts = self._starts[rows, field]
        some = self._numbers(starts, ">i4") > 0
        sizes = np.zeros(len(starts), np.int64)
        sizes[some] = self._numbers(starts[some] + 12, ">i4")
        return sizes, starts + _ARRAY_HEADER

    def _numbers(self, places: _Ints, kind: str) -> npt.NDArray[Any]:
        numbers: npt.NDArray[Any] = self._data[places[:, None] + np.arange(4)].view(kind).ravel()
        return numbers

    def _strings(self, starts: _Ints, lengths: _Ints) -> pa.StringArray:
        ends = np.cumsum(lengths)
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        picked = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
        text = pa.py_buffer(self._data[picked].tobytes())
        return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets.tobytes()), text)


def _lists(sizes: _Ints, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32), values)


def _fields(data: bytes | memoryview, fields: int) -> tuple[_Ints, _Ints]:
    starts, lengths = array.array("q"), array.array("q")
    place = _HEADER
    count, length = _COUNT.unpack_from, _LENGTH.unpack_from
    while (found := count(data, place)[0]) != -1:
        if found != fields:
            raise ValueError(f"binary COPY: expected rows of {fields} fields, got {found}")
        place += 2
        for _ in range(fields):
            size = length(data, place)[0]
            place += 4
            starts.append(place)
            lengths.append(size)
            if size > 0:
                place += size
    shape = (-1, fields)
    return np.array(starts).reshape(shape), np.array(lengths).reshape(shape)
