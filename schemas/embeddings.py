"""What an embedding may be, wherever it comes from: its id, the length of its vector, who finds it how."""

import re

import numpy as np

from beamrec.schemas.shop import KeyType

__all__ = [
    "MAX_LENGTH",
    "UNIT_TOLERANCE",
    "KeyType",
    "expected_length",
    "search_operator",
    "wrong_id",
    "wrong_lengths",
]

UNIT_TOLERANCE = 1e-3
"""How far from 1 a unit vector's length may be: numbers written in six digits lose that much."""

MAX_LENGTH = 1e18
"""The longest vector: products and squared distances of such vectors stay within float32."""

_MAX_ID_BYTES = 1_000  # an index row of PostgreSQL holds 2,700
_INT = re.compile(r"0|-?[1-9][0-9]{0,18}")


def wrong_id(key: str, key_type: KeyType) -> str | None:
    """What was expected of an id that is not usable; None if it is.

    Args:
      key_type: `int` wants 64-bit integers in their shortest form, so that no two ids are one number.
    """
    if not key:
        return "a new id"
    if key_type == "int":
        fits = _INT.fullmatch(key) and -(2**63) <= int(key) < 2**63
        return None if fits else "an integer id without blanks, leading zeros or a plus"
    if "\0" in key or len(key) > _MAX_ID_BYTES or len(key.encode()) > _MAX_ID_BYTES:
        return f"an id of at most {_MAX_ID_BYTES} bytes without NUL"
    return None


def wrong_lengths(lengths: np.ndarray, normalized: bool, operator: str) -> np.ndarray:
    """Which vectors [rows] bool a release cannot hold, by their Euclidean lengths [rows] float64.

    Args:
      normalized: whether the release says that every vector has length one.
      operator: of its distance; cosine distance is not defined for a vector of length 0.
    """
    if normalized:
        return np.asarray(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))
    return np.asarray(~(lengths <= MAX_LENGTH) | ((operator == "<=>") & (lengths == 0)))


def expected_length(normalized: bool, operator: str) -> str:
    """What `wrong_lengths` asks for, in words."""
    if normalized:
        return "length one"
    return f"a length {'above 0 and ' if operator == '<=>' else ''}of at most {MAX_LENGTH:g}"


def search_operator(operator: str, normalized: bool) -> str:
    """The operator that finds the items of highest inner product in a release.

    Vectors of length one rank alike by every operator, so that of the release serves, and one index with it;
    others need the inner product itself.

    Args:
      operator: of the release's distance.
      normalized: whether every vector of the release has length one.
    """
    return operator if normalized else "<#>"
