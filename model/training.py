"""Training: seeded, streamed, with early stopping, and resumed where a killed one left off."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beamrec.model.batches import in_order, shuffled
from beamrec.model.checkpoints import Checkpoints, Progress
from beamrec.model.examples import Examples
from beamrec.model.learner import Learner
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec
from beamrec.model.towers import Tower
from beamrec.schemas.errors import UsageError

__all__ = ["Report", "TrainedModel", "train"]

_CALL_SECONDS = 0.5  # a call into TensorFlow takes about so long: progress is shown between two


@dataclasses.dataclass(frozen=True)
class Report:
    """How far a training is.

    Attributes:
      epoch: the one under way, from 1, of at most `epochs`.
      done: share of this epoch that is done, 0…1.
      loss: mean training loss of the epoch so far.
      examples_per_second: of this process.
      seconds_left: until all epochs are done; early stopping may end it sooner.
      validation: loss on the validation ratings, at the end of an epoch.
    """

    epoch: int
    epochs: int
    done: float
    loss: float
    examples_per_second: float
    seconds_left: float
    validation: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Trained towers, and what they make of the tables.

    Attributes:
      user_vectors, item_vectors: [users, dim] and [items, dim] float32.
      predict: vectors of users and of items, each [n, dim] → ratings [n] on the scale 0…1.
      progress: losses by epoch.
      batch_size: ratings of each step.
    """

    user_tower: Tower
    item_tower: Tower
    user_vectors: npt.NDArray[np.float32]
    item_vectors: npt.NDArray[np.float32]
    predict: Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    progress: Progress
    batch_size: int


def train(
    examples: Examples,
    spec: FeatureSpec,
    scalers: Path,
    options: TrainingOptions,
    checkpoints: Path,
    report: Callable[[Report], None] = lambda report: None,
    warn: Callable[[str], None] = lambda text: None,
    checkpoint_seconds: float = 60.0,
) -> TrainedModel:
    """Trains both towers, from the newest good checkpoint on if there is one.

    Args:
      scalers: folder of the preprocessing graph.
      checkpoints: folder of this training alone; made if it is not there.
      report: called about twice a second, and at the end of every epoch.
      warn: told of a checkpoint that cannot be used.
      checkpoint_seconds: between two checkpoints within an epoch; there is one after each, too.

    Raises:
      OSError: a checkpoint cannot be written; ENOSPC where there is no room.
      UsageError: there are too few ratings to hold any out.
    """
    if examples.rows["training"] < 2 or not examples.rows["held"]:
        total = sum(examples.rows.values())
        raise UsageError(f"training: {total} ratings are too few to train on some and hold out others")
    learner = Learner(examples, spec, scalers, options)
    saved = Checkpoints(checkpoints, learner.state, warn)
    progress = _Run(learner, examples, options, saved, report, checkpoint_seconds).to_the_end()
    users, items = learner.vectors()
    return TrainedModel(
        learner.user_tower, learner.item_tower, users, items, learner.predict, progress, learner.batch_size
    )


class _Run:
    """One process' part of a training."""

    def __init__(
        self,
        learner: Learner,
        examples: Examples,
        options: TrainingOptions,
        checkpoints: Checkpoints,
        report: Callable[[Report], None],
        checkpoint_seconds: float,
    ) -> None:
        self._learner, self._examples, self._options = learner, examples, options
        self._checkpoints, self._report = checkpoints, report
        self._checkpoint_seconds = checkpoint_seconds
        self._progress = checkpoints.restore_latest()
        self._first_step, self._steps_a_call = learner.steps, 1
        self._seconds, self._saved = 0.0, time.monotonic()

    def to_the_end(self) -> Progress:
        """Trains until the last epoch or early stopping, and leaves the best weights in the learner."""
        patience = self._options.patience
        while self._progress.epoch < self._options.epochs:
            if patience and self._progress.epochs_since_best >= patience:
                break
            self._epoch()
        if self._progress.best >= 0:
            self._checkpoints.restore(self._progress.best)
        return self._progress

    def _epoch(self) -> None:
        learner, progress = self._learner, self._progress
        if not progress.epoch_step:
            learner.start_epoch()
        batches = iter(
            shuffled(
                self._examples.files("training"), learner.batch_size, self._options.seed,
                progress.epoch, progress.epoch_step,
            )
        )  # fmt: skip
        done = progress.epoch_step
        while done < learner.epoch_steps:
            done += self._call(batches, min(self._steps_a_call, learner.epoch_steps - done))
            if done < learner.epoch_steps:
                self._save_in_between(done)
                self._tell(progress.epoch, done)
        self._finish_epoch()

    def _call(self, batches: object, steps: int) -> int:
        """Trains so many steps; the next call is longer or shorter, for the time that it is to take."""
        began = time.monotonic()
        self._learner.train(batches, tf.constant(steps))
        seconds = time.monotonic() - began
        self._seconds += seconds
        wanted = int(steps * _CALL_SECONDS / max(seconds, 1e-3))
        self._steps_a_call = max(1, min(wanted, 4 * self._steps_a_call))
        return steps

    def _save_in_between(self, done: int) -> None:
        if time.monotonic() - self._saved > self._checkpoint_seconds:
            self._progress = dataclasses.replace(self._progress, epoch_step=done)
            self._save()

    def _save(self) -> None:
        self._checkpoints.save(self._learner.steps, self._progress)
        self._saved = time.monotonic()

    def _finish_epoch(self) -> None:
        learner, progress = self._learner, self._progress
        loss = learner.loss_sum / learner.epoch_steps
        validation = self._validated()
        losses = (*progress.validation, *validation)
        is_best = bool(validation) and validation[0] <= min(losses)
        self._progress = Progress(
            epoch=progress.epoch + 1,
            losses=(*progress.losses, loss),
            validation=losses,
            best=learner.steps if is_best else progress.best,
        )
        self._save()
        self._tell(progress.epoch, learner.epoch_steps, validation[0] if validation else None)

    def _validated(self) -> tuple[float, ...]:
        """The validation loss, if there is anything to validate on."""
        if not self._examples.rows["validation"]:
            return ()
        files = self._examples.files("validation")
        batches = in_order(files, self._learner.batch_size, self._options.seed)
        return (float(self._learner.loss(batches)),)

    def _tell(self, epoch: int, done: int, validation: float | None = None) -> None:
        learner, epochs = self._learner, self._options.epochs
        steps_a_second = (learner.steps - self._first_step) / max(self._seconds, 1e-9)
        steps_left = epochs * learner.epoch_steps - learner.steps
        self._report(
            Report(
                epoch=epoch + 1,
                epochs=epochs,
                done=done / learner.epoch_steps,
                loss=learner.loss_sum / max(done, 1),
                examples_per_second=steps_a_second * learner.batch_size,
                seconds_left=steps_left / max(steps_a_second, 1e-9),
                validation=validation,
            )
        )
