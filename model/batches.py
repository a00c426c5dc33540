"""Examples as batches for TensorFlow: read, shuffled and cut by tf.data, with no Python for each row.

Besides the model only two shards are in memory: the one that is being cut, and the next one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from beamrec.model.examples import EXAMPLE

__all__ = ["columns", "in_order", "shuffled"]

_WORDS = EXAMPLE.itemsize // 4
_AHEAD = 4  # batches that are ready before they are asked for


def shuffled(files: Sequence[Path], batch_size: int, seed: int, epoch: int, skip: int = 0) -> Any:
    """One epoch of training: shards in a drawn order, the rows of each shuffled; int32 [batch_size, 3].

    The same seed and epoch give the same batches. The last rows that fill no batch wait for another epoch.

    Args:
      skip: batches to leave out at the beginning, of an epoch that goes on.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(files))
    paths = tf.constant([str(files[number]) for number in order])
    draws = tf.data.Dataset.from_tensor_slices((paths, tf.range(len(files), dtype=tf.int64)))

    def read(path: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(_read(path), [seed, epoch * (1 << 20) + place])

    batches = draws.map(read).prefetch(1).rebatch(batch_size, drop_remainder=True)
    return batches.skip(skip).prefetch(_AHEAD)


def in_order(files: Sequence[Path], batch_size: int, seed: int) -> Any:
    """Every row once, in an order that is the same each time; int32 [at most batch_size, 3]."""
    paths = tf.data.Dataset.from_tensor_slices(tf.constant([str(path) for path in files]))
    mixed = paths.map(lambda path: tf.random.experimental.stateless_shuffle(_read(path), [seed, 0]))
    return mixed.rebatch(batch_size).prefetch(_AHEAD)


def _read(path: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.io.decode_raw(tf.io.read_file(path), tf.int32), [-1, _WORDS])


def columns(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Customer rows int32 [n], product rows int32 [n] and ratings float32 [n] of a batch int32 [n, 3]."""
    user, item, rating = tf.unstack(batch, axis=1)
    return user, item, tf.bitcast(rating, tf.float32)
