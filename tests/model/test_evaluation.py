"""The whole evaluation: against a slow reference, in both directions, and whatever the blocks."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

import beamrec.model.evaluation
from beamrec.model.evaluation import EvaluationOptions, ModelVectors, SplitOptions, evaluate
from beamrec.model.split import hash_keys, held_out
from beamrec.schemas.evaluation import Evaluation

SPLIT = SplitOptions(0.2)
OPTIONS = EvaluationOptions(resamples=200, rating_span=4.0)


@dataclasses.dataclass(frozen=True)
class Planted:
    """Customers of four tastes, items of four kinds, a popularity that all share."""

    training: sp.csr_matrix
    held: sp.csr_matrix
    knowing: ModelVectors  # the planted preference itself
    blind: ModelVectors  # vectors by chance


def _matrix(rating: np.ndarray, user: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((rating.astype(np.float32), (user, item)), shape=shape)


@pytest.fixture(scope="module")
def planted() -> Planted:
    random = np.random.default_rng(5)
    shape = users, items = 300, 200
    taste, kind = random.integers(4, size=users), random.integers(4, size=items)
    likes = taste[:, None] == kind
    popularity = 1 / (3 + random.permutation(items))
    chances = (popularity * np.where(likes, 8.0, 1.0)).ravel()
    user, item = np.divmod(
        random.choice(users * items, 6_000, replace=False, p=chances / chances.sum()), items
    )
    rating = np.clip(np.where(likes[user, item], 0.8, 0.3) + random.normal(0, 0.15, 6_000), 0, 1)
    held = held_out(hash_keys(pa.array(user)), hash_keys(pa.array(item)), SPLIT)
    sides = [_matrix(rating[rows], user[rows], item[rows], shape) for rows in (~held, held)]
    entries = np.repeat(np.arange(users), np.diff(sides[1].indptr)), sides[1].indices
    predicted = np.where(likes[entries], 0.8, 0.3)
    one_hot = np.eye(4, dtype=np.float32)
    return Planted(
        *sides,
        ModelVectors(one_hot[taste], one_hot[kind] + popularity[:, None].astype(np.float32), predicted),
        ModelVectors(
            random.normal(size=(users, 4)).astype(np.float32),
            random.normal(size=(items, 4)).astype(np.float32),
            random.random(sides[1].nnz),
        ),
    )


@pytest.fixture(scope="module")
def known(planted: Planted) -> Evaluation:
    return evaluate(planted.training, planted.held, planted.knowing, SPLIT, OPTIONS)


@pytest.fixture(scope="module")
def unknown(planted: Planted) -> Evaluation:
    return evaluate(planted.training, planted.held, planted.blind, SPLIT, OPTIONS)


def _slow_recall(planted: Planted, scores: np.ndarray, k: int) -> float:
    """One user at a time, with Python's own sorting and sets."""
    shares = []
    for user in range(planted.training.shape[0]):
        held, rated = planted.held[user], set(planted.training[user].indices.tolist())
        liked = {int(i) for i, r in zip(held.indices, held.data, strict=True) if r > 0.5}
        ranking = sorted(
            (i for i in range(scores.shape[1]) if i not in rated), key=lambda i: -scores[user, i]
        )
        if liked:
            shares.append(len(liked & set(ranking[:k])) / min(k, len(liked)))
    return float(np.mean(shares))


def test_recall_equals_a_slow_reference(planted: Planted, unknown: Evaluation) -> None:
    blind = planted.blind
    for k in OPTIONS.ks:
        assert unknown.systems["model"][f"recall@{k}"].value == pytest.approx(
            _slow_recall(planted, blind.users @ blind.items.T, k)
        )
    counts = (
        np.bincount(planted.training.indices, minlength=200)
        + np.asarray(planted.training.sum(0)).ravel() / 1e4
    )
    by_count = np.tile(counts, (300, 1))
    assert unknown.systems["popularity"]["recall@10"].value == pytest.approx(
        _slow_recall(planted, by_count, 10), abs=0.01
    )


def test_errors_are_in_the_shops_units(planted: Planted, known: Evaluation) -> None:
    held = planted.held.data
    rmse = 4 * math.sqrt(np.mean((planted.knowing.predicted - held) ** 2))
    assert known.systems["model"]["rmse"].value == pytest.approx(rmse, rel=1e-5)
    of_the_mean = 4 * math.sqrt(np.mean((planted.training.data.mean() - held) ** 2))
    assert known.systems["mean"]["rmse"].value == pytest.approx(of_the_mean, rel=1e-5)


def test_a_model_that_knows_beats_everybody_else_clearly(known: Evaluation) -> None:
    assert known.verdict().startswith("the model beats popularity, ")
    assert "but not" not in known.verdict()
    assert "better than the mean rating" in known.verdict()
    recall = {
        system: known.systems[system]["recall@10"].value for system in ("model", "popularity", "random")
    }
    assert recall["model"] > 1.5 * recall["popularity"] > 1.5 * recall["random"] > 0
    assert known.differences["popularity"]["recall@10"].low > 0.1


def test_a_model_of_chance_beats_nobody_and_it_is_said(unknown: Evaluation) -> None:
    assert unknown.verdict().startswith("the model beats nobody: recall@10 0.")
    assert "worse than the mean rating" in unknown.verdict()
    assert unknown.differences["popularity"]["recall@10"].high < 0
    random = unknown.differences["random"]["recall@10"]
    assert random.low < 0 < random.high


def test_every_metric_has_an_interval_around_it(known: Evaluation) -> None:
    names = {f"{metric}@{k}" for metric in ("recall", "ndcg", "map", "coverage") for k in (5, 10, 20)}
    for system in ("model", "popularity", "item_knn", "als", "random"):
        metrics = known.systems[system]
        assert set(metrics) - {"rmse"} == names
        for estimate in metrics.values():
            assert 0 <= estimate.low <= estimate.value <= estimate.high
    assert known.systems["random"]["coverage@20"].value > 0.99
    assert known.systems["popularity"]["coverage@5"].value < 0.2


def test_the_same_again_and_in_blocks_of_any_size(
    planted: Planted, known: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beamrec.model.evaluation, "_SCORES_AT_ONCE", 200 * 7)
    again = evaluate(planted.training, planted.held, planted.knowing, SPLIT, OPTIONS)
    assert again.to_json() == known.to_json()


def test_the_order_of_entries_does_not_matter(planted: Planted, known: Evaluation) -> None:
    """Columns of a CSR row need not be sorted."""
    held = planted.held
    reversed_rows = np.concatenate(
        [np.arange(b - 1, a - 1, -1) for a, b in zip(held.indptr, held.indptr[1:], strict=False)]
    )
    shuffled = sp.csr_matrix((held.data[reversed_rows], held.indices[reversed_rows], held.indptr), held.shape)
    model = dataclasses.replace(planted.knowing, predicted=planted.knowing.predicted[reversed_rows])
    again = evaluate(planted.training, shuffled, model, SPLIT, OPTIONS)
    assert again.headline() == pytest.approx(known.headline())


def test_at_most_so_many_customers_are_evaluated(planted: Planted, known: Evaluation) -> None:
    some = dataclasses.replace(OPTIONS, customers=40)
    one, again, other = (
        evaluate(planted.training, planted.held, planted.knowing, SPLIT, dataclasses.replace(some, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one.counts.evaluated == 40 >= one.counts.with_likes > 20
    assert one == again
    assert one.systems["model"] != other.systems["model"]
    wide, narrow = one.systems["model"]["recall@10"], known.systems["model"]["recall@10"]
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_by_hand() -> None:
    """User 0 likes item 11, which only his vector finds; he rated item 0, user 1 items 0 and 1."""
    users, items = np.array([[1.0, 0], [0, 1]], np.float32), np.zeros((12, 2), np.float32)
    items[11] = [1, 0]
    training = _matrix(np.array([1.0, 1.0, 0.5]), np.array([0, 1, 1]), np.array([0, 0, 1]), (2, 12))
    held = _matrix(np.array([1.0]), np.array([0]), np.array([11]), (2, 12))
    found = evaluate(training, held, ModelVectors(users, items, np.array([0.7])), SPLIT, EvaluationOptions())
    assert found.headline() | {"recall_at_10": 1.0, "recall_at_10_popularity": 0.0} == found.headline()
    assert found.headline()["rmse"] == pytest.approx(0.3)
    assert found.headline()["rmse_of_the_mean"] == pytest.approx(1 - 2.5 / 3)
    assert (found.counts.evaluated, found.counts.with_likes, found.counts.held_out) == (1, 1, 1)


def test_nothing_held_out_that_anybody_likes() -> None:
    training = _matrix(np.array([1.0, 1.0]), np.array([0, 1]), np.array([0, 1]), (2, 3))
    model = ModelVectors(np.ones((2, 2), np.float32), np.ones((3, 2), np.float32))
    for held in (
        sp.csr_matrix((2, 3), dtype=np.float32),
        _matrix(np.array([0.25]), np.array([0]), np.array([2]), (2, 3)),
    ):
        found = evaluate(training, held, model, SPLIT, OPTIONS)
        assert found.verdict().startswith("nothing can be said of the model")
        assert Evaluation.from_json(found.to_json()) == found
        assert found.headline()["held_out"] == held.nnz


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": np.ones((299, 4))}, "vectors of 299 users"),
        ({"items": np.full((200, 4), np.nan)}, "items: a value of the model is not finite"),
        ({"predicted": np.ones(3)}, "3 predictions of"),
    ],
)
def test_what_does_not_fit_is_refused(planted: Planted, change: dict[str, np.ndarray], message: str) -> None:
    model = dataclasses.replace(planted.knowing, **change)
    with pytest.raises(ValueError, match=message):
        evaluate(planted.training, planted.held, model, SPLIT, OPTIONS)


def test_a_rating_on_both_sides_is_refused(planted: Planted) -> None:
    model = dataclasses.replace(planted.knowing, predicted=None)
    with pytest.raises(ValueError, match="both sides of the split"):
        evaluate(planted.training, planted.training, model, SPLIT, OPTIONS)
