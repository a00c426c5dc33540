"""Which ratings are held out of training: decided for each rating alone, or by time."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.errors import UsageError
from beamrec.schemas.evaluation import SplitOptions
from beamrec.schemas.hashing import Hashes, mix

__all__ = ["SplitOptions", "hash_keys", "held_out", "held_out_since", "moments", "time_cut"]

_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


def hash_keys(keys: pa.Array | pa.ChunkedArray) -> Hashes:
    """64-bit hashes of customers' or products' keys, uint64 [rows].

    The same on every machine and in every run; a number has the hash of its decimal text. Keys must not
    be NULL, which validated training files hold none of.
    """
    encoded = pc.dictionary_encode(keys)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    digests = [
        hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in encoded.dictionary.to_pylist()
    ]
    of_keys = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    hashes: Hashes = of_keys[encoded.indices.to_numpy(zero_copy_only=False)]
    return hashes


def held_out(users: Hashes, items: Hashes, options: SplitOptions) -> npt.NDArray[np.bool_]:
    """Whether each rating is held out, bool [rows], by its own customer, product and the seed alone.

    So the split is the same in any order and in any batches, and a rating keeps its side when others are
    added. Of a customer with n ratings about n · holdout are held out, but none with a chance of
    (1 - holdout)^n (such a customer is not evaluated), and all with holdout^n (he is evaluated as a
    customer that the model knows by features only); a guarantee would need all his ratings at once.

    Args:
      users, items: `hash_keys` of the ratings' customers and products, uint64 [rows].
    """
    seeded = mix(users + mix(np.full(1, options.seed, np.uint64)))
    drawn = mix(seeded ^ mix(items))
    # The upper 53 bits, as floats hold them exactly.
    return (drawn >> np.uint64(11)) * 2.0**-53 < options.holdout


def moments(times: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Times of ratings as numbers that ascend with time, float64 [rows]; an unknown time is before all.

    NULL and NaN are unknown times.

    Args:
      times: dates, timestamps or numbers, as the shop's `ratings.time` has them.

    Raises:
      UsageError: they are neither, or text.
    """
    if pa.types.is_date(times.type) or pa.types.is_timestamp(times.type):
        times = pc.cast(pc.cast(times, pa.timestamp("us")), pa.int64())
    elif not any(is_number(times.type) for is_number in _NUMBERS):
        raise UsageError(f"ratings.time: expected a column of dates, timestamps or numbers, got {times.type}")
    numbers = pc.fill_null(pc.cast(times, pa.float64(), safe=False), np.nan).to_numpy()
    return np.where(np.isnan(numbers), -np.inf, numbers)


def time_cut(times: npt.NDArray[np.float64], holdout: float) -> float:
    """The moment from which on ratings are held out: `holdout` of them, or more where many are of it.

    Args:
      times: `moments` of all ratings, or of a sample of them.

    Raises:
      UsageError: no moment divides them, such as where all are of one.
    """
    ordered = np.sort(times)
    cut = ordered[min(len(ordered) - 1, int(np.ceil(len(ordered) * (1 - holdout))))] if len(ordered) else 0.0
    later = ordered[ordered > ordered[0]] if len(ordered) else ordered
    if not len(later):
        raise UsageError(
            "evaluation: the ratings cannot be split by time, all are of one moment; "
            "split by interactions, or name another column as ratings.time"
        )
    return float(max(cut, later[0]))


def held_out_since(times: npt.NDArray[np.float64], cut: float) -> npt.NDArray[np.bool_]:
    """Whether each rating is of the cut's moment or later, bool [rows]."""
    return times >= cut
