"""Ranges of the partition column: whole partitions of about as many rows as a worker should hold."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "KeyRange",
    "Slice",
    "entity_condition",
    "pack_keys",
    "plan_slices",
    "ratings_condition",
    "slice_condition",
    "with_entities",
]

Condition = tuple[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class KeyRange:
    """An inclusive range of the partition column; both ends None is the range of NULL keys.

    Attributes:
      lower, upper: keys with ratings, in the database's own order.
      rows: ratings in the range.
      after, until: the keys whose entities belong to this range: above `after`, up to `until`; None is no
        bound. So every entity belongs to one range, also one without a rating.
      with_null_entities: whether entities without a key belong to this range.
    """

    lower: Any
    upper: Any
    rows: int = 0
    after: Any = None
    until: Any = None
    with_null_entities: bool = False

    @property
    def is_null(self) -> bool:
        """Whether this is the range of NULL keys."""
        return self.lower is None


@dataclasses.dataclass(frozen=True)
class Slice:
    """Part of a partition with very many rows: second keys above `after`, up to `until`; None is no bound.

    The first slice has the NULLs.
    """

    after: Any
    until: Any


def pack_keys(key_counts: Iterable[tuple[Any, int]], max_rows: int) -> list[KeyRange]:
    """Packs keys into ranges of at most `max_rows` rows; a key with more rows is a range of its own.

    Args:
      key_counts: (key, number of rows), ascending by key in the database's own order; None is NULL.
      max_rows: rows that a range may have.
    """
    ranges: list[KeyRange] = []
    lower = upper = None
    total = 0
    for key, rows in key_counts:
        if total and None not in (key, upper) and total + rows <= max_rows:
            upper, total = key, total + rows
            continue
        if total:
            ranges.append(KeyRange(lower, upper, total))
        lower, upper, total = key, key, rows
    return [*ranges, KeyRange(lower, upper, total)] if total else ranges


def with_entities(ranges: Sequence[KeyRange]) -> list[KeyRange]:
    """Gives every range its share of the entities: up to its last key, the last range all that is left.

    Args:
      ranges: of one table, ascending; the range of NULL keys may stand anywhere.
    """
    keyed = [range_ for range_ in ranges if not range_.is_null]
    nulls = [range_ for range_ in ranges if range_.is_null]
    inner = [range_.upper for range_ in keyed[:-1]]
    shared = [
        dataclasses.replace(range_, after=after, until=until)
        for range_, after, until in zip(keyed, [None, *inner], [*inner, None], strict=False)
    ]
    if nulls:
        return [dataclasses.replace(nulls[0], with_null_entities=True), *shared]
    return [dataclasses.replace(shared[0], with_null_entities=True), *shared[1:]] if shared else []


def ratings_condition(range_: KeyRange, column: str, placeholder: str) -> Condition:
    """The SQL condition on a quoted column for the ratings of a range, with its parameters."""
    if range_.is_null:
        return f"{column} IS NULL", ()
    if range_.lower == range_.upper:
        # Only behind an equality does an index go on with its second column: the slices' order and bounds.
        return f"{column} = {placeholder}", (range_.lower,)
    return f"{column} >= {placeholder} AND {column} <= {placeholder}", (range_.lower, range_.upper)


def entity_condition(range_: KeyRange, column: str, placeholder: str, alone: bool) -> Condition:
    """The SQL condition on a quoted key column for the entities of a range.

    Args:
      alone: whether no other range holds keys: a range of NULL keys alone has all entities.
    """
    if range_.is_null:
        return ("1 = 1", ()) if alone else (f"{column} IS NULL", ())
    bounds = [(">", range_.after), ("<=", range_.until)]
    terms = [f"{column} {operator} {placeholder}" for operator, key in bounds if key is not None]
    parameters = tuple(key for _, key in bounds if key is not None)
    condition = " AND ".join(terms) or f"{column} IS NOT NULL"
    return (f"({condition} OR {column} IS NULL)" if range_.with_null_entities else condition), parameters


def plan_slices(bounds: Sequence[Any]) -> list[Slice]:
    """Slices between ascending second keys: up to the first, between two, above the last."""
    return [Slice(*pair) for pair in zip([None, *bounds], [*bounds, None], strict=True)]


def slice_condition(part: Slice, column: str, placeholder: str) -> Condition:
    """The SQL condition on a quoted column for one slice, to be joined to that of its range by AND."""
    if part.after is None and part.until is None:
        return "1 = 1", ()
    if part.after is None:
        return f"({column} <= {placeholder} OR {column} IS NULL)", (part.until,)
    if part.until is None:
        return f"{column} > {placeholder}", (part.after,)
    return f"{column} > {placeholder} AND {column} <= {placeholder}", (part.after, part.until)
