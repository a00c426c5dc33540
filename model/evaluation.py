"""Offline metrics on held-out ratings: the model beside baselines, on one split, with intervals."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from beamrec.model.baselines import BASELINES, Scorer, popularity_order, vectors
from beamrec.model.intervals import Ratio, Resampled, resample
from beamrec.model.ranking import NO_ITEM, Ranked, coverage, ranking_metrics, top_items
from beamrec.schemas.evaluation import (
    MODEL,
    ORACLE,
    Counts,
    Estimate,
    Evaluation,
    EvaluationOptions,
    SplitOptions,
)

__all__ = ["EvaluationOptions", "ModelVectors", "Scorer", "SplitOptions", "evaluate", "popularity_order"]

_LIKED = 0.5
"""Held-out ratings above the middle of the scale are what a recommender should find."""

_SCORES_AT_ONCE = 4_000_000
_Z = 1.959964  # of a normal distribution's 95 % interval

Rows = npt.NDArray[np.int64]
_Name = tuple[str, str]  # system, metric


@dataclasses.dataclass(frozen=True)
class ModelVectors:
    """A trained model as it recommends.

    Attributes:
      users, items: float32 [users, dim] and [items, dim]; the score is their inner product.
      predicted: ratings 0…1 of the held-out entries in the order of `held.data`, float [held]; None of a
        model that predicts none.
    """

    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.floating] | None = None


def evaluate(
    training: sp.csr_matrix,
    held: sp.csr_matrix,
    model: ModelVectors,
    split: SplitOptions,
    options: EvaluationOptions,
    oracle: Scorer | None = None,
    sampled_from: int | None = None,
) -> Evaluation:
    """Measures the model beside popularity, random, item-kNN and ALS.

    Nobody is recommended what he rated in training. Ties go to the more popular item. Scores are held for
    a block of users at a time, so memory is that of the two matrices, of the fitted baselines and of
    `options.customers` top lists.

    Args:
      training, held: ratings 0…1 on either side of the split, [users, items]; a stored 0 is a rating.
      split: what divided them, for the record.
      oracle: scores by who knows how made-up data was made, on the same customers.
      sampled_from: customers of the data, if those given are a sample of them; for the record.

    Raises:
      ValueError: shapes disagree, a pair is on both sides, or a vector is not finite.
    """
    _check(training, held, model)
    order = popularity_order(training.indices, training.data, training.shape[1])
    training, held = _with_columns(training, order), _with_columns(held, order)
    model = dataclasses.replace(model, items=model.items[order])
    users = _sample(held, options)
    scorers = _scorers(training, model, options.seed)
    if oracle is not None:
        scorers[ORACLE] = lambda rows: oracle(rows)[:, order]
    ranked = _rank_all(scorers, training, held, users, max(options.ks))
    figures = _ratios(ranked, options.ks) | _errors(training, held, model, users, options)
    resampled = resample(figures, options.resamples, options.seed) if len(users) else {}
    systems = {
        system: _of(system, resampled) | _coverages(lists.top, options.ks, training.shape[1])
        for system, lists in ranked.items()
    }
    systems |= {"mean": mean} if (mean := _of("mean", resampled)) else {}
    liked = int(np.count_nonzero(ranked[MODEL].liked))
    customers, items = training.shape
    counts = Counts(customers, items, training.nnz, held.nnz, len(users), liked, sampled_from)
    return Evaluation(systems, _differences(resampled), counts, options, split)


def _check(training: sp.csr_matrix, held: sp.csr_matrix, model: ModelVectors) -> None:
    users, items = training.shape
    if held.shape != training.shape or (len(model.users), len(model.items)) != (users, items):
        raise ValueError(
            f"evaluation: expected [{users}, {items}] on either side and vectors for each, got held-out "
            f"ratings {held.shape} and vectors of {len(model.users)} users and {len(model.items)} items"
        )
    if not training.nnz:
        raise ValueError("evaluation: there are no ratings on the training side")
    for name, array in (("users", model.users), ("items", model.items), ("predicted", model.predicted)):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"evaluation: {name}: a value of the model is not finite")
    if model.predicted is not None and len(model.predicted) != held.nnz:
        raise ValueError(f"evaluation: {len(model.predicted)} predictions of {held.nnz} held-out ratings")


def _with_columns(ratings: sp.csr_matrix, order: npt.NDArray[np.int64]) -> sp.csr_matrix:
    """The same entries in the same order, stored zeros too, with the columns in another order."""
    place = np.empty(len(order), ratings.indices.dtype)
    place[order] = np.arange(len(order))
    return sp.csr_matrix((ratings.data, place[ratings.indices], ratings.indptr), shape=ratings.shape)


def _sample(held: sp.csr_matrix, options: EvaluationOptions) -> Rows:
    """Users with a held-out rating, all or a seeded sample, ascending."""
    eligible = np.flatnonzero(np.diff(held.indptr))
    if len(eligible) <= options.customers:
        return eligible
    random = np.random.default_rng(options.seed)
    return np.sort(random.choice(eligible, options.customers, replace=False))


def _scorers(training: sp.csr_matrix, model: ModelVectors, seed: int) -> dict[str, Scorer]:
    fitted = {name: fit(training, seed) for name, fit in BASELINES.items()}
    return {MODEL: vectors(model.users, model.items), **fitted}


def _rank_all(
    scorers: Mapping[str, Scorer], training: sp.csr_matrix, held: sp.csr_matrix, users: Rows, k: int
) -> dict[str, Ranked]:
    parts: dict[str, list[Ranked]] = {system: [] for system in scorers}
    at_once = max(1, _SCORES_AT_ONCE // training.shape[1])
    for start in range(0, max(len(users), 1), at_once):
        block = users[start : start + at_once]
        rated = _marked(training[block])
        if (rated & _marked(held[block])).any():
            raise ValueError("evaluation: a rating is on both sides of the split")
        likes = held[block].toarray() > _LIKED
        for system, scorer in scorers.items():
            parts[system].append(_rank(scorer(block), rated, likes, k))
    return {system: _joined(blocks) for system, blocks in parts.items()}


def _marked(ratings: sp.csr_matrix) -> npt.NDArray[np.bool_]:
    """Where there is a rating, also one of 0; bool [users, items]."""
    ones = np.ones(ratings.nnz, bool)
    marked = sp.csr_matrix((ones, ratings.indices, ratings.indptr), shape=ratings.shape).toarray()
    return np.asarray(marked, bool)


def _rank(
    scores: npt.NDArray[np.float32], rated: npt.NDArray[np.bool_], likes: npt.NDArray[np.bool_], k: int
) -> Ranked:
    top = top_items(np.where(rated, -np.inf, scores).astype(np.float32), k)
    hits = np.take_along_axis(likes, np.maximum(top, 0), 1) & (top != NO_ITEM)
    return Ranked(top, hits, likes.sum(1))


def _joined(blocks: list[Ranked]) -> Ranked:
    return Ranked(
        np.concatenate([b.top for b in blocks]),
        np.concatenate([b.hits for b in blocks]),
        np.concatenate([b.liked for b in blocks]),
    )


def _ratios(ranked: Mapping[str, Ranked], ks: tuple[int, ...]) -> dict[_Name, Ratio]:
    """Means over the users who have something to find."""
    return {
        (system, metric): Ratio(values, (lists.liked > 0).astype(np.float64))
        for system, lists in ranked.items()
        for k in ks
        for metric, values in ranking_metrics(lists, k).items()
    }


def _errors(
    training: sp.csr_matrix, held: sp.csr_matrix, model: ModelVectors, users: Rows, options: EvaluationOptions
) -> dict[_Name, Ratio]:
    """Root mean square errors of the model and of the training ratings' mean."""
    counts = np.diff(held.indptr)
    user = np.repeat(np.arange(len(counts)), counts)
    predictions = {"mean": np.full(held.nnz, training.data.mean(dtype=np.float64))}
    if model.predicted is not None:
        predictions[MODEL] = np.asarray(model.predicted, np.float64)
    errors = {
        system: np.bincount(user, ((predicted - held.data) * options.rating_span) ** 2, len(counts))
        for system, predicted in predictions.items()
    }
    return {
        (system, "rmse"): Ratio(squares[users].astype(np.float64), counts[users].astype(np.float64), np.sqrt)
        for system, squares in errors.items()
    }


def _of(system: str, resampled: Mapping[_Name, Resampled]) -> dict[str, Estimate]:
    return {metric: figure.estimate() for (name, metric), figure in resampled.items() if name == system}


def _coverages(top: npt.NDArray[np.int32], ks: tuple[int, ...], items: int) -> dict[str, Estimate]:
    estimates = {}
    for k in ks:
        share, error = coverage(top[:, :k], items) if len(top) else (0.0, 0.0)
        estimates[f"coverage@{k}"] = Estimate(share, max(share - _Z * error, 0), min(share + _Z * error, 1))
    return estimates


def _differences(resampled: Mapping[_Name, Resampled]) -> dict[str, dict[str, Estimate]]:
    """The model's figures less every other system's, on the same bootstrap samples."""
    found: dict[str, dict[str, Estimate]] = {}
    for (system, metric), figure in resampled.items():
        mine = resampled.get((MODEL, metric))
        if system != MODEL and mine is not None:
            found.setdefault(system, {})[metric] = (mine - figure).estimate()
    return found
