"""Offline metrics on held-out ratings, beside popularity on the same split."""

import numpy as np

__all__ = ["TOP", "evaluate", "popularity_order", "recall_at"]

TOP = 10

_LIKED = 0.5
"""Held-out ratings above the middle of the scale are what a recommender should find."""


def popularity_order(item: np.ndarray, rating: np.ndarray, items: int) -> np.ndarray:
    """Item indices by falling number of ratings, then mean rating, then index; int64 [items]."""
    counts = np.bincount(item, minlength=items)
    means = np.bincount(item, rating, minlength=items) / np.maximum(counts, 1)
    return np.lexsort((np.arange(items), -means, -counts))


def recall_at(top: np.ndarray, liked: dict[int, set[int]]) -> float:
    """Mean over users of the share of their liked items among the recommended ones.

    Args:
      top: recommended items, int [users, k].
      liked: user → items; users without one do not count. The share is of min(k, liked).
    """
    if not liked:
        return 0.0
    shares = [len(items & set(top[u].tolist())) / min(top.shape[1], len(items)) for u, items in liked.items()]
    return float(np.mean(shares))


def evaluate(
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    predicted: np.ndarray,
    user: np.ndarray,
    item: np.ndarray,
    rating: np.ndarray,
    training: np.ndarray,
    held: np.ndarray,
) -> dict[str, float]:
    """RMSE of the predicted ratings and recall@10 beside popularity's and chance's.

    Items that a user rated in training are not recommended, by neither recommender.

    Args:
      user_vectors, item_vectors: [users, dim] and [items, dim].
      predicted: predicted ratings of the held-out rows.
      user, item, rating: all ratings as indices and scale 0…1.
      training, held: rows of the split.
    """
    liked: dict[int, set[int]] = {}
    for row in held[rating[held] > _LIKED]:
        liked.setdefault(int(user[row]), set()).add(int(item[row]))
    scores = user_vectors @ item_vectors.T
    popularity = np.empty(len(item_vectors))
    order = popularity_order(item[training], rating[training], len(item_vectors))
    popularity[order] = -np.arange(len(order))
    by_popularity = np.tile(popularity, (len(user_vectors), 1))
    baseline = float(np.sqrt(np.mean((rating[training].mean() - rating[held]) ** 2)))
    for ranking in (scores, by_popularity):
        ranking[user[training], item[training]] = -np.inf
    return {
        "rmse": float(np.sqrt(np.mean((predicted - rating[held]) ** 2))),
        "rmse_of_the_mean": baseline,
        "recall_at_10": recall_at(_top(scores), liked),
        "recall_at_10_popularity": recall_at(_top(by_popularity), liked),
        "recall_at_10_random": _chance(liked, user[training], len(item_vectors)),
        "held_out": float(len(held)),
    }


def _top(ranking: np.ndarray) -> np.ndarray:
    return np.argsort(-ranking, axis=1, kind="stable")[:, :TOP]


def _chance(liked: dict[int, set[int]], user: np.ndarray, items: int) -> float:
    """Expected recall of TOP items drawn among those that the user did not rate in training."""
    rated = np.bincount(user, minlength=max(liked, default=0) + 1)
    shares = [
        min(1.0, TOP / max(1, items - rated[u])) * len(wanted) / min(TOP, len(wanted))
        for u, wanted in liked.items()
    ]
    return float(np.mean(shares)) if shares else 0.0
