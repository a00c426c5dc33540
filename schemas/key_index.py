"""Rows of a table by their keys, whose look-up structure is made once for all ranges."""

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["KeyIndex", "find_rows"]

# Arrow's `index_in` makes its hash table anew on every call: for 200,000 values among 500,000 keys that is
# 80 ms, of which the values themselves take 2. Below this many keys it is the faster one nevertheless.
_FEW_KEYS = 150_000
_HASHED_BYTES = 256
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 by the golden ratio
_WORD_MASKS = np.array([256**size - 1 for size in range(9)], np.uint64)
_Hashes = npt.NDArray[np.uint64]


class KeyIndex:
    """Finds rows by key in one array of distinct keys, again and again.

    Args:
      keys: integers of any width, or text.
    """

    def __init__(self, keys: pa.Array) -> None:
        self._keys = keys

    @functools.cached_property
    def _table(self) -> "_HashTable | None":
        # At its first use: integer keys of a range, for example, are never looked up by its reader.
        return _HashTable.of(self._keys) if len(self._keys) > _FEW_KEYS else None

    def rows(self, values: pa.Array) -> pa.Array:
        """Row of each value as int32; NULL where it is NULL or not there.

        Integers of any width are compared as numbers, text by its bytes.
        """
        if self._table is None or not len(values):
            return find_rows(values, self._keys)
        return self._table.rows(values)


def find_rows(values: pa.Array, keys: pa.Array) -> pa.Array:
    """`KeyIndex(keys).rows(values)` for keys that are used once."""
    return pc.index_in(_comparable(values, keys.type), value_set=_bits(keys), skip_nulls=True)


class _HashTable:
    """Keys in the order of their hashes, and where those with one prefix of the hash begin."""

    def __init__(self, keys: pa.Array, hashes: _Hashes, order: npt.NDArray[np.int32]) -> None:
        bits = len(hashes).bit_length() + 1
        self._type = keys.type
        self._keys = _bits(keys)
        self._shift = np.uint64(64 - bits)
        self._order = order
        self._hashes = hashes
        sizes = np.bincount((self._hashes >> self._shift).astype(np.int64), minlength=1 << bits)
        self._most = int(sizes.max())
        self._begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    @classmethod
    def of(cls, keys: pa.Array) -> "_HashTable | None":
        """A table, or None where two keys have one hash, or have none."""
        if keys.null_count or not (pa.types.is_integer(keys.type) or pa.types.is_string(keys.type)):
            return None
        hashes = _hash(keys)
        order = np.argsort(hashes).astype(np.int32)
        hashes = hashes[order]
        return cls(keys, hashes, order) if (hashes[1:] != hashes[:-1]).all() else None

    def rows(self, values: pa.Array) -> pa.Array:
        """As `KeyIndex.rows`, of at least one value."""
        hashes = _hash(values)
        last = len(self._hashes) - 1
        places = np.minimum(self._begins[hashes >> self._shift], last)
        missed = np.flatnonzero(self._hashes[places] != hashes)
        for _ in range(self._most - 1):
            places[missed] = np.minimum(places[missed] + 1, last)
            missed = missed[self._hashes[places[missed]] != hashes[missed]]
        rows = pa.array(self._order[places])
        # Equal hashes are no proof: what was found is compared with what was looked for.
        return pc.if_else(pc.equal(_comparable(values, self._type), self._keys.take(rows)), rows, None)


def _bits(values: pa.Array) -> pa.Array:
    """Integers as the 64 bits of an int64, text as it is."""
    return pc.cast(values, pa.int64(), safe=False) if pa.types.is_integer(values.type) else values


def _comparable(values: pa.Array, keys: pa.DataType) -> pa.Array:
    """Bits that only an equal key has; NULL where no key of that type can be equal."""
    bits = _bits(values)
    if pa.types.is_integer(values.type) and pa.types.is_uint64(values.type) != pa.types.is_uint64(keys):
        # -1 and 2**64 - 1 have the same bits.
        return pc.if_else(pc.less(bits, 0), None, bits)
    return bits


def _hash(values: pa.Array) -> _Hashes:
    """64 bits of each value; NULL has those of some value."""
    if not pa.types.is_integer(values.type):
        return _hash_text(values)
    numbers: _Hashes = pc.fill_null(_bits(values), 0).to_numpy().view(np.uint64)
    return _mixed(numbers)


def _hash_text(values: pa.Array) -> _Hashes:
    """Of the size and the first 256 bytes, eight at a time."""
    _, ends, text = values.buffers()
    bounds = np.frombuffer(ends, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    first, starts, sizes = int(bounds[0]), bounds[:-1] - bounds[0], np.diff(bounds)
    # Eight spare bytes, so that the end of the last text can be read as a whole word.
    data = np.zeros(int(bounds[-1]) - first + 8, np.uint8)
    if text is not None:
        data[:-8] = np.frombuffer(text, np.uint8)[first : int(bounds[-1])]
    words = np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))
    hashes = sizes.astype(np.uint64)
    longer = np.arange(len(sizes))
    for begin in range(0, min(int(sizes.max()), _HASHED_BYTES), 8):
        longer = longer[sizes[longer] > begin]
        word = words[starts[longer] + begin] & _WORD_MASKS[np.minimum(sizes[longer] - begin, 8)]
        hashes[longer] = _mixed(hashes[longer] ^ word)
    return _mixed(hashes)


def _mixed(numbers: _Hashes) -> _Hashes:
    """Spreads numbers over all 64 bits, the upper ones above all."""
    mixed = numbers * _MIX
    return (mixed ^ (mixed >> np.uint64(29))) * _MIX
