"""Mergeable summaries of weighted columns, the same whatever the order and number of the parts.

The weight of a value is the number of training rows that hold it, so that a column of a small table is
summarised without being joined.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.hashing import mix
from beamrec.schemas.report import Categories, Numbers, bucket_of
from beamrec.transforms.numbers import to_float64

__all__ = [
    "MAX_CATEGORIES",
    "TOP_CATEGORIES",
    "CategorySketch",
    "NumberSketch",
    "sampling_levels",
    "sum_by",
]

MAX_CATEGORIES = 16_384
"""Different values up to which a category column is counted exactly."""

TOP_CATEGORIES = 500
"""Values that a report names."""

_MAX_CHARACTERS = 100
# Keys whose range is at most so many times their number are summed by place, far faster than by sorting.
_DENSE = 8
_MANTISSA_BITS = 53
# Sums are integers in units of the smallest subnormal's last mantissa bit, as `frexp` gives it.
_UNIT_EXPONENT = -1073 - _MANTISSA_BITS

_Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class NumberSketch:
    """Weighted numbers, cast to float64 once.

    Attributes:
      buckets, counts: distinct `bucket_of` values ascending, and their weights: [num_buckets] int64.
      nulls, not_finite: weight of NULL, and of NaN and infinity; neither is in the buckets.
      minimum, maximum: of the finite values; inf and -inf if there are none.
      total: exact sum of value times weight, in units of 2**-1126.
    """

    buckets: _Ints
    counts: _Ints
    nulls: int
    not_finite: int
    minimum: float
    maximum: float
    total: int

    @classmethod
    def of(cls, values: pa.Array, weights: _Ints) -> "NumberSketch":
        """Sketch of a column of integers, decimals or floats.

        Args:
          values: [num_values].
          weights: [num_values], positive; below 2**36 together.
        """
        valid = pc.is_valid(values).to_numpy(zero_copy_only=False)
        numbers = to_float64(values.filter(pa.array(valid))).to_numpy()
        finite = np.isfinite(numbers)
        numbers, counts = numbers[finite], weights[valid][finite]
        buckets, sums = sum_by(bucket_of(numbers), counts)
        return cls(
            buckets,
            sums,
            nulls=int(weights[~valid].sum()),
            not_finite=int(weights[valid].sum() - counts.sum()),
            minimum=float(numbers.min(initial=np.inf)),
            maximum=float(numbers.max(initial=-np.inf)),
            total=_exact_sum(numbers, counts),
        )

    @classmethod
    def merge(cls, parts: Sequence["NumberSketch"]) -> "NumberSketch":
        """The sketch of all parts together; at least one."""
        buckets, counts = sum_by(
            np.concatenate([part.buckets for part in parts]), np.concatenate([part.counts for part in parts])
        )
        return cls(
            buckets,
            counts,
            nulls=sum(part.nulls for part in parts),
            not_finite=sum(part.not_finite for part in parts),
            minimum=min(part.minimum for part in parts),
            maximum=max(part.maximum for part in parts),
            total=sum(part.total for part in parts),
        )

    def distribution(self) -> Numbers | None:
        """What a report says of it; None without a finite value."""
        count = int(self.counts.sum())
        if not count:
            return None
        mean = Fraction(self.total, count << -_UNIT_EXPONENT)
        buckets = zip(self.buckets.tolist(), self.counts.tolist(), strict=True)
        return Numbers(self.minimum, self.maximum, float(mean), tuple(buckets))


@dataclasses.dataclass(frozen=True, eq=False)
class CategorySketch:
    """Weighted categories, counted exactly up to `MAX_CATEGORIES` different values.

    Beyond that only the customers of a sample count: each customer has a level by the hash of its key
    (`sampling_levels`: a half of them 0, a quarter 1, …), weights are kept by value and level, and levels
    below `min_level` are dropped, which is the lowest that leaves at most `MAX_CATEGORIES` values. What
    is left depends on the data alone, not on how it was divided (adaptive sampling: Flajolet, "On
    adaptive sampling", 1990). A share p is then off by about sqrt(p / customers in the sample).

    Attributes:
      values: distinct within a level, cut after 100 characters: [num_entries] string.
      levels, counts: their level and weight: [num_entries] int64. A value has one entry a level, that is,
        about as many as the logarithm of its customers.
      min_level: the levels below are not there.
      nulls, empty, rows: exact weights of NULL, of the empty string, and of everything.
    """

    values: pa.Array
    levels: _Ints
    counts: _Ints
    min_level: int
    nulls: int
    empty: int
    rows: int

    @classmethod
    def of(cls, values: pa.Array, weights: _Ints, levels: _Ints | None = None) -> "CategorySketch":
        """Sketch of a column.

        Args:
          values: [num_values] of any type; other than text they are counted by how they are written.
          weights: [num_values], positive.
          levels: [num_values], `sampling_levels` of the rows' keys; None never samples.
        """
        valid = pc.is_valid(values).to_numpy(zero_copy_only=False)
        texts = _texts(values.filter(pa.array(valid)))
        counts = weights[valid]
        empty = pc.equal(texts, "").to_numpy(zero_copy_only=False)
        found = (levels if levels is not None else np.zeros(len(weights), np.int64))[valid]
        exact = (int(weights[~valid].sum()), int(counts[empty].sum()), int(weights.sum()))
        return cls(*_sum_entries(texts, found, counts), 0, *exact)._bounded(levels is not None)

    @classmethod
    def merge(cls, parts: Sequence["CategorySketch"]) -> "CategorySketch":
        """The sketch of all parts together; at least one."""
        entries = _sum_entries(
            pa.concat_arrays([part.values for part in parts]),
            np.concatenate([part.levels for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )
        exact = (sum(getattr(part, name) for part in parts) for name in ("nulls", "empty", "rows"))
        merged = cls(*entries, max(part.min_level for part in parts), *exact)
        return merged._from_level(merged.min_level)._bounded(True)

    def distribution(self) -> Categories | None:
        """What a report says of it; None without a value."""
        if self.rows == self.nulls:
            return None
        values, counts = self.values, self.counts
        if self.levels.any():
            values, _, counts = _sum_entries(values, np.zeros_like(self.levels), counts)
        found = pa.table({"value": values, "count": counts})
        order = [("count", "descending"), ("value", "ascending")]
        top = found.take(pc.select_k_unstable(found, TOP_CATEGORIES, order)).to_pydict()
        scale = Fraction(self.rows - self.nulls, max(int(counts.sum()), 1))
        return Categories(
            distinct=len(values),
            sampled_share=2.0**-self.min_level,
            top=tuple(
                (value, round(count * scale)) for value, count in zip(top["value"], top["count"], strict=True)
            ),
        )

    def _bounded(self, may_sample: bool) -> "CategorySketch":
        sketch = self
        while may_sample and len(sketch.values) > MAX_CATEGORIES and sketch._distinct() > MAX_CATEGORIES:
            sketch = sketch._from_level(sketch.min_level + 1)
        return sketch

    def _distinct(self) -> int:
        return len(self.values.dictionary_encode().dictionary)

    def _from_level(self, level: int) -> "CategorySketch":
        kept = self.levels >= level
        if kept.all():
            return dataclasses.replace(self, min_level=level)
        return dataclasses.replace(
            self,
            values=self.values.filter(pa.array(kept)),
            levels=self.levels[kept],
            counts=self.counts[kept],
            min_level=level,
        )


def sampling_levels(keys: pa.Array) -> _Ints:
    """Level of each key, from a hash of it: 0 for a half of all keys, 1 for a quarter, and so on.

    Args:
      keys: [num_keys] integers or text, without NULL.
    """
    hashes = _text_numbers(keys) if pa.types.is_string(keys.type) else _integer_numbers(keys)
    hashes = mix(hashes)
    lowest_bit = hashes & (~hashes + np.uint64(1))
    # A power of two is exact as a float; a hash of 0 has no lowest bit and is as rare as level 63.
    levels: _Ints = np.where(hashes == 0, 63, np.frexp(lowest_bit.astype(np.float64))[1] - 1).astype(np.int64)
    return levels


def sum_by(keys: _Ints, counts: _Ints) -> tuple[_Ints, _Ints]:
    """Distinct keys, ascending, and the sum of the counts of each, which are positive."""
    first, last = (int(keys.min()), int(keys.max())) if len(keys) else (0, 0)
    if last - first < _DENSE * len(keys):
        # Sums as float64 are exact: no table has 2**53 rows.
        sums = np.bincount(keys - first, weights=counts).astype(np.int64)
        present = np.flatnonzero(sums)
        return present + first, sums[present]
    # `np.unique` hashes integers in NumPy 2.4 and took 18 s where sorting took less than one.
    order = np.argsort(keys)
    ordered = keys[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))[: len(keys)]
    return ordered[starts], np.add.reduceat(counts[order], starts) if len(keys) else counts


def _exact_sum(values: npt.NDArray[np.float64], counts: _Ints) -> int:
    """Sum of value times count in units of 2**-1126; no intermediate result is rounded."""
    if not len(values):
        return 0
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, _MANTISSA_BITS).astype(np.int64)
    first = int(exponents.min())
    # Halves of 27 bits: times a weight below 2**36 they fit int64.
    halves = ((whole >> 27, 27), (whole & (2**27 - 1), 0))
    total = 0
    for half, shift in halves:
        sums = np.zeros(int(exponents.max()) - first + 1, np.int64)
        np.add.at(sums, exponents - first, half * counts)
        for place in np.flatnonzero(sums).tolist():
            total += int(sums[place]) << (first + place + shift - _MANTISSA_BITS - _UNIT_EXPONENT)
    return total


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        values = pa.array([value.hex() for value in values.to_pylist()], pa.string())
    return pc.utf8_slice_codeunits(pc.cast(values, pa.string()), 0, _MAX_CHARACTERS)


def _sum_entries(values: pa.Array, levels: _Ints, counts: _Ints) -> tuple[pa.Array, _Ints, _Ints]:
    encoded = values.dictionary_encode()
    width = int(levels.max(initial=0)) + 1
    keys, sums = sum_by(encoded.indices.to_numpy().astype(np.int64) * width + levels, counts)
    return encoded.dictionary.take(pa.array(keys // width)), keys % width, sums


def _integer_numbers(keys: pa.Array) -> npt.NDArray[np.uint64]:
    numbers: npt.NDArray[np.uint64] = pc.cast(keys, pa.int64(), safe=False).to_numpy().view(np.uint64)
    return numbers


def _text_numbers(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """A polynomial of each text's bytes modulo 2**64: [num_keys]."""
    lengths = pc.binary_length(keys).to_numpy().astype(np.int64)
    data = np.frombuffer(b"".join(keys.cast(pa.binary()).to_pylist()), np.uint8).astype(np.uint64)
    ends = np.cumsum(lengths)
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, 0x100000001B3, np.uint64))
    places = np.arange(len(data)) - np.repeat(ends - lengths, lengths)
    sums = np.append(np.uint64(0), np.cumsum((data + np.uint64(1)) * powers[places], dtype=np.uint64))
    numbers: npt.NDArray[np.uint64] = sums[ends] - sums[ends - lengths]
    return numbers
