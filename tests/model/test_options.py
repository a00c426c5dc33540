"""Options that a training could not end well with are refused before it begins."""

import math

import pytest

from beamrec.model.options import TowerOptions, TrainingOptions
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import MAX_DIM


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("batch_size", 1), ("candidates", 0), ("patience", -1), ("evaluation_users", 0),
        ("seed", -1), ("seed", 2**31),
        *[(name, value) for name in ("holdout", "validation") for value in (0.0, 1.0, math.nan)],
        *[(name, value) for name in ("temperature", "learning_rate", "embedding_rate")
          for value in (0.0, math.inf, math.nan)],
        *[(name, value) for name in ("weight_decay", "rating_weight", "softmax_weight")
          for value in (-1.0, math.inf, math.nan)],
    ],
)  # fmt: skip
def test_options_are_checked_before_anything_is_trained(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        TrainingOptions(**{name: value})  # type: ignore[arg-type]


def test_one_of_the_losses_must_count() -> None:
    with pytest.raises(UsageError, match="must not both be 0"):
        TrainingOptions(rating_weight=0, softmax_weight=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim", 0), ("dim", MAX_DIM + 1), ("feature_dim", 0), ("hidden", 0),
        *[(name, value) for name in ("identity_dropout", "category_dropout")
          for value in (-0.1, 1, math.nan)],
    ],
)  # fmt: skip
def test_a_tower_that_no_release_could_hold_is_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        TowerOptions(**{name: value})  # type: ignore[arg-type]


def test_the_greatest_dim_and_seed_are_taken() -> None:
    assert TrainingOptions(tower=TowerOptions(dim=MAX_DIM), seed=2_000_000_000).tower.dim == 2_000
