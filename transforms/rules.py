"""The rules of a table's rows, each with the rows that break it."""

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import Feature, Table
from beamrec.transforms.numbers import to_float64
from beamrec.transforms.rejects import shown

__all__ = ["BrokenRule", "Mask", "broken_rules", "first_broken", "is_empty", "true_where", "within"]

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class BrokenRule:
    """A rule and the rows that break it.

    Attributes:
      name: stable name, the dead letters' `error_type`.
      column: the column that it is about.
      expected: what it asks for, as the message says it.
      rows: which rows break it.
    """

    name: str
    column: str
    expected: str
    rows: Mask

    def message(self, row: dict[str, Any]) -> str:
        """What was expected and what came."""
        return f"expected {self.expected}, got {shown(row[self.column])}"


def broken_rules(batch: pa.RecordBatch, table: Table) -> Iterator[BrokenRule]:
    """The rules of customers or products that some row breaks, in the order in which they are reported.

    Raises:
      UsageError: a rule does not go with the type of its column.
    """
    key = batch.column(0)
    found = [
        BrokenRule("null_key", table.key, f"a value in {table.key}", true_where(pc.is_null(key))),
        BrokenRule("empty_key", table.key, f"a text in {table.key}", is_empty(key)),
    ]
    for feature in table.features:
        found += _of_feature(batch, feature, f"table {table.name}, column {feature.column}")
    return (rule for rule in found if rule.rows.any())


def _of_feature(batch: pa.RecordBatch, feature: Feature, where: str) -> Iterator[BrokenRule]:
    name = feature.column
    if not feature.nullable:
        yield BrokenRule("null_value", name, f"a value in {name}", true_where(pc.is_null(batch.column(name))))
    low, high = feature.bounds
    if low is not None or high is not None:
        outside = ~within(_scale(batch.column(name), low if high is None else high, where), low, high)
        rows = outside & true_where(pc.is_valid(batch.column(name)))
        yield BrokenRule("out_of_range", name, f"{name} {_bounds(feature)}", rows)
    if feature.values is not None:
        rows = _not_among(batch.column(name), feature, where)
        allowed = shown(", ".join(feature.values))
        yield BrokenRule("not_allowed", name, f"{name} to be one of {allowed}", rows)


def first_broken(rules: Sequence[Mask], rows: int) -> npt.NDArray[np.int16]:
    """Which rule each row breaks first; -1 where it breaks none."""
    first = np.full(rows, -1, np.int16)
    for rule in reversed(range(len(rules))):
        first[rules[rule]] = rule
    return first


def true_where(values: pa.Array) -> Mask:
    """A Boolean array without NULLs (they become False)."""
    mask: Mask = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask


def is_empty(keys: pa.Array) -> Mask:
    """Which keys are text of no characters."""
    if not pa.types.is_string(keys.type):
        return np.zeros(len(keys), bool)
    return true_where(pc.equal(keys, ""))


def within(values: pa.Array, low: Any, high: Any) -> Mask:
    """Whether each value lies between the bounds, inclusive; NULL and NaN do not. None is no bound."""
    inside = pc.equal(values, values)
    if low is not None:
        inside = pc.and_(inside, pc.greater_equal(values, pa.scalar(low, values.type)))
    if high is not None:
        inside = pc.and_(inside, pc.less_equal(values, pa.scalar(high, values.type)))
    return true_where(inside)


def _scale(column: pa.Array, bound: Any, where: str) -> pa.Array:
    """A column as it is compared with bounds: float64, or timestamp in microseconds."""
    kind = column.type
    if isinstance(bound, dt.datetime):
        if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
            raise UsageError(f"{where}: min and max are dates, the database has {kind}; mend --shop")
        return pc.cast(column, pa.timestamp("us"))
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UsageError(f"{where}: min and max are numbers, the database has {kind}; mend --shop")
    # Rounding keeps the order: only a value within one part in 2**53 of a bound can pass for the bound.
    return to_float64(column)


def _bounds(feature: Feature) -> str:
    if feature.max is None:
        return f"of at least {feature.min}"
    return f"of at most {feature.max}" if feature.min is None else f"from {feature.min} to {feature.max}"


def _not_among(column: pa.Array, feature: Feature, where: str) -> Mask:
    if pa.types.is_binary(column.type):
        raise UsageError(f"{where}: values are text, the database has {column.type}; mend --shop")
    allowed = _cleaned(pa.array(feature.values, pa.string()), feature)
    among = pc.is_in(_cleaned(pc.cast(column, pa.string()), feature), value_set=allowed)
    return true_where(pc.and_(pc.is_valid(column), pc.invert(among)))


def _cleaned(texts: pa.Array, feature: Feature) -> pa.Array:
    """As the preprocessing graph cleans them."""
    trimmed = pc.utf8_trim_whitespace(texts) if feature.trim else texts
    return pc.utf8_lower(trimmed) if feature.lower else trimmed
