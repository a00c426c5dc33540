"""Checkpoints of a training: whole or absent, checked before use, the newest good one first.

A checkpoint is a folder `<number>` with TensorFlow's files and `progress.json`, which holds where training
stood and the SHA-256 of those files. It is written beside its place and renamed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from beamrec.model.full_disk import explaining_full_disk

__all__ = ["Checkpoints", "Progress"]

_PROGRESS, _VARIABLES = "progress.json", "variables"
_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
      epoch: the one under way, from 0.
      epoch_step: its steps done.
      losses: mean training loss of each finished epoch.
      validation: loss on the validation ratings after each finished epoch; empty without early stopping.
      best: number of the checkpoint of the epoch with the least validation loss; -1 without one.
    """

    epoch: int = 0
    epoch_step: int = 0
    losses: tuple[float, ...] = ()
    validation: tuple[float, ...] = ()
    best: int = -1

    @property
    def epochs_since_best(self) -> int:
        """Finished epochs after the one with the least validation loss."""
        if not self.validation:
            return 0
        return len(self.validation) - 1 - self.validation.index(min(self.validation))


class Checkpoints:
    """The checkpoints of one training in one folder; nobody else writes there.

    Args:
      variables: what is saved and restored, always the same in the same order.
      warn: told of a checkpoint that cannot be used.
    """

    def __init__(self, folder: Path, variables: Sequence[tf.Variable], warn: Callable[[str], None]) -> None:
        self._folder, self._warn = folder, warn
        self._checkpoint = tf.train.Checkpoint(variables=list(variables))

    def save(self, number: int, progress: Progress) -> None:
        """Writes a checkpoint under a new number, and removes those that are no longer needed.

        Raises:
          OSError: it cannot be written; ENOSPC where there is no room.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        staging = self._folder / f".{number}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        with explaining_full_disk(staging):
            self._checkpoint.write(str(staging / _VARIABLES))
        values = dataclasses.asdict(progress) | {"files": _checksums(staging)}
        with (staging / _PROGRESS).open("w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        target = self._folder / str(number)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
        keep = {*self._numbers()[-_KEPT:], progress.best}
        for old in set(self._numbers()) - keep:
            shutil.rmtree(self._folder / str(old))

    def restore_latest(self) -> Progress:
        """Restores the newest checkpoint that is good, and discards newer ones; a new Progress if none is."""
        for number in reversed(self._numbers()):
            progress = self._restored(number)
            if progress is not None:
                return progress
            shutil.rmtree(self._folder / str(number))
        return Progress()

    def restore(self, number: int) -> None:
        """Restores the variables of a checkpoint that was saved or found good."""
        self._checkpoint.read(str(self._folder / str(number) / _VARIABLES)).assert_consumed()

    def _numbers(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())
        return []

    def _restored(self, number: int) -> Progress | None:
        try:
            progress = self._checked(number)
            if progress.best >= 0:
                self._checked(progress.best)
            self.restore(number)
        except (OSError, ValueError, TypeError, KeyError, AssertionError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self._warn(f"{self._folder / str(number)}: checkpoint discarded: {reason[0]}")
            return None
        return progress

    def _checked(self, number: int) -> Progress:
        folder = self._folder / str(number)
        values: dict[str, Any] = json.loads((folder / _PROGRESS).read_text())
        if _checksums(folder) != values.pop("files"):
            raise ValueError("its files are not what was written")
        for name in ("losses", "validation"):
            values[name] = tuple(values[name])
        return Progress(**values)


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of TensorFlow's files, by name; flushed to the disk, as a rename comes after."""
    found = {}
    for path in sorted(folder.glob(f"{_VARIABLES}.*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
