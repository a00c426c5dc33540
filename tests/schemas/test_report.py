"""Reports survive JSON unchanged, and buckets keep numbers within their bounds."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.schemas.errors import UsageError
from beamrec.schemas.report import (
    Categories,
    ColumnProfile,
    EntityProfile,
    Numbers,
    Report,
    bucket_bounds,
    bucket_of,
)

REPORT = Report(
    shop='büch"er',
    taken_at="2026-11-22T07:00:00.000+00:00",
    ratings=7,
    rating_histogram=((0.1, 3), (4.5, 4)),
    customers=EntityProfile("c", 3, 2, most=4, median=3, gini=1 / 3, curve=(0.1, 1.0)),
    products=EntityProfile("p", 2, 1, most=7, median=7, gini=0.0, curve=(1.0,), unrated_sample=("S1", "ß")),
    columns=(
        ColumnProfile("c", "city", 7, 1, 1, 0, Categories(2, 1.0, (("日本 </script>", 5), ("", 1)))),
        ColumnProfile("c", "credit", 7, 0, 0, 2, Numbers(-1.5, 0.1, -1 / 3, ((-65600, 2), (0, 3)))),
        ColumnProfile("p", "weight", 7, 7, 0, 0, None),
    ),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)


def test_a_report_survives_json_unchanged() -> None:
    assert Report.from_json(REPORT.to_json(), "here") == REPORT
    assert Report.from_dict(REPORT.to_dict()) == REPORT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        json.dumps({**REPORT.to_dict(), "format": 2}).encode(),
        json.dumps({**REPORT.to_dict(), "more": 2}).encode(),
        json.dumps({**REPORT.to_dict(), "columns": [3]}).encode(),
    ],
)
def test_what_is_no_report_of_this_format_says_where_it_is(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"out/_report.json: expected a data report of format 1"):
        Report.from_json(data, "out/_report.json")


def test_a_number_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(REPORT, rating_histogram=((math.nan, 1),)).to_json()


@given(FINITE)
def test_a_number_lies_in_its_bucket_which_is_narrow(value: float) -> None:
    (bucket,) = bucket_of(np.array([value])).tolist()
    lower, upper = bucket_bounds(bucket)
    assert lower <= value <= upper
    assert upper - lower <= max(abs(lower), abs(upper)) / 64


@given(st.lists(FINITE, min_size=2, max_size=2))
def test_buckets_ascend_with_the_numbers(values: list[float]) -> None:
    buckets = bucket_of(np.array(sorted(values)))
    assert buckets[0] <= buckets[1]


def test_integers_up_to_128_have_a_bucket_each_and_opposite_ones_opposite_buckets() -> None:
    values = np.arange(-128.0, 129)
    buckets = bucket_of(values)
    assert len(set(buckets.tolist())) == 257
    assert (buckets == -buckets[::-1]).all()
    assert bucket_of(np.array([0.0, -0.0, 5e-324])).tolist() == [0, 0, 0]


def test_the_bounds_of_the_last_bucket_are_finite() -> None:
    (bucket,) = bucket_of(np.array([sys.float_info.max])).tolist()
    assert bucket_bounds(bucket)[1] == sys.float_info.max


@given(st.lists(st.integers(-128, 128), min_size=1), st.floats(0, 1))
def test_quantiles_of_small_integers_are_exact(values: list[int], share: float) -> None:
    buckets, counts = np.unique(bucket_of(np.array(values, float)), return_counts=True)
    numbers = Numbers(
        min(values), max(values), 0.0, tuple(zip(buckets.tolist(), counts.tolist(), strict=True))
    )
    expected = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    assert numbers.quantile(share) == expected
