"""Examples per second of one model, streamed from the disk and fed from an array in memory, in turns."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from beamrec.model.batches import shuffled
from beamrec.model.examples import Examples
from beamrec.model.learner import Learner
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec

__all__ = ["compare"]


def compare(
    examples: Examples, spec: FeatureSpec, scalers: Path, options: TrainingOptions, rounds: int
) -> dict[str, Any]:
    """Whole epochs of the same learner, turn by turn; the first of each, which is traced, does not count.

    The array is the strongest feed that we could make: it stands in TensorFlow's memory, NumPy permutes it
    before the epoch, and the loop over its batches is one call into TensorFlow. Both times hold the shuffle.
    """
    learner = Learner(examples, spec, scalers, options)
    feeds = {
        "streamed": _streamed(learner, examples, options.seed),
        "in memory": _in_memory(learner, examples),
    }
    speeds: dict[str, list[float]] = {name: [] for name in feeds}
    for number in range(rounds + 1):
        for name, feed in feeds.items():
            began = time.perf_counter()
            feed(number)
            speed = learner.epoch_steps * learner.batch_size / (time.perf_counter() - began)
            if number:
                speeds[name].append(speed)
                print(f"round {number}: {name} {speed:,.0f} examples/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "batch_size": learner.batch_size,
        "examples": examples.rows["training"],
        "examples_per_second": {name: [round(s) for s in values] for name, values in speeds.items()},
        "medians": {name: round(value) for name, value in medians.items()},
        "ratio": round(medians["streamed"] / medians["in memory"], 3),
    }


def _streamed(learner: Learner, examples: Examples, seed: int) -> Callable[[int], None]:
    def epoch(number: int) -> None:
        batches = iter(shuffled(examples.files("training"), learner.batch_size, seed, number))
        learner.train(batches, tf.constant(learner.epoch_steps))

    return epoch


def _in_memory(learner: Learner, examples: Examples) -> Callable[[int], None]:
    rows = np.concatenate(list(examples.read("training"))).view(np.int32).reshape(-1, 3)
    shape = (learner.epoch_steps, learner.batch_size, 3)

    @tf.function  # type: ignore[untyped-decorator]
    def train(batches: tf.Tensor) -> None:
        for batch in batches:
            learner.step(batch)

    def epoch(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(rows))[: shape[0] * shape[1]]
        train(tf.constant(rows[order].reshape(shape)))

    return epoch
