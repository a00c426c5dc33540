"""The towers in training: their losses and one traced step, fed by any iterator of batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf

from beamrec.model.batches import columns
from beamrec.model.examples import Examples
from beamrec.model.optimizer import Optimizer
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec, load_transform, raw_arrays, vocabulary_sizes
from beamrec.model.towers import Tower
from beamrec.schemas.releases import TowerInput

__all__ = ["Learner"]

_ROWS_AT_ONCE = 65_536
_WARM_UP = 0.3  # of an epoch
_LAST_RATE = 0.02  # of the learning rate, where the cosine ends


class Learner:
    """Both towers, the features of all customers and products, and the step that trains on a batch.

    Features are preprocessed once and gathered by row, so that a batch is three numbers a rating.

    Attributes:
      batch_size, epoch_steps: ratings a step, and steps an epoch.

    Args:
      examples: the tables, and how often each product occurs.
      scalers: folder of the preprocessing graph.
    """

    def __init__(
        self, examples: Examples, spec: FeatureSpec, scalers: Path, options: TrainingOptions
    ) -> None:
        sizes = vocabulary_sizes(scalers, spec)
        self.user_tower = Tower(spec.user, sizes, options.tower, options.seed)
        self.item_tower = Tower(spec.item, sizes, options.tower, options.seed + 100_000)
        self._options = options
        self.batch_size, self.epoch_steps = options.steps(examples.rows["training"])
        transform = load_transform(scalers)
        self._users = _transformed(transform, examples.users, spec.user)
        self._items = _transformed(transform, examples.items, spec.item)
        draws = min(options.candidates, self.batch_size)
        self._log_popularity = _log_inclusion(examples.item_counts[:, 0], draws)
        # A rating is read off two vectors as bias + Σ weight · user · item, so that what makes a product
        # liked and what makes it chosen may lie in different dimensions.
        start = np.full(options.tower.dim + 1, 0.3, np.float32)
        start[0] = examples.mean_rating
        self._head = tf.Variable(start)
        self._log_temperature = tf.Variable(np.float32(np.log(options.temperature)))
        self._step, self._loss_sum = tf.Variable(0, dtype=tf.int64), tf.Variable(0.0, dtype=tf.float64)
        self._optimizer = self._built()

    def _built(self) -> Optimizer:
        towers = (self.user_tower, self.item_tower)
        for tower, features in zip(towers, (self._users, self._items), strict=True):
            tower({name: values[:1] for name, values in features.items()})
        tables = [table for tower in towers for table in tower.tables]
        dense = [weight for tower in towers for weight in tower.dense]
        decay = self._options.weight_decay
        return Optimizer(tables, [*dense, self._head, self._log_temperature], decay, decay)

    @property
    def state(self) -> list[tf.Variable]:
        """Everything that training changes, for a checkpoint."""
        return [*self._optimizer.weights, *self._optimizer.state, self._step, self._loss_sum]

    @property
    def steps(self) -> int:
        """Steps done so far, over all epochs."""
        return int(self._step.numpy())

    @property
    def loss_sum(self) -> float:
        """Sum of the losses of the steps since `start_epoch`."""
        return float(self._loss_sum.numpy())

    def start_epoch(self) -> None:
        """Sets the sum of losses to zero."""
        self._loss_sum.assign(0.0)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def train(self, batches: Any, steps: tf.Tensor) -> None:
        """Takes `steps` batches, int32 [n, 3], from an iterator and trains on each."""
        for _ in tf.range(steps):
            self.step(next(batches))

    def step(self, batch: tf.Tensor) -> None:
        """Trains on one batch, int32 [n, 3]; to be traced."""
        weights = self._optimizer.weights
        with tf.GradientTape() as tape:
            loss = self._loss(batch, self._step)
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        share = self._schedule()
        options = self._options
        self._optimizer.apply(
            gradients, self._step, share * options.embedding_rate, share * options.learning_rate
        )
        self._loss_sum.assign_add(tf.cast(loss, tf.float64))
        self._step.assign_add(1)

    def _schedule(self) -> tf.Tensor:
        """Share of the learning rate: a short linear rise, then half a cosine over all epochs."""
        done = tf.cast(self._step, tf.float32)
        warm = tf.minimum(1.0, (done + 1) / max(1.0, _WARM_UP * self.epoch_steps))
        progress = tf.minimum(1.0, done / float(self._options.epochs * self.epoch_steps))
        cosine = 0.5 * (1 + tf.cos(np.pi * progress))
        return warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def loss(self, batches: Any) -> tf.Tensor:
        """Mean loss over the rows of a dataset of batches, without dropout."""
        total, rows = tf.constant(0.0, tf.float64), tf.constant(0.0, tf.float64)
        for batch in batches:
            size = tf.cast(tf.shape(batch)[0], tf.float64)
            total += size * tf.cast(self._loss(batch, None), tf.float64)
            rows += size
        return total / tf.maximum(rows, 1.0)

    def _loss(self, batch: tf.Tensor, step: tf.Tensor | None) -> tf.Tensor:
        options = self._options
        user, item, rating = columns(batch)
        users = self.user_tower(_rows(self._users, user), step=step)
        # A product that stands in the batch many times goes through its tower once.
        distinct, place = tf.unique(item)
        items = self.item_tower(_rows(self._items, distinct), step=step)
        chosen = tf.gather(items, place)
        loss = tf.constant(0.0)
        if options.rating_weight:
            predicted = self._head[0] + tf.linalg.matvec(users * chosen, self._head[1:])
            loss += options.rating_weight * tf.reduce_mean((predicted - rating) ** 2)
        if options.softmax_weight:
            loss += options.softmax_weight * self._softmax(users, items, distinct, place, rating)
        return loss

    def _softmax(
        self, users: tf.Tensor, items: tf.Tensor, distinct: tf.Tensor, place: tf.Tensor, rating: tf.Tensor
    ) -> tf.Tensor:
        """In-batch sampled softmax, corrected for popularity (Yi et al., 2019), weighted by the rating.

        The candidates are the distinct products of the batch's first rows, so that the work for a row does
        not grow with the batch; each is corrected by the chance that it is among them. A row's own product
        is always a candidate of it.
        """
        count = 1 + tf.reduce_max(place[: self._options.candidates])  # `tf.unique` keeps the order
        scale = tf.exp(-self._log_temperature)
        correction = tf.gather(self._log_popularity, distinct)
        logits = scale * tf.matmul(users, items[:count], transpose_b=True) - correction[:count]
        own = scale * tf.reduce_sum(users * tf.gather(items, place), 1) - tf.gather(correction, place)
        total = tf.reduce_logsumexp(logits, 1)
        total = tf.where(place < count, total, tf.reduce_logsumexp(tf.stack([total, own]), 0))
        return tf.reduce_sum((total - own) * rating) / tf.maximum(tf.reduce_sum(rating), 1e-6)

    def vectors(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Vectors [users, dim] and [items, dim] of all customers and products."""
        return _embedded(self.user_tower, self._users), _embedded(self.item_tower, self._items)

    def predict(self, users: npt.NDArray[Any], items: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Ratings [n] on the scale 0…1, clipped to it, of pairs of vectors [n, dim]."""
        head = self._head.numpy()
        ratings: npt.NDArray[np.float32] = np.clip(head[0] + (users * items) @ head[1:], 0, 1)
        return ratings


def _transformed(
    transform: Any, table: pa.RecordBatch, inputs: tuple[TowerInput, ...]
) -> dict[str, tf.Tensor]:
    """Outputs of the preprocessing graph for one side's table, by name."""
    parts: dict[str, list[tf.Tensor]] = {}
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        raw = raw_arrays(table.slice(start, _ROWS_AT_ONCE), inputs)
        outputs = transform.transform_raw_features({name: tf.constant(v) for name, v in raw.items()})
        for name, values in outputs.items():
            parts.setdefault(name, []).append(values)
    return {name: tf.concat(values, 0) for name, values in parts.items()}


def _rows(features: Mapping[str, Any], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    return {name: tf.gather(values, rows) for name, values in features.items()}


def _embedded(tower: Tower, features: Mapping[str, tf.Tensor]) -> npt.NDArray[np.float32]:
    rows = len(next(iter(features.values())))
    parts = [
        tower({name: values[start : start + _ROWS_AT_ONCE] for name, values in features.items()}).numpy()
        for start in range(0, rows, _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def _log_inclusion(counts: npt.NDArray[np.int64], draws: int) -> tf.Tensor:
    """log of the chance that each product is among the candidates of a batch, float32 [items].

    Of `draws` ratings drawn, one of a product with share q is among them with 1 - (1 - q)^draws. One
    rating more for each product avoids log 0.
    """
    share = (counts + 1.0) / (counts + 1.0).sum()
    return tf.constant(np.log(-np.expm1(draws * np.log1p(-np.minimum(share, 0.999999)))), tf.float32)
