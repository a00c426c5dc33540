"""A full disk as TensorFlow reports it, told as everything else tells it."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

__all__ = ["explaining_full_disk"]


@contextlib.contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """While TensorFlow writes into `folder` and computes nothing large.

    Raises:
      OSError: ENOSPC, in place of TensorFlow's ResourceExhaustedError.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
