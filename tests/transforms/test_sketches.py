"""Sketches equal a plain count of the expanded rows, however the rows were divided."""

import decimal
import itertools
import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.schemas.report import Categories, Numbers
from beamrec.transforms import sketches
from beamrec.transforms.sketches import CategorySketch, NumberSketch, sampling_levels, sum_by

NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-1000, 1000).map(float))
WEIGHTED = st.lists(st.tuples(NUMBERS, st.integers(1, 10**6)), max_size=30)
TEXTS = st.lists(st.tuples(st.one_of(st.none(), st.text(max_size=3)), st.integers(1, 99)), max_size=30)


def number_sketch(rows: list[tuple[Any, int]], type_: pa.DataType | None = None) -> NumberSketch:
    values = pa.array([value for value, _ in rows], type_ or pa.float64())
    return NumberSketch.of(values, np.array([weight for _, weight in rows], np.int64))


def category_sketch(rows: list[tuple[Any, int]], first_key: int = 0) -> CategorySketch:
    keys = pa.array(range(first_key, first_key + len(rows)), pa.int64())
    values = pa.array([value for value, _ in rows], pa.string())
    weights = np.array([weight for _, weight in rows], np.int64)
    return CategorySketch.of(values, weights, sampling_levels(keys))


@given(WEIGHTED)
def test_numbers_agree_with_exact_arithmetic(rows: list[tuple[float | None, int]]) -> None:
    sketch = number_sketch(rows)
    finite = [(value, weight) for value, weight in rows if value is not None and math.isfinite(value)]
    assert sketch.nulls == sum(weight for value, weight in rows if value is None)
    assert sketch.not_finite + sketch.nulls + sketch.counts.sum() == sum(weight for _, weight in rows)
    found = sketch.distribution()
    if not finite:
        assert found is None
        return
    assert isinstance(found, Numbers)
    total = sum(Fraction(value) * weight for value, weight in finite)
    assert found.mean == float(total / sum(weight for _, weight in finite))
    assert (found.minimum, found.maximum) == (min(v for v, _ in finite), max(v for v, _ in finite))


@given(WEIGHTED, st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
def test_numbers_are_the_same_however_they_were_divided(
    rows: list[tuple[float | None, int]], cuts: list[int], chance: random.Random
) -> None:
    bounds = [0, *sorted(cuts), len(rows)]
    parts = [number_sketch(rows[start:end]) for start, end in itertools.pairwise(bounds)]
    chance.shuffle(parts)
    left = NumberSketch.merge([NumberSketch.merge(parts[:2]), *parts[2:]])
    whole = number_sketch(rows)
    assert left.distribution() == whole.distribution()
    assert (left.nulls, left.not_finite, left.total) == (whole.nulls, whole.not_finite, whole.total)


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.int16(), [-5, 0, 7, None]),
        (pa.uint64(), [2**64 - 1, 0, None]),
        (pa.decimal128(10, 2), [decimal.Decimal("-0.10"), decimal.Decimal("21000.35"), None]),
        (pa.float32(), [0.5, None]),
    ],
)
def test_every_type_of_number_is_read(type_: pa.DataType, values: list[Any]) -> None:
    found = number_sketch([(value, 2) for value in values], type_).distribution()
    floats = [float(value) for value in values if value is not None]
    assert isinstance(found, Numbers)
    assert found.mean == pytest.approx(sum(floats) / len(floats))
    assert (found.minimum, found.maximum) == (min(floats), max(floats))


@given(TEXTS, st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
def test_categories_are_exact_however_they_were_divided(
    rows: list[tuple[str | None, int]], cuts: list[int], chance: random.Random
) -> None:
    bounds = [0, *sorted(cuts), len(rows)]
    parts = [category_sketch(rows[start:end], start) for start, end in itertools.pairwise(bounds)]
    chance.shuffle(parts)
    merged = CategorySketch.merge([CategorySketch.merge(parts[:2]), *parts[2:]])
    expected: Counter[str] = Counter()
    for value, weight in rows:
        if value is not None:
            expected[value] += weight
    found = merged.distribution()
    assert (dict(found.top) if found else {}) == expected
    assert merged.empty == expected[""]
    assert merged.nulls == sum(weight for value, weight in rows if value is None)


def test_the_most_frequent_come_first_and_of_equals_the_first_by_value() -> None:
    found = category_sketch([("b", 2), ("ß", 5), ("a", 2), ("", 2), (None, 9)]).distribution()
    assert found == Categories(4, 1.0, (("ß", 5), ("", 2), ("a", 2), ("b", 2)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, 20, 1]), {"1": 2, "20": 1}),
        (pa.array([b"\xff", b"", None]), {"ff": 1, "": 1}),
        (pa.array(["1.10", "2.00", "1.10"]).cast(pa.decimal128(5, 2)), {"1.10": 2, "2.00": 1}),
        (pa.array(["x" * 100 + "a", "x" * 100 + "b", "é"]), {"x" * 100: 2, "é": 1}),
        (pa.array(["2026-11-22", None, None]).cast(pa.date32()), {"2026-11-22": 1}),
    ],
)
def test_other_types_are_counted_as_they_are_written(values: pa.Array, expected: dict[str, int]) -> None:
    found = CategorySketch.of(values, np.ones(3, np.int64)).distribution()
    assert found is not None
    assert dict(found.top) == expected


def test_beyond_the_bound_customers_are_sampled_the_same_way_in_any_division(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sketches, "MAX_CATEGORIES", 200)
    # One in five customers lives in Springfield, the others each elsewhere.
    rows = [("Springfield" if place % 5 == 0 else f"town {place}", 1 + place % 3) for place in range(8000)]
    whole = category_sketch(rows)
    thousands = [category_sketch(rows[start : start + 1000], start) for start in range(0, 8000, 1000)]
    backward = CategorySketch.merge(thousands[::-1])
    nested = CategorySketch.merge([CategorySketch.merge(thousands[:3]), CategorySketch.merge(thousands[3:])])
    found = whole.distribution()
    assert isinstance(found, Categories)
    assert backward.distribution() == nested.distribution() == found
    assert found.sampled_share < 1
    assert 100 < found.distinct <= 200
    assert len(whole.values) <= 200 + 64
    assert found.top[0][0] == "Springfield"
    rows_in_springfield = sum(weight for value, weight in rows if value == "Springfield")
    assert found.top[0][1] == pytest.approx(rows_in_springfield, rel=0.35)


def test_the_bound_holds_for_what_a_combiner_keeps() -> None:
    parts = [
        category_sketch([(f"{start + i}", 1) for i in range(30_000)], start) for start in (0, 30_000, 60_000)
    ]
    merged = CategorySketch.merge(parts)
    assert max(len(each.values) for each in (*parts, merged)) <= sketches.MAX_CATEGORIES
    assert merged.rows == 90_000


@pytest.mark.parametrize("keys", [pa.array(range(40_000)), pa.array([f"C{n:05}é" for n in range(40_000)])])
def test_a_level_holds_half_of_what_is_left(keys: pa.Array) -> None:
    shares = np.bincount(sampling_levels(keys))[:4] / len(keys)
    assert shares == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 16], abs=0.01)


def test_a_level_depends_on_the_key_alone() -> None:
    texts = pa.array(["a", "", "ab", "b", "日本"] * 20)
    assert (sampling_levels(texts)[7:] == sampling_levels(texts[7:])).all()
    assert (sampling_levels(pa.array([-1, 7], pa.int16())) == sampling_levels(pa.array([-1, 7]))).all()


@given(st.lists(st.tuples(st.one_of(st.integers(-3, 3), st.integers(-(2**62), 2**62)), st.integers(1, 9))))
def test_sums_by_key_agree_with_a_plain_count(rows: list[tuple[int, int]]) -> None:
    expected: Counter[int] = Counter()
    for key, count in rows:
        expected[key] += count
    keys, sums = sum_by(np.array([k for k, _ in rows], np.int64), np.array([c for _, c in rows], np.int64))
    assert list(zip(keys.tolist(), sums.tolist(), strict=True)) == sorted(expected.items())
