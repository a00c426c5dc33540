"""How far the training data moved since the previous run: the population stability index per column."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from beamrec.schemas.errors import BadDataError
from beamrec.schemas.report import Categories, ColumnProfile, Numbers, Report

__all__ = ["check_drift", "column_drift", "drift", "population_stability_index"]

TOP_BINS = 20
"""Categories of the previous run that have a bin of their own."""

_DECILES = np.arange(1, 10) / 10
_SMOOTHING = 0.5

_Bins = list[tuple[int, int]]


def population_stability_index(previous: Sequence[int], current: Sequence[int]) -> float:
    """PSI of two histograms over the same bins: sum of (q - p) ln(q / p).

    p and q are the shares of the previous and the current rows in a bin, each with half a row added to
    every bin, so that an empty one stays finite. The index is symmetric and not negative. By custom below
    0.1 is no change to speak of and above 0.25 a large one (Siddiqi, "Credit Risk Scorecards", 2006;
    statistics in Yurdakul and Naranjo, "Statistical properties of the population stability index", 2020).

    Args:
      previous, current: rows in each bin: [num_bins].
    """
    p, q = (np.asarray(rows, np.float64) + _SMOOTHING for rows in (previous, current))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def drift(previous: Report, current: Report) -> dict[str, float]:
    """PSI by column, in the order of the current report.

    Columns that only one of the reports has, or that were numbers in one and categories in the other, are
    left out, and so is everything if one of the two has no rows.
    """
    before = {column.name: column for column in previous.columns}
    found = {
        column.name: column_drift(before[column.name], column)
        for column in current.columns
        if column.name in before and column.rows and before[column.name].rows
    }
    return {name: index for name, index in found.items() if index is not None}


def column_drift(previous: ColumnProfile, current: ColumnProfile) -> float | None:
    """PSI of one column over bins of the previous run; None if the two cannot be compared.

    Bins of numbers are the previous deciles, at the nearest bucket above; a bucket with more than a tenth
    of the rows is a bin of its own. Bins of categories are the previous `TOP_BINS`, the other values of
    the previous run, and values that are new; the last two are one bin if either report does not name
    every value. Missing (NULL, NaN, infinite) is a bin too.
    """
    kinds = {type(each.distribution) for each in (previous, current)} - {type(None)}
    if len(kinds) > 1:
        return None
    if Numbers in kinds:
        bins = _number_bins(_buckets(previous), _buckets(current))
    else:
        bins = _category_bins(
            _categories(previous), _categories(current), _present(previous), _present(current)
        )
    bins.append((previous.rows - _present(previous), current.rows - _present(current)))
    return population_stability_index(*zip(*bins, strict=True))


def check_drift(psi: Mapping[str, float], warn: float | None = 0.2, fail: float | None = None) -> list[str]:
    """Warnings for the columns above `warn`, the largest first.

    Args:
      psi: what `drift` gave.
      warn, fail: thresholds of the index; None never.

    Raises:
      BadDataError: a column is above `fail`.
    """
    worst_first = sorted(psi.items(), key=lambda item: (-item[1], item[0]))
    for column, index in worst_first:
        if fail is not None and index > fail:
            raise BadDataError(
                f"column {column} drifted since the previous run: expected a population stability index of "
                f"at most {fail:g} (--drift-fail), got {index:.3f}; nothing was published. Look at what "
                f"changed in the source; if it is meant, run again with a higher --drift-fail"
            )
    return [
        f"column {column} drifted since the previous run: population stability index {index:.3f}, above "
        f"{warn:g} (--drift-warn)"
        for column, index in worst_first
        if warn is not None and index > warn
    ]


def _present(column: ColumnProfile) -> int:
    return column.rows - column.nulls - column.not_finite


def _buckets(column: ColumnProfile) -> tuple[tuple[int, int], ...]:
    return column.distribution.buckets if isinstance(column.distribution, Numbers) else ()


def _categories(column: ColumnProfile) -> Categories:
    return column.distribution if isinstance(column.distribution, Categories) else Categories(0, 1.0, ())


def _number_bins(previous: tuple[tuple[int, int], ...], current: tuple[tuple[int, int], ...]) -> _Bins:
    buckets, rows = np.array(previous, np.int64).reshape(-1, 2).T
    total = rows.sum()
    # Without a previous number all of them are one bin.
    deciles = np.searchsorted(np.cumsum(rows), _DECILES * total) if total else np.empty(0, np.int64)
    large = buckets[rows * 10 > total]
    edges = np.unique(np.concatenate([buckets[deciles], large - 1, large]))
    return list(zip(_counts(previous, edges), _counts(current, edges), strict=True))


def _counts(buckets: tuple[tuple[int, int], ...], edges: npt.NDArray[np.int64]) -> list[int]:
    """Rows up to each edge (inclusive), and above the last: [num_edges + 1]."""
    counts = [0] * (len(edges) + 1)
    for bucket, rows in buckets:
        counts[int(np.searchsorted(edges, bucket))] += rows
    return counts


def _category_bins(previous: Categories, current: Categories, before: int, now: int) -> _Bins:
    """Bins of both, from the rows `before` and `now` that have a value."""
    counted = dict(current.top)
    named = [(rows, counted.get(value, 0)) for value, rows in previous.top]
    bins, others = named[:TOP_BINS], named[TOP_BINS:]
    if previous.is_complete and current.is_complete:
        bins.append((sum(rows for rows, _ in others), sum(rows for _, rows in others)))
    # Of a sample the rows are estimates, whose sum may exceed what there is.
    rest = max(0, before - sum(rows for rows, _ in bins)), max(0, now - sum(rows for _, rows in bins))
    return [*bins, rest]
