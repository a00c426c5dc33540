"""Made-up embeddings that lie as those of a trained two-tower model do: in clusters of unequal size."""

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["Catalogue", "make_catalogue"]

_Floats = npt.NDArray[np.float32]
_CLUSTERS_PER_ROOT = 1.0  # clusters: the root of the number of items
_SPREAD = 0.35  # of an item around its cluster's centre, in lengths of the centre
_TASTES = 3  # clusters that a user likes
_BLOCK = 100_000


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Items and users of length one: [num_items, dim], [num_users, dim]."""

    items: _Floats
    users: _Floats


def make_catalogue(items: int, users: int, dim: int, kind: str, seed: int = 42) -> Catalogue:
    """A catalogue.

    Args:
      kind: `clustered`: items around √items centres of Zipf's sizes, users between three centres that they
        like, as embeddings of people's tastes are; `uniform`: directions without any structure, which no
        model gives and which are the hardest for an index.
    """
    draw = np.random.default_rng([seed, items, dim])
    if kind == "uniform":
        return Catalogue(_normal(draw, items, dim), _normal(draw, users, dim))
    count = max(_TASTES, int(_CLUSTERS_PER_ROOT * items**0.5))
    centres = _normal(draw, count, dim)
    shares = 1 / np.arange(1, count + 1) ** 0.8
    shares /= shares.sum()
    rows = np.empty((items, dim), np.float32)
    for start in range(0, items, _BLOCK):
        block = rows[start : start + _BLOCK]
        own = centres[draw.choice(count, len(block), p=shares)]
        block[:] = _unit(own + _noise(draw, len(block), dim))
    liked = centres[draw.choice(count, (users, _TASTES), p=shares)]
    weights = draw.dirichlet(np.ones(_TASTES), users).astype(np.float32)
    tastes = np.einsum("utd,ut->ud", liked, weights)
    return Catalogue(rows, _unit(_unit(tastes) + _noise(draw, users, dim)))


def _noise(draw: np.random.Generator, rows: int, dim: int) -> _Floats:
    return (draw.standard_normal((rows, dim), np.float32) * (_SPREAD / dim**0.5)).astype(np.float32)


def _normal(draw: np.random.Generator, rows: int, dim: int) -> _Floats:
    return _unit(draw.standard_normal((rows, dim), np.float32))


def _unit(vectors: _Floats) -> _Floats:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
