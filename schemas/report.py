"""The data report: what the training files hold, column by column, small enough to keep beside them.

Numbers are kept as counts of log-linear buckets (`bucket_of`), so that a later run can be compared with
this one at any boundary without the data.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from beamrec.schemas.errors import UsageError

__all__ = [
    "REPORT_FORMAT",
    "Categories",
    "ColumnProfile",
    "EntityProfile",
    "Numbers",
    "Report",
    "bucket_bounds",
    "bucket_of",
]

REPORT_FORMAT = 1

# 6 bits of the mantissa: 64 buckets an octave, so that integers up to 128 have a bucket each.
_DROPPED_BITS = 52 - 6

Key = int | str


def bucket_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Bucket of each finite value, ascending with it: 0 for zero (and for below 1e-309), negative for
    negative values.

    The leading bits of the IEEE 754 pattern, that is, linear buckets inside each octave, as in HdrHistogram.
    Unlike a logarithm they are the same on every machine. A bucket is at most 1/64 of its lower bound wide;
    all of float64 has 131,000 buckets on either side of zero, so that no bound on their number is needed.
    """
    magnitudes = np.abs(values).view(np.int64) >> _DROPPED_BITS
    return np.where(values < 0, -magnitudes, magnitudes)


def bucket_bounds(bucket: int) -> tuple[float, float]:
    """Lower and upper bound of a bucket; the one nearer to zero belongs to it, the other to its neighbour."""
    if bucket == 0:
        return 0.0, 0.0
    near, far = (_float(magnitude << _DROPPED_BITS) for magnitude in (abs(bucket), abs(bucket) + 1))
    return (near, far) if bucket > 0 else (-far, -near)


def _float(pattern: int) -> float:
    # The bound above the last bucket would be infinity.
    return min(float(np.int64(pattern).view(np.float64)), sys.float_info.max)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Distribution of a number column over the training rows.

    Attributes:
      minimum, maximum: exact, as float64.
      mean: the exact sum of the float64 values by their number, rounded once.
      buckets: (`bucket_of`, rows), ascending.
    """

    minimum: float
    maximum: float
    mean: float
    buckets: tuple[tuple[int, int], ...]

    def quantile(self, share: float) -> float:
        """The least value that `share` (0 to 1) of the rows do not exceed, within 1/64 of itself.

        It is the bound of a bucket that is nearer to zero, so that small integers are exact.
        """
        counts = np.cumsum([count for _, count in self.buckets])
        place = int(np.searchsorted(counts, share * counts[-1]))
        nearer = min(bucket_bounds(self.buckets[min(place, len(counts) - 1)][0]), key=abs)
        return min(max(nearer, self.minimum), self.maximum)


@dataclasses.dataclass(frozen=True)
class Categories:
    """Distribution of any other column over the training rows.

    Attributes:
      distinct: different values, the empty string included; a lower bound if `sampled_share` is below 1.
      sampled_share: part of the customers that `top` was counted over; 1 means that it is exact.
      top: (value, rows) of the most frequent, descending, of equally frequent ascending by value; long
        values are cut. Rows are estimates if `sampled_share` is below 1.
    """

    distinct: int
    sampled_share: float
    top: tuple[tuple[str, int], ...]

    @property
    def is_complete(self) -> bool:
        """Whether `top` holds every value."""
        return self.sampled_share == 1 and self.distinct == len(self.top)


@dataclasses.dataclass(frozen=True)
class ColumnProfile:
    """One training column.

    Attributes:
      table, name: where it comes from.
      rows: training rows.
      nulls: rows without a value.
      empty: rows whose text is the empty string; they are one of the categories too.
      not_finite: rows whose number is NaN or infinite.
      distribution: of the rows that are neither NULL nor `not_finite`; None if there are none.
    """

    table: str
    name: str
    rows: int
    nulls: int
    empty: int
    not_finite: int
    distribution: Numbers | Categories | None

    @property
    def missing(self) -> int:
        """Rows that a model learns nothing from in this column."""
        return self.nulls + self.empty + self.not_finite


@dataclasses.dataclass(frozen=True)
class EntityProfile:
    """How the ratings are spread over the customers or the products.

    Attributes:
      table: name of the table.
      total: valid rows of it.
      rated: those with at least one valid rating.
      most: ratings of the one with the most.
      median: ratings of the median one among the rated (the lower of two).
      gini: Gini coefficient of ratings over the rated: 0 all have as many, near 1 one has them all.
      curve: share of the ratings that the top 1 %, 2 %, …, 100 % of the rated have, interpolated between
        two of them; empty without ratings.
      unrated_sample: the first keys, ascending, of those that nobody rated (products only).
    """

    table: str
    total: int
    rated: int
    most: int
    median: int
    gini: float
    curve: tuple[float, ...]
    unrated_sample: tuple[Key, ...] = ()

    @property
    def unrated(self) -> int:
        """Valid rows without a valid rating."""
        return self.total - self.rated


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything about one run's training data; JSON and back changes nothing.

    Attributes:
      shop: name of the shop.
      taken_at: RFC 3339 time of the snapshot; empty if nothing was read.
      ratings: training rows.
      rating_histogram: (rating, rows), ascending; empty if there are more than a hundred different ratings.
      columns: every training column but the partition column, in file order; empty if nothing was read.
    """

    shop: str
    taken_at: str
    ratings: int
    rating_histogram: tuple[tuple[float, int], ...]
    customers: EntityProfile
    products: EntityProfile
    columns: tuple[ColumnProfile, ...]
    format: int = REPORT_FORMAT

    def to_dict(self) -> dict[str, Any]:
        """JSON types only, but for tuples in place of lists."""
        return dataclasses.asdict(self)

    def to_json(self) -> bytes:
        """The file's bytes: UTF-8 on one line."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The inverse of `to_dict`, from JSON or not.

        Raises:
          ValueError, TypeError, KeyError: it is not a report of this format.
        """
        if values["format"] != REPORT_FORMAT:
            raise ValueError(f"format {values['format']!r}")
        return cls(
            **{
                **values,
                "rating_histogram": _pairs(values["rating_histogram"]),
                "customers": _entity(values["customers"]),
                "products": _entity(values["products"]),
                "columns": tuple(_column(column) for column in values["columns"]),
            }
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Report":
        """The inverse of `to_json`.

        Raises:
          UsageError: it is not a report of this format.
        """
        try:
            return cls.from_dict(json.loads(data))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{where}: expected a data report of format {REPORT_FORMAT}: {error}") from None


def _pairs(values: Any) -> tuple[tuple[Any, int], ...]:
    return tuple((value, count) for value, count in values)


def _entity(values: Mapping[str, Any]) -> EntityProfile:
    tuples = {name: tuple(values[name]) for name in ("curve", "unrated_sample")}
    return EntityProfile(**{**values, **tuples})


def _column(values: Mapping[str, Any]) -> ColumnProfile:
    found = values["distribution"]
    distribution: Numbers | Categories | None = None
    if found is not None and "buckets" in found:
        distribution = Numbers(**{**found, "buckets": _pairs(found["buckets"])})
    elif found is not None:
        distribution = Categories(**{**found, "top": _pairs(found["top"])})
    return ColumnProfile(**{**values, "distribution": distribution})
