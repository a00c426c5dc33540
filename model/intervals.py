"""95 % intervals by a seeded bootstrap over users; systems are resampled together, for paired comparisons."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from beamrec.schemas.evaluation import Estimate

__all__ = ["Ratio", "Resampled", "resample"]

Name = TypeVar("Name", bound=Hashable)

_Floats = npt.NDArray[np.float64]
_PERCENTILES = (2.5, 97.5)
_CELLS_AT_ONCE = 8_000_000


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A figure that is a sum over users by another one.

    Attributes:
      numerator, denominator: float64 [users].
      of: what becomes of the quotient, such as the root of a mean square.
    """

    numerator: _Floats
    denominator: _Floats
    of: Callable[[_Floats], _Floats] = np.asarray


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A figure on the users as they are, and on each bootstrap sample of them, float64 [resamples]."""

    value: float
    samples: _Floats

    def estimate(self) -> Estimate:
        """The percentile interval (Efron, 1979), widened to hold the value."""
        low, high = np.percentile(self.samples, _PERCENTILES)
        return Estimate(self.value, float(min(low, self.value)), float(max(high, self.value)))

    def __sub__(self, other: "Resampled") -> "Resampled":
        return Resampled(self.value - other.value, self.samples - other.samples)


def resample(figures: Mapping[Name, Ratio], resamples: int, seed: int) -> dict[Name, Resampled]:
    """Every figure on the same bootstrap samples of the users; 0 where a sample has nothing to divide by."""
    numerators = np.stack([figure.numerator for figure in figures.values()])
    denominators = np.stack([figure.denominator for figure in figures.values()])
    values = _divide(numerators.sum(1), denominators.sum(1))
    parts = [
        _divide(counts @ numerators.T, counts @ denominators.T)
        for counts in _counts(numerators.shape[1], resamples, seed)
    ]
    samples = np.concatenate(parts)
    return {
        name: Resampled(float(figure.of(values[place])), np.asarray(figure.of(samples[:, place])))
        for place, (name, figure) in enumerate(figures.items())
    }


def _counts(users: int, resamples: int, seed: int) -> Iterator[_Floats]:
    """How often each user is in each sample, float64 [some samples, users]."""
    random = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // users)
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), users)
        drawn = random.integers(0, users, shape) + np.arange(shape[0])[:, None] * users
        yield np.bincount(drawn.ravel(), minlength=shape[0] * users).reshape(shape).astype(np.float64)


def _divide(numerator: _Floats, denominator: _Floats) -> _Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)
