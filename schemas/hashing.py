"""The mixing of 64-bit numbers that splits, samples and shuffles by key rest on.

The same on every machine.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["Hashes", "mix"]

Hashes = npt.NDArray[np.uint64]

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(values: Hashes) -> Hashes:
    """SplitMix64 (Steele, Lea and Flood, 2014): close numbers become unrelated ones; any shape."""
    mixed = values + _INCREMENT
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return mixed ^ (mixed >> np.uint64(31))
