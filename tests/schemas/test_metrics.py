"""Histograms as counters: which bucket a value lies in, what their names say, how exact percentiles are."""

import numpy as np
import pytest

from beamrec.schemas.metrics import (
    BOUNDS_US,
    METRICS,
    bucket_counts,
    bucket_name,
    bucket_of,
    bucket_with,
    percentile,
    sum_name,
)


def test_each_value_lies_at_or_below_the_bound_of_its_bucket_and_above_the_one_before() -> None:
    values = np.array([-5, 0, 128, 129, 161, 162, BOUNDS_US[-1], BOUNDS_US[-1] + 1])
    buckets = {int(v): bucket_counts(np.array([v]))[0][0] for v in values}
    assert buckets == {-5: 0, 0: 0, 128: 0, 129: 1, 161: 1, 162: 2, BOUNDS_US[-1]: 78, BOUNDS_US[-1] + 1: 79}
    assert sum(count for _, count in bucket_counts(values)) == len(values)
    assert {value: bucket_with(value) for value in buckets} == buckets


def test_names_of_buckets_lead_back_to_them() -> None:
    for bucket in range(len(BOUNDS_US) + 1):
        assert bucket_of(bucket_name("upsert_us", bucket)) == ("upsert_us", bucket)
    assert bucket_of("upsert_us_le_127") is None
    assert bucket_of(sum_name("upsert_us")) is None
    assert all(bucket_of(name) is None for name in METRICS)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_percentiles_are_within_twelve_percent_of_the_exact_ones(seed: int, share: float) -> None:
    values = np.random.default_rng(seed).lognormal(10, 1.5, 20_000).astype(np.int64) + 128
    exact = np.sort(values)[int(np.ceil(share * len(values))) - 1]
    found = percentile(dict(bucket_counts(values)), share)
    assert found == pytest.approx(exact, rel=0.125)


def test_no_values_have_no_percentile_and_values_beyond_the_last_bound_have_that_one() -> None:
    assert percentile({}, 0.5) is None
    assert percentile({3: 0}, 0.5) is None
    assert percentile({len(BOUNDS_US): 4}, 0.5) == BOUNDS_US[-1]
