"""The held-out split: each rating decided alone, stable, and by time where there is one."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from beamrec.model.split import SplitOptions, hash_keys, held_out, held_out_since, moments, time_cut
from beamrec.schemas.errors import UsageError


def _pairs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed).choice(400 * 250, count, replace=False)
    users = hash_keys(pa.array(103 + drawn // 250))
    return users, hash_keys(pa.array([f"S{n % 250}_{n % 7}" for n in drawn]))


def test_keys_hash_the_same_wherever_and_however_they_are_stored() -> None:
    """Fixed figures: another machine or version must not move ratings to the other side."""
    assert (
        hash_keys(pa.array([103, 112, 103])).tolist() == hash_keys(pa.array(["103", "112", "103"])).tolist()
    )
    assert (
        hash_keys(pa.array([103, 7], pa.int64())).tolist()
        == hash_keys(pa.array([103, 7], pa.int16())).tolist()
    )
    chunked = pa.chunked_array([["S10_1678"], ["Köln", "S10_1678"]])
    assert hash_keys(chunked).tolist() == hash_keys(chunked.combine_chunks()).tolist()
    assert hash_keys(pa.array(["S10_1678"])).tolist() == [11586068548024388094]
    assert len(hash_keys(pa.array([], pa.string()))) == 0


def test_the_split_is_pinned() -> None:
    users, items = hash_keys(pa.array(np.arange(40))), hash_keys(pa.array(np.arange(40)))
    assert np.flatnonzero(held_out(users, items, SplitOptions(0.2))).tolist() == [2, 5, 20, 35]


def test_a_rating_keeps_its_side_in_any_order_and_among_any_others() -> None:
    users, items = _pairs(20_000)
    held = held_out(users, items, SplitOptions(0.1, seed=7))
    order = np.random.default_rng(1).permutation(20_000)
    assert (held_out(users[order], items[order], SplitOptions(0.1, seed=7)) == held[order]).all()
    assert (
        held_out(users[5_000:5_100], items[5_000:5_100], SplitOptions(0.1, seed=7)) == held[5_000:5_100]
    ).all()


def test_the_share_is_as_asked_and_the_seed_matters() -> None:
    users, items = _pairs(50_000)
    for share in (0.05, 0.1, 0.5):
        held = held_out(users, items, SplitOptions(share))
        assert abs(held.mean() - share) < 4 * np.sqrt(share * (1 - share) / 50_000)
    one, other = (held_out(users, items, SplitOptions(0.1, seed=seed)) for seed in (1, 2))
    assert abs((one & other).mean() - 0.01) < 4 * np.sqrt(0.01 / 50_000)


def test_customers_lose_their_share_independently_of_each_other_and_of_the_product() -> None:
    """With 40 ratings each at 0.2: 8 held out, with the spread of independent draws."""
    users = np.repeat(hash_keys(pa.array(np.arange(1_000))), 40)
    items = np.tile(hash_keys(pa.array(np.arange(40))), 1_000)
    held = held_out(users, items, SplitOptions(0.2)).reshape(1_000, 40)
    assert abs(held.sum(1).var() / (40 * 0.2 * 0.8) - 1) < 0.2
    assert abs(held.sum(0).var() / (1_000 * 0.2 * 0.8) - 1) < 0.8
    none = (held.sum(1) == 0).mean()
    assert none < 0.003  # 0.8 ** 40 is one in 7,500


def test_time_holds_out_the_latest() -> None:
    times = moments(pa.array([dt.datetime(2026, 1, day) for day in (5, 1, 4, 2, 3)]))  # noqa: DTZ001
    cut = time_cut(times, 0.4)
    assert held_out_since(times, cut).tolist() == [True, False, True, False, False]


def test_times_of_every_kind_ascend_and_unknown_ones_are_never_held_out() -> None:
    days = [dt.date(2026, 1, 1), None, dt.date(2026, 1, 3)]
    for array in (
        pa.array(days, pa.date32()),
        pa.array(days, pa.date32()).cast(pa.timestamp("ns")),
        pa.array([1_700_000_000, None, 1_700_000_009]),
        pa.array([1.5, None, 2.5]),
        pa.array([1.5, np.nan, 2.5]),
        pa.array([1.5, np.nan, 2.5], pa.float32()),
        pa.array([Decimal("1.50"), None, Decimal("2.50")]),
        pa.chunked_array([[1], [None, 3]]),
    ):
        times = moments(array)
        assert times[1] == -np.inf < times[0] < times[2]
        assert held_out_since(times, time_cut(times, 0.3)).tolist() == [False, False, True]


def test_many_ratings_of_one_moment_stay_on_one_side() -> None:
    times = np.array([1.0, 2, 2, 2, 2, 3])
    assert held_out_since(times, time_cut(times, 0.5)).tolist() == [False, True, True, True, True, True]
    assert held_out_since(times, time_cut(times, 0.1)).tolist() == [False] * 5 + [True]
    mostly_first = np.array([1.0, 1, 1, 1, 2])
    assert held_out_since(mostly_first, time_cut(mostly_first, 0.9)).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("times", [[], [7.0], [7.0, 7.0, 7.0]])
def test_one_moment_cannot_be_split(times: list[float]) -> None:
    with pytest.raises(UsageError, match="all are of one moment"):
        time_cut(np.array(times), 0.1)


@pytest.mark.parametrize("array", [pa.array(["2026"]), pa.array([True])])
def test_other_columns_are_no_times(array: pa.Array) -> None:
    with pytest.raises(UsageError, match="dates, timestamps or numbers"):
        moments(array)


@pytest.mark.parametrize(
    "wrong", [{"holdout": 0}, {"holdout": 1.0}, {"by": "user"}, {"seed": -1}, {"seed": 1.5}]
)
def test_options_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SplitOptions(**wrong)  # type: ignore[arg-type]
