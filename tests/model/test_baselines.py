"""Baselines against naive references, and against `implicit`'s own recommendations."""

import numpy as np
import pytest
import scipy.sparse as sp

from beamrec.model import baselines
from beamrec.model.baselines import (
    BASELINES,
    als,
    item_knn,
    popularity,
    popularity_order,
    random_scores,
    vectors,
)
from beamrec.schemas.evaluation import MODEL, ORACLE, SYSTEM_NAMES


def _ratings(users: int = 60, items: int = 30, share: float = 0.2, seed: int = 1) -> sp.csr_matrix:
    """Ratings 0…1 with stored zeros among them, and one user and one item without any."""
    random = np.random.default_rng(seed)
    user, item = np.nonzero(random.random((users, items)) < share)
    kept = (user != 3) & (item != 5)
    rating = random.integers(0, 5, kept.sum()) / 4
    return sp.csr_matrix((rating.astype(np.float32), (user[kept], item[kept])), shape=(users, items))


EVERYBODY = np.arange(60)


def test_popularity_is_by_count_then_mean_then_index() -> None:
    item, rating = np.array([2, 2, 0, 1, 3]), np.array([0.0, 0.0, 0.5, 1.0, 0.5])
    assert popularity_order(item, rating, 5).tolist() == [2, 1, 0, 3, 4]
    training = sp.csr_matrix((rating, (np.arange(5), item)), shape=(6, 5))
    assert np.argsort(-popularity(training)(np.array([0, 5]))).tolist() == [[2, 1, 0, 3, 4]] * 2


def test_item_knn_is_the_cosine_of_columns() -> None:
    training = _ratings()
    dense = np.zeros(training.shape)
    user = np.repeat(EVERYBODY, np.diff(training.indptr))
    dense[user, training.indices] = np.maximum(training.data, 0.1)  # a stored 0 is an interaction too
    expected = np.zeros(training.shape)
    for mine in range(30):
        for other in range(30):
            lengths = np.linalg.norm(dense[:, mine]) * np.linalg.norm(dense[:, other])
            if lengths:
                expected[:, mine] += dense[:, other] * (dense[:, mine] @ dense[:, other]) / lengths
    np.testing.assert_allclose(item_knn(training)(EVERYBODY), expected, atol=1e-5)


def test_item_knn_keeps_the_nearest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamrec.model.baselines._NEIGHBOURS", 2)
    training = sp.csr_matrix(np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.float32))
    scores = item_knn(training)(np.array([3]))
    # Item 0's nearest are 1 (√3/2) and 2 (√1/2); 3 is left out.
    assert scores[0, 3] == 0
    np.testing.assert_allclose(scores[0, 1:3], [np.sqrt(3) / 2, np.sqrt(1 / 2)], rtol=1e-6)


def test_als_recommends_what_implicit_itself_does() -> None:
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    training = _ratings()
    weights = sp.csr_matrix((np.maximum(training.data, 0.1), training.indices, training.indptr), (60, 30))
    with threadpool_limits(1, "blas"):
        theirs = AlternatingLeastSquares(
            factors=baselines._FACTORS, regularization=baselines._regularization(training),
            alpha=baselines._CONFIDENCE, iterations=baselines._ITERATIONS, num_threads=1, random_state=7,
        )  # fmt: skip
        theirs.fit(weights, show_progress=False)
    ids, scores = theirs.recommend(EVERYBODY, training, N=30, filter_already_liked_items=False)
    mine = als(training, 7)(EVERYBODY)
    np.testing.assert_allclose(np.take_along_axis(mine, ids, 1), scores, atol=1e-5)


def test_als_tells_what_was_rated_from_what_was_not() -> None:
    training = _ratings(share=0.4)
    scores = als(training, 1)(EVERYBODY)
    rated = np.zeros(training.shape, bool)
    rated[np.repeat(EVERYBODY, np.diff(training.indptr)), training.indices] = True
    assert scores[rated].mean() > 2 * scores[~rated].mean()


def test_als_is_seeded() -> None:
    training = _ratings()
    first, again, other = (als(training, seed)(EVERYBODY) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other, atol=1e-4)


def test_random_is_even_and_the_same_in_any_block() -> None:
    score = random_scores(50, seed=3)
    users = np.arange(4_000)
    scores = score(users)
    np.testing.assert_array_equal(score(users[700:710]), scores[700:710])
    first = np.bincount(scores.argmax(1), minlength=50)
    assert abs(((first - 80) ** 2 / 80).sum() - 49) < 4 * np.sqrt(
        2 * 49
    )  # chi-squared, 49 degrees of freedom
    assert (random_scores(50, seed=4)(users) != scores).mean() > 0.99


def test_vectors_score_by_inner_product() -> None:
    users, items = np.array([[1.0, 2], [3, 4]], np.float32), np.array([[1.0, 0], [0, 2], [1, 1]], np.float32)
    assert vectors(users, items)(np.array([1])).tolist() == [[3, 8, 7]]


def test_every_baseline_has_a_name_to_be_shown_under_and_scores_all_items() -> None:
    assert {*BASELINES, MODEL, ORACLE, "mean"} == set(SYSTEM_NAMES)
    training = sp.random(12, 9, 0.4, "csr", np.float32, np.random.default_rng(1))
    for fit in BASELINES.values():
        assert fit(training, 7)(np.arange(5)).shape == (5, 9)
