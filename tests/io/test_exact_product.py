"""The exact product finds what a full sort finds, ties included, whatever the sizes."""

import numpy as np
import pytest

from beamrec.io.exact_product import best_items


def full_sort(users: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-(users @ items.T), axis=1, kind="stable")[:, :count]


@pytest.mark.parametrize("items", [1, 7, 1023, 1025, 9216, 9217, 30_000])
@pytest.mark.parametrize("users", [1, 255, 257])
@pytest.mark.parametrize("count", [1, 10])
def test_best_items_equal_a_full_sort(users: int, items: int, count: int) -> None:
    rng = np.random.default_rng(users + items)
    # Small whole numbers: products are exact, and ties are many.
    queries = rng.integers(-3, 4, (users, 4)).astype(np.float32)
    vectors = rng.integers(-3, 4, (items, 4)).astype(np.float32)
    places, scores = best_items(queries, vectors, count)
    expected = full_sort(queries, vectors, count)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ vectors.T, expected, 1))


@pytest.mark.parametrize("order", [1, -1])
def test_items_sorted_by_score_are_no_worst_case(order: int) -> None:
    """Every block holds better items than all before it, or none at all."""
    vectors = np.sort(np.random.default_rng(1).normal(size=(40_000, 1)), axis=0)[::order].astype(np.float32)
    queries = np.array([[1.0], [-2.0]], np.float32)
    np.testing.assert_array_equal(best_items(queries, vectors, 25)[0], full_sort(queries, vectors, 25))


def test_no_users_and_no_items_give_nothing() -> None:
    assert best_items(np.ones((0, 3), np.float32), np.ones((5, 3), np.float32), 2)[0].shape == (0, 2)
    assert best_items(np.ones((4, 3), np.float32), np.ones((0, 3), np.float32), 2)[0].shape == (4, 0)
