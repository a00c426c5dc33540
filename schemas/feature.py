"""One column of customers or products: what the model makes of it, and the rules that its values keep."""

import dataclasses
import datetime as dt
import re
import sys
from typing import Any, Literal

from beamrec.schemas.errors import UsageError

__all__ = ["Feature", "FeatureKind", "check_choice", "check_identifier", "check_number", "check_type"]

FeatureKind = Literal["category", "number", "text", "none"]

_IDENTIFIER = re.compile(r"[^\x00/\\]{1,64}")
_NAMES = {str: "text", bool: "true or false"}


def check_type(value: Any, kind: type, where: str) -> None:
    """Raises UsageError unless the value is of a kind: `str` or `bool`."""
    if not isinstance(value, kind):
        raise UsageError(f"{where}: expected {_NAMES[kind]}, got {value!r}")


def check_number(value: Any, where: str) -> None:
    """Raises UsageError unless the value is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -sys.float_info.max <= value <= sys.float_info.max:
        raise UsageError(f"{where}: expected a finite number, got {value!r}")


def check_identifier(value: Any, where: str) -> None:
    """Raises UsageError unless the value can name a table or column."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise UsageError(
            f"{where}: expected a column or table name of 1 to 64 characters "
            f"without slashes or NUL, got {value!r}"
        )


def check_choice(value: Any, choices: tuple[str, ...], where: str) -> None:
    """Raises UsageError unless the value is one of the choices."""
    if value not in choices:
        raise UsageError(f"{where}: expected one of {', '.join(choices)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One non-key column of a table, how the model sees it and where an event carries it.

    Attributes:
      column: column name in the source table and in the training files.
      kind: `category` (vocabulary), `number` (scaled), `text`, or `none` (kept in the files, not modelled).
      event_field: the event's field of the same meaning; None where events do not carry it. A customer
        column that no event carries stays out of the user tower: training on what serving cannot see
        would only cost accuracy.
      trim: strip white space inside the preprocessing graph (files keep the source's bytes).
      lower: fold case inside the preprocessing graph.
      log: take log1p of a number before scaling (skewed amounts).
      min, max: inclusive bounds of the batch pipeline's rows: two numbers, or two dates or times as ISO
        8601 text without an offset. A date alone as `max` of a column of times means all of that day.
      values: the only values allowed, compared as the model sees them, that is after `trim` and `lower`.
      nullable: whether a row may have NULL here; `min`, `max` and `values` say nothing about NULL.

    Raises:
      UsageError: at construction, for a value of the wrong type or rules that nothing can keep.
    """

    column: str
    kind: FeatureKind = "category"
    event_field: str | None = None
    trim: bool = True
    lower: bool = False
    log: bool = False
    min: float | str | None = None
    max: float | str | None = None
    values: tuple[str, ...] | None = None
    nullable: bool = True

    def __post_init__(self) -> None:
        check_identifier(self.column, "feature column")
        where = f"feature {self.column}"
        check_choice(self.kind, ("category", "number", "text", "none"), f"{where}: kind")
        if self.event_field is not None:
            check_type(self.event_field, str, f"{where}: event_field")
        for name in ("trim", "lower", "log", "nullable"):
            check_type(getattr(self, name), bool, f"{where}: {name}")
        _check_bounds(self, where)
        _check_values(self, where)

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The least and the greatest value allowed, as numbers or `datetime`s; None where there is none."""
        return _moment(self.min, dt.time.min), _moment(self.max, dt.time.max)


def _moment(bound: float | str | None, of_day: dt.time) -> Any:
    """A bound that can be compared; a date alone means that time of its day."""
    if not isinstance(bound, str):
        return bound
    try:
        return dt.datetime.combine(dt.date.fromisoformat(bound), of_day)
    except ValueError:
        return dt.datetime.fromisoformat(bound)


def _check_bounds(feature: Feature, where: str) -> None:
    given = [(name, getattr(feature, name)) for name in ("min", "max")]
    for name, bound in given:
        if isinstance(bound, str):
            _check_time(bound, f"{where}: {name}")
        elif bound is not None:
            check_number(bound, f"{where}: {name}")
    are_dates = {isinstance(bound, str) for _, bound in given if bound is not None}
    if len(are_dates) > 1:
        raise UsageError(f"{where}: min and max must be of one kind, got {feature.min!r} and {feature.max!r}")
    if (feature.kind == "text" and are_dates) or (feature.kind == "number" and True in are_dates):
        raise UsageError(f"{where}: a {feature.kind} has no such bounds: {feature.min!r} and {feature.max!r}")
    low, high = feature.bounds
    if low is not None and high is not None and low > high:
        raise UsageError(f"{where}: min must not be above max, got {feature.min!r} and {feature.max!r}")


def _check_time(bound: str, where: str) -> None:
    try:
        moment = dt.datetime.fromisoformat(bound)
    except ValueError:
        raise UsageError(f"{where}: expected a number or an ISO 8601 date or time, got {bound!r}") from None
    if moment.tzinfo is not None:
        raise UsageError(f"{where}: a time in a database has no offset, got {bound!r}")


def _check_values(feature: Feature, where: str) -> None:
    if feature.values is None:
        return
    if not isinstance(feature.values, tuple) or not feature.values:
        raise UsageError(f"{where}: values: expected a list of at least one text, got {feature.values!r}")
    for value in feature.values:
        check_type(value, str, f"{where}: values")
    if feature.kind == "number":
        raise UsageError(f"{where}: values are for categories; give a number min and max")
