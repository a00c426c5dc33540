"""What a model is measured against: popularity, chance, item-kNN and ALS, each fitted on the training side.

Every system scores some users against all items; `beamrec.model.evaluation` ranks them all alike.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from beamrec.schemas.hashing import mix

__all__ = [
    "BASELINES",
    "Scorer",
    "als",
    "item_knn",
    "popularity",
    "popularity_order",
    "random_scores",
    "vectors",
]

Floats = npt.NDArray[np.float32]
Scorer = Callable[[npt.NDArray[np.int64]], Floats]
"""User rows [n] → scores [n, items]; the higher, the sooner recommended."""

_NEIGHBOURS = 50
# The best or nearly so of 13 settings, on planted shops of 0.2 M and 1 M ratings and on classicmodels:
# 32 factors or a confidence of 10 and more lost up to a quarter of the recall.
_FACTORS, _ITERATIONS, _CONFIDENCE, _REGULARIZATION = 16, 15, 3.0, 0.07


def popularity_order(
    item: npt.NDArray[np.integer], rating: npt.NDArray[np.floating], items: int
) -> npt.NDArray[np.int64]:
    """Item indices by falling number of ratings, then mean rating, then index; int64 [items]."""
    counts = np.bincount(item, minlength=items)
    means = np.bincount(item, rating, minlength=items) / np.maximum(counts, 1)
    return np.lexsort((np.arange(items), -means, -counts))


def vectors(users: Floats, items: Floats) -> Scorer:
    """Inner products of users' [users, dim] and items' vectors [items, dim]."""
    return lambda rows: np.asarray(users[rows] @ items.T, np.float32)


def popularity(training: sp.csr_matrix) -> Scorer:
    """The same for everybody: items by number of ratings."""
    order = popularity_order(training.indices, training.data, training.shape[1])
    scores = np.empty(len(order), np.float32)
    scores[order] = -np.arange(len(order))
    return lambda rows: np.tile(scores, (len(rows), 1))


def random_scores(items: int, seed: int) -> Scorer:
    """Chance: a score by hash of user and item, the same whichever users are asked together."""
    columns = mix(np.arange(items, dtype=np.uint64) + mix(np.full(1, seed, np.uint64)))

    def score(rows: npt.NDArray[np.int64]) -> Floats:
        drawn = mix(mix(rows.astype(np.uint64))[:, None] ^ columns[None, :])
        return (drawn >> np.uint64(40)).astype(np.float32)

    return score


def item_knn(training: sp.csr_matrix) -> Scorer:
    """Items like those that the user rated: cosine of their columns, the nearest of each (Sarwar, 2001)."""
    from implicit.nearest_neighbours import ItemItemRecommender

    weights = _weights(training)
    lengths = np.sqrt(np.bincount(weights.indices, weights.data**2, weights.shape[1]))
    unit = weights.data / lengths[weights.indices]
    model = ItemItemRecommender(K=_NEIGHBOURS + 1, num_threads=1)  # itself is one of them
    model.fit(sp.csr_matrix((unit, weights.indices, weights.indptr), weights.shape), show_progress=False)
    similarity = model.similarity.astype(np.float32)
    return lambda rows: (weights[rows] @ similarity).toarray()


def als(training: sp.csr_matrix, seed: int) -> Scorer:
    """Implicit-feedback matrix factorization by alternating least squares (Hu, Koren and Volinsky, 2008).

    Regularization grows with the ratings of a user and of an item, as each adds to their sums of squares.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    with _one_thread():
        model = AlternatingLeastSquares(
            factors=_FACTORS, regularization=_regularization(training), iterations=_ITERATIONS,
            num_threads=1, random_state=seed,
        )  # fmt: skip
        model.fit(_weights(training) * _CONFIDENCE, show_progress=False)
    return vectors(model.user_factors, model.item_factors)


def _regularization(training: sp.csr_matrix) -> float:
    return float(_REGULARIZATION * training.nnz / np.sqrt(training.shape[0] * training.shape[1]))


def _weights(training: sp.csr_matrix) -> sp.csr_matrix:
    """Ratings as the strength of an interaction; the lowest rating is one too, so none is 0."""
    floor = np.float32(0.1)
    data = np.maximum(training.data.astype(np.float32), floor)
    return sp.csr_matrix((data, training.indices, training.indptr), shape=training.shape)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """BLAS on one thread: its order of summation would differ, and `implicit` is far slower with more."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


BASELINES: Mapping[str, Callable[[sp.csr_matrix, int], Scorer]] = {
    "popularity": lambda training, seed: popularity(training),
    "item_knn": lambda training, seed: item_knn(training),
    "als": als,
    "random": lambda training, seed: random_scores(training.shape[1], seed),
}
"""Each baseline by the name that `beamrec.schemas.evaluation.SYSTEM_NAMES` shows it under.

Fitted on the training side [users, items] with a seed. To add one, add it here and its name there.
"""
