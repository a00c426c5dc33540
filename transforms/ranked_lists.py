"""List columns whose entries belong to a row each: filtered, and as Python values, without a loop by row.

`pyarrow` turns a list of structs into Python values at some 20,000 rows of ten entries a second; column by
column it is several times faster.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ProductsOfRows", "as_objects", "kept", "lengths_of", "ranks_of", "sliced"]

_Rows = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


class ProductsOfRows:
    """Which products stand in which row's list.

    Args:
      rows: int64 [n], the row of each product.
      products: string [n].
    """

    def __init__(self, rows: _Rows, products: pa.Array) -> None:
        self._rows, self._products = rows, products

    def have(self, rows: _Rows, products: pa.Array) -> _Flags:
        """Whether `products[i]` stands in the list of row `rows[i]`: bool [len(rows)]."""
        known = self._products.dictionary_encode()
        size = max(len(known.dictionary), 1)
        own = np.sort(self._rows * size + _indices(known.indices))
        codes = _indices(pc.index_in(products, value_set=known.dictionary).fill_null(-1))
        asked = np.where(codes < 0, -1, rows * size + codes)
        place = np.minimum(np.searchsorted(own, asked), max(len(own) - 1, 0))
        return own[place] == asked if len(own) else np.zeros(len(asked), bool)


def lengths_of(lists: pa.ListArray) -> _Rows:
    """Entries of each list; a null has none."""
    return np.asarray(lists.value_lengths().fill_null(0).cast(pa.int64()))


def ranks_of(groups: _Rows) -> _Rows:
    """Places from 1 among equal neighbours: [3, 3, 5, 3] → [1, 2, 1, 1]."""
    places = np.arange(len(groups))
    begins = np.ones(len(groups), bool)
    begins[1:] = groups[1:] != groups[:-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0)) + 1


def kept(lists: pa.ListArray, flags: _Flags, most: int | None = None) -> pa.ListArray:
    """The lists with those entries whose flag is set, the first `most` of each.

    Args:
      flags: bool [number of all entries].
    """
    lengths = lengths_of(lists)
    starts = np.cumsum(lengths) - lengths
    before = np.concatenate([[0], np.cumsum(flags)])
    if most is not None:
        rank = before[1:] - np.repeat(before[starts], lengths)
        flags = flags & (rank <= most)
        before = np.concatenate([[0], np.cumsum(flags)])
    offsets = np.append(before[starts], before[-1]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, lists.flatten().filter(pa.array(flags)), type=lists.type)


def as_objects(lists: pa.ListArray) -> list[list[dict[str, Any]]]:
    """Lists of structs of plain values as Python has them."""
    entries = lists.flatten()
    names = [field.name for field in lists.type.value_type]
    columns = (entries.field(name).to_pylist() for name in names)
    objects = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return sliced(objects, lengths_of(lists))


def sliced(entries: Sequence[Any], lengths: _Rows) -> list[Any]:
    """A flat list cut into pieces of those lengths."""
    ends = [0, *np.cumsum(lengths).tolist()]
    return [entries[begin:end] for begin, end in pairwise(ends)]


def _indices(values: pa.Array) -> _Rows:
    return np.asarray(values).astype(np.int64)
