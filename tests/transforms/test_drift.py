"""Drift is the population stability index over bins of the previous run."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.schemas.errors import BadDataError
from beamrec.schemas.report import ColumnProfile, EntityProfile, Report
from beamrec.transforms.drift import (
    TOP_BINS,
    check_drift,
    column_drift,
    drift,
    population_stability_index,
)
from beamrec.transforms.sketches import CategorySketch, NumberSketch

COUNTS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=9)


def number_column(values: Any, name: str = "n") -> ColumnProfile:
    array = pa.array(values, pa.float64())
    sketch = NumberSketch.of(array, np.ones(len(array), np.int64))
    return ColumnProfile("t", name, len(array), sketch.nulls, 0, sketch.not_finite, sketch.distribution())


def category_column(counts: dict[str | None, int], name: str = "c") -> ColumnProfile:
    sketch = CategorySketch.of(pa.array(list(counts), pa.string()), np.array(list(counts.values()), np.int64))
    return ColumnProfile("t", name, sketch.rows, sketch.nulls, sketch.empty, 0, sketch.distribution())


def report(*columns: ColumnProfile) -> Report:
    entity = EntityProfile("t", 0, 0, 0, 0, 0.0, ())
    return Report("s", "2026-11-22T07:00:00+00:00", 9, (), entity, entity, columns)


def test_the_index_agrees_with_a_sum_by_hand() -> None:
    # p = 50.5 / 101 twice; q = 30.5 / 101 and 70.5 / 101.
    expected = (0.301980 - 0.5) * math.log(0.603960) + (0.698020 - 0.5) * math.log(1.396040)
    assert population_stability_index([50, 50], [30, 70]) == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(0.16592, abs=1e-4)


@given(COUNTS)
def test_the_index_is_symmetric_finite_and_not_negative(counts: list[tuple[int, int]]) -> None:
    before, after = zip(*counts, strict=True)
    index = population_stability_index(before, after)
    assert 0 <= index + 1e-12 < math.inf
    assert index == pytest.approx(population_stability_index(after, before), abs=1e-9)
    assert population_stability_index(before, before) == 0


def test_numbers_are_compared_over_the_previous_deciles() -> None:
    before, after = range(1, 101), [*range(1, 61)] * 2
    # Deciles of 1 to 100 are bins of ten; of the 120 rows now, twenty are in each of the lowest six.
    bins = [(10, 20)] * 6 + [(10, 0)] * 4 + [(0, 0)]
    expected = population_stability_index(*zip(*bins, strict=True))
    assert column_drift(number_column(before), number_column(after)) == pytest.approx(expected)


def test_a_frequent_number_is_a_bin_of_its_own() -> None:
    before, after = [3.0] * 100, [2.0] * 100
    assert column_drift(number_column(before), number_column(before)) == pytest.approx(0)
    assert (column_drift(number_column(before), number_column(after)) or 0) > 5


def test_negative_numbers_and_missing_ones_have_their_bins() -> None:
    before = number_column([-3.0] * 50 + [0.0] * 50)
    moved, missing = (
        number_column([-3.0] * 80 + [0.0] * 20),
        number_column([-3.0] * 50 + [None, math.nan] * 25),
    )
    bins = [(0, 0), (50, 80), (50, 20), (0, 0), (0, 0)]
    assert column_drift(before, moved) == pytest.approx(
        population_stability_index(*zip(*bins, strict=True)), rel=0.01
    )
    assert (column_drift(before, missing) or 0) > 1


def test_categories_are_compared_by_value_with_missing_and_new_ones() -> None:
    before = category_column({"a": 60, "b": 30, "": 5, None: 5})
    after = category_column({"a": 30, "b": 30, "new": 30, None: 10})
    # a, b, the empty string, other known ones, new ones, missing.
    bins = [(60, 30), (30, 30), (5, 0), (0, 0), (0, 30), (5, 10)]
    expected = population_stability_index(*zip(*bins, strict=True))
    assert column_drift(before, after) == pytest.approx(expected)


def test_beyond_the_most_frequent_known_categories_are_one_bin_and_new_ones_another() -> None:
    known: dict[str | None, int] = {f"v{n:02}": 100 - n for n in range(TOP_BINS + 5)}
    last = {f"v{n:02}" for n in range(TOP_BINS, TOP_BINS + 5)}
    swapped = category_column(
        {value: known[value] for value in known if value not in last} | dict.fromkeys(last, 80)
    )
    renamed = category_column({f"x{v}" if v in last else v: rows for v, rows in known.items()})
    assert (column_drift(category_column(known), swapped) or 0) < 0.001
    assert (column_drift(category_column(known), renamed) or 0) > 0.5


def test_a_column_with_more_categories_than_a_report_names_has_no_bin_for_new_ones() -> None:
    many: dict[str | None, int] = {f"v{n}": 1 for n in range(600)}
    moved: dict[str | None, int] = {f"v{n}": 1 for n in range(20, 620)}
    index = column_drift(category_column(many | {"top": 600}), category_column(moved | {"top": 600}))
    assert index == pytest.approx(0, abs=0.15)


def test_a_column_that_lost_every_value_drifted() -> None:
    before = number_column([1.0, 2.0] * 50)
    assert (column_drift(before, number_column([None] * 100)) or 0) > 5
    assert (column_drift(number_column([None] * 100), before) or 0) > 5
    assert column_drift(number_column([None] * 9), number_column([None] * 9)) == 0


def test_columns_are_matched_by_name_and_kind() -> None:
    before = report(number_column([1.0]), category_column({"a": 1}, "gone"), number_column([1.0], "kind"))
    after = report(category_column({"1.0": 1}, "kind"), number_column([1.0]), number_column([1.0], "new"))
    assert drift(before, after) == {"n": 0}


def test_a_run_without_rows_is_not_compared() -> None:
    assert drift(report(number_column([])), report(number_column([1.0]))) == {}
    assert drift(report(number_column([1.0])), report(number_column([]))) == {}
    assert drift(report(), report(number_column([1.0]))) == {}


def test_thresholds_warn_and_fail() -> None:
    psi = {"a": 0.2, "b": 0.25, "c": 0.7}
    assert check_drift(psi, warn=None) == []
    assert [warning.split()[1] for warning in check_drift(psi)] == ["c", "b"]
    assert "index 0.700, above 0.2 (--drift-warn)" in check_drift(psi)[0]
    assert check_drift(psi, warn=0.7, fail=0.7) == []
    with pytest.raises(
        BadDataError, match=r"column c drifted .* at most 0.6 \(--drift-fail\), got 0.700; nothing"
    ):
        check_drift(psi, warn=0.2, fail=0.6)
