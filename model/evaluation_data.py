"""Ratings on either side of the split as sparse matrices, of at most so many that memory is bounded."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from beamrec.model.examples import Examples
from beamrec.schemas.hashing import mix

__all__ = ["SampledRatings", "entries", "sampled_ratings"]

MAX_RATINGS = 2_000_000
"""More than these are of a sample of customers: the model's rivals are fitted on them in memory."""


@dataclasses.dataclass(frozen=True)
class SampledRatings:
    """All ratings of some customers.

    Attributes:
      users: their rows in the table of customers, ascending, int64 [users].
      training, held: ratings 0…1 on either side of the split, [users, items]; a stored 0 is a rating.
    """

    users: npt.NDArray[np.int64]
    training: sp.csr_matrix
    held: sp.csr_matrix


def sampled_ratings(examples: Examples, seed: int, max_ratings: int = MAX_RATINGS) -> SampledRatings:
    """The ratings of all customers, or of a seeded sample of them with about `max_ratings` ratings.

    What early stopping looked at counts as training: the model chose by it, and its rivals may learn of it.
    """
    share = min(1.0, max_ratings / max(1, sum(examples.rows.values())))
    drawn = mix(np.arange(examples.users.num_rows, dtype=np.uint64) + mix(np.full(1, seed, np.uint64)))
    chosen = (drawn >> np.uint64(11)) * 2.0**-53 < share
    place = np.cumsum(chosen) - 1
    shape = (int(chosen.sum()), examples.items.num_rows)
    training, held = (
        _matrix([part for name in names for part in _of(examples.read(name), chosen)], place, shape)
        for names in (("training", "validation"), ("held",))
    )
    return SampledRatings(np.flatnonzero(chosen), training, held)


def _of(shards: Iterable[npt.NDArray[Any]], chosen: npt.NDArray[np.bool_]) -> list[npt.NDArray[Any]]:
    return [shard[chosen[shard["user"]]] for shard in shards]


def _matrix(
    parts: list[npt.NDArray[Any]], place: npt.NDArray[np.int64], shape: tuple[int, int]
) -> sp.csr_matrix:
    examples = np.concatenate(parts)
    examples = examples[np.lexsort((examples["item"], examples["user"]))]
    starts = np.zeros(shape[0] + 1, np.int64)
    np.cumsum(np.bincount(place[examples["user"]], minlength=shape[0]), out=starts[1:])
    return sp.csr_matrix((examples["rating"], examples["item"], starts), shape=shape)


def entries(ratings: sp.csr_matrix) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Row and column of every stored entry, in the order of `ratings.data`."""
    return np.repeat(np.arange(ratings.shape[0]), np.diff(ratings.indptr)), ratings.indices
