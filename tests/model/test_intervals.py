"""Bootstrap intervals: seeded, paired, and as often right as they say."""

import math

import numpy as np
import pytest

import beamrec.model.intervals
from beamrec.model.intervals import Ratio, Resampled, resample


def _mean(values: np.ndarray) -> Ratio:
    return Ratio(values, np.ones(len(values)))


def test_an_interval_covers_the_truth_about_95_times_in_100() -> None:
    """300 samples of 150 skewed values of known mean; 95 % ± 4 standard errors of 300 trials."""
    random = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        figure = resample({"mean": _mean(random.exponential(2.0, 150))}, 400, trial)["mean"].estimate()
        covered += figure.low <= 2.0 <= figure.high
    assert abs(covered / 300 - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 300)


def test_the_spread_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(0.4, 0.2, 500)
    figure = resample({"mean": _mean(values)}, 2_000, 42)["mean"]
    assert figure.value == pytest.approx(values.mean())
    assert figure.samples.std() == pytest.approx(values.std() / math.sqrt(500), rel=0.1)


def test_pairs_are_resampled_together() -> None:
    """Users differ far more than the systems do: apart the intervals overlap, the difference is certain."""
    users = np.random.default_rng(2).uniform(0, 1, 400)
    figures = resample({"one": _mean(users + 0.01), "other": _mean(users)}, 500, 1)
    one, other = figures["one"].estimate(), figures["other"].estimate()
    assert one.low < other.high
    difference = (figures["one"] - figures["other"]).estimate()
    assert difference.low == pytest.approx(0.01) == difference.high


def test_a_root_is_taken_of_each_sample() -> None:
    errors, counts = np.array([1.0, 4.0, 10.0]), np.array([1.0, 1.0, 3.0])
    figure = resample({"rmse": Ratio(errors, counts, np.sqrt)}, 50, 1)["rmse"]
    assert figure.value == pytest.approx(math.sqrt(3.0))
    assert figure.samples.min() >= 1
    assert figure.samples.max() <= 2


def test_the_seed_decides_and_the_block_size_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).uniform(0, 1, 30)
    first, again, other = (resample({"m": _mean(values)}, 99, seed)["m"].samples for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    monkeypatch.setattr(beamrec.model.intervals, "_CELLS_AT_ONCE", 70)
    np.testing.assert_allclose(resample({"m": _mean(values)}, 99, 1)["m"].samples, first)


def test_samples_with_nothing_to_divide_by_are_zero() -> None:
    figure = resample({"m": Ratio(np.array([1.0, 0.0]), np.array([1.0, 0.0]))}, 100, 1)["m"]
    assert set(figure.samples) == {0.0, 1.0}


def test_the_interval_holds_the_value() -> None:
    estimate = Resampled(0.5, np.full(20, 0.6)).estimate()
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, pytest.approx(0.6))
