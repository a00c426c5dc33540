"""Ranking metrics against figures by hand and against a slow reference written from their definitions."""

import math

import numpy as np
import pytest

from beamrec.model.ranking import NO_ITEM, Ranked, coverage, ranking_metrics, top_items


def _ranked(top: list[list[int]], likes: list[set[int]]) -> Ranked:
    hits = [[item in wanted for item in row] for row, wanted in zip(top, likes, strict=True)]
    return Ranked(np.array(top, np.int32), np.array(hits), np.array([len(wanted) for wanted in likes]))


def test_metrics_by_hand() -> None:
    """Hits at ranks 1 and 3 of two liked; at rank 2 of one; none of three; nothing to find."""
    ranked = _ranked([[4, 5, 6], [1, 2, 3], [0, 1, 2], [0, 1, 2]], [{4, 6}, {2}, {7, 8, 9}, set()])
    found = ranking_metrics(ranked, 3)
    assert found["recall@3"].tolist() == [1, 1, 0, 0]
    log3 = math.log2(3)
    np.testing.assert_allclose(found["ndcg@3"], [(1 + 1 / 2) / (1 + 1 / log3), 1 / log3, 0, 0])
    np.testing.assert_allclose(found["map@3"], [(1 / 1 + 2 / 3) / 2, 1 / 2, 0, 0])
    at_two = ranking_metrics(ranked, 2)
    assert at_two["recall@2"].tolist() == [0.5, 1, 0, 0]
    np.testing.assert_allclose(at_two["ndcg@2"], [1 / (1 + 1 / log3), 1 / log3, 0, 0])
    np.testing.assert_allclose(at_two["map@2"], [1 / 2, 1 / 2, 0, 0])


def test_a_perfect_list_is_worth_one_even_if_more_is_liked_than_fits() -> None:
    found = ranking_metrics(_ranked([[1, 2]], [{1, 2, 3, 4}]), 2)
    assert {name: value.tolist() for name, value in found.items()} == {
        "recall@2": [1], "ndcg@2": [1], "map@2": [1],
    }  # fmt: skip


def test_a_catalogue_smaller_than_the_list() -> None:
    found = ranking_metrics(_ranked([[0, 1]], [{1}]), 10)
    np.testing.assert_allclose([found["recall@10"][0], found["map@10"][0]], [1, 0.5])
    np.testing.assert_allclose(found["ndcg@10"], 1 / math.log2(3))


def _slow_metrics(top: list[int], liked: set[int], k: int) -> tuple[float, float, float]:
    """Written from the definitions, one item at a time."""
    hits = gain = precisions = 0.0
    for rank, item in enumerate(top[:k], start=1):
        if item in liked:
            hits += 1
            gain += 1 / math.log2(rank + 1)
            precisions += hits / rank
    best = min(k, len(liked))
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
    return (hits / best, gain / ideal, precisions / best) if best else (0.0, 0.0, 0.0)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_equal_a_slow_reference(k: int) -> None:
    random = np.random.default_rng(k)
    top = [random.permutation(30)[:10].tolist() for _ in range(200)]
    likes = [set(random.choice(30, random.integers(0, 15), replace=False).tolist()) for _ in range(200)]
    found = ranking_metrics(_ranked(top, likes), k)
    expected = [_slow_metrics(row, wanted, k) for row, wanted in zip(top, likes, strict=True)]
    np.testing.assert_allclose(np.stack(list(found.values()), axis=1), expected)


@pytest.mark.parametrize("k", [1, 3, 10, 40, 60])
def test_top_lists_equal_a_stable_sort_whatever_the_ties(k: int) -> None:
    random = np.random.default_rng(k)
    scores = random.integers(0, 6, (300, 40)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_items(scores, k), expected)


def test_what_is_ruled_out_is_never_recommended() -> None:
    scores = np.array([[5, -np.inf, 1, -np.inf], [-np.inf] * 4, [1, 2, 3, -np.inf]], np.float32)
    assert top_items(scores, 3).tolist() == [[0, 2, NO_ITEM], [NO_ITEM] * 3, [2, 1, 0]]


def test_coverage_counts_each_item_once_and_no_gaps() -> None:
    top = np.array([[0, 1], [0, 2], [NO_ITEM, NO_ITEM]])
    share, error = coverage(top, 10)
    assert share == 0.3
    # Without user 0, 1 or 2 the share is 0.2, 0.2, 0.3; the jackknife's variance of these is 2/3 · Σ d².
    assert error == pytest.approx(math.sqrt(2 / 3 * (2 * (0.1 / 3) ** 2 + (0.2 / 3) ** 2)))
    assert coverage(np.array([[0, 1], [1, 0]]), 2) == (1.0, 0.0)
