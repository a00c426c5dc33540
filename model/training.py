"""Training: seeded, on the transformed features of each distinct customer and product.

Ratings refer to rows of two small tables, so that a feature is preprocessed once and not once a rating.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import scipy.sparse as sp
import tensorflow as tf

from beamrec.model.evaluation import EvaluationOptions, ModelVectors, SplitOptions, evaluate
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec, load_transform, raw_arrays, vocabulary_sizes
from beamrec.model.towers import Tower
from beamrec.schemas.errors import UsageError

__all__ = ["Ratings", "TrainedModel", "split", "train"]


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Every rating, with the features of each distinct customer and product.

    Attributes:
      users, items: record batches as `build_features` makes them, one row a key, sorted by key.
      user, item: row of each rating in them, int32 [ratings].
      rating: float32 [ratings], scaled to 0…1 by the shop's rating scale.
      rating_span: width of that scale, to give errors in the shop's own units.
    """

    users: pa.RecordBatch
    items: pa.RecordBatch
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    rating_span: float


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Trained towers with their offline metrics."""

    user_tower: Tower
    item_tower: Tower
    metrics: dict[str, float]


def split(ratings: int, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the ratings to train on and of those held out, each sorted."""
    shuffled = np.random.default_rng(seed).permutation(ratings)
    held = max(1, round(ratings * holdout))
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def train(
    data: Ratings,
    spec: FeatureSpec,
    scalers: Path,
    options: TrainingOptions,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> TrainedModel:
    """Trains both towers and measures them on held-out ratings.

    Args:
      scalers: folder of the preprocessing graph.
      progress: called after every epoch with its number and mean loss.

    Raises:
      UsageError: there are too few ratings to hold any out.
    """
    training, held = split(len(data.rating), options.holdout, options.seed)
    if len(training) < 2:
        raise UsageError(f"training: {len(data.rating)} ratings are too few; at least 3 are needed")
    learner = _Learner(data, spec, scalers, options, training)
    rng = np.random.default_rng(options.seed)
    for epoch in range(options.epochs):
        loss = learner.epoch(_batches(rng.permutation(training), options.batch_size))
        progress(epoch + 1, loss)
    user_vectors, item_vectors = learner.vectors()
    predicted = learner.predict(user_vectors, item_vectors, held)
    sides = [_matrix(data, rows) for rows in (training, held)]
    model = ModelVectors(user_vectors, item_vectors, predicted)
    measured = EvaluationOptions(rating_span=data.rating_span, seed=options.seed)
    evaluation = evaluate(*sides, model, SplitOptions(options.holdout, seed=options.seed), measured)
    return TrainedModel(learner.user_tower, learner.item_tower, evaluation.headline())


def _matrix(data: Ratings, rows: np.ndarray) -> sp.csr_matrix:
    """Some of the ratings as [users, items]; they are sorted by user and item, so entries keep their order."""
    shape = data.users.num_rows, data.items.num_rows
    return sp.csr_matrix((data.rating[rows], (data.user[rows], data.item[rows])), shape=shape)


def _batches(order: np.ndarray, size: int) -> np.ndarray:
    """Rows of equally many ratings [steps, size]; the last few of an epoch wait for another shuffle."""
    size = min(size, len(order))
    steps = len(order) // size
    return order[: steps * size].reshape(steps, size).astype(np.int32)


class _Learner:
    """Towers, features and one traced training step; an epoch is a single call into TensorFlow."""

    def __init__(
        self,
        data: Ratings,
        spec: FeatureSpec,
        scalers: Path,
        options: TrainingOptions,
        training: np.ndarray,
    ) -> None:
        sizes = vocabulary_sizes(scalers, spec)
        self.user_tower = Tower(spec.user, sizes, options.tower, options.seed)
        self.item_tower = Tower(spec.item, sizes, options.tower, options.seed + 100_000)
        self._options = options
        self._users, self._items = _transformed(data, spec, scalers)
        self._user, self._item = tf.constant(data.user), tf.constant(data.item)
        self._rating = tf.constant(data.rating)
        self._log_popularity = _log_popularity(data.item[training], data.items.num_rows)
        # Ratings are read off a score as bias + slope · score.
        self._line = keras.Variable([float(data.rating[training].mean()), 0.3])
        self._step = tf.Variable(0, dtype=tf.int64)
        self._optimizer = keras.optimizers.AdamW(options.learning_rate, options.weight_decay)
        self._optimizer.exclude_from_weight_decay(var_list=[self._line])
        self._build()

    def _build(self) -> None:
        for tower, features in ((self.user_tower, self._users), (self.item_tower, self._items)):
            tower({name: values[:1] for name, values in features.items()})
        towers = self.user_tower.trainable_variables + self.item_tower.trainable_variables
        self._weights = [*towers, self._line]
        self._optimizer.build(self._weights)

    def epoch(self, batches: np.ndarray) -> float:
        """Trains on rating indices [steps, size]; returns the mean loss."""
        return float(self._epoch(tf.constant(batches)))

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def _epoch(self, batches: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for batch in batches:
            total += self._train_step(batch)
        return total / tf.cast(tf.shape(batches)[0], tf.float32)

    def _train_step(self, batch: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self._loss(batch)
        variables = [weight.value for weight in self._weights]
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        self._optimizer.apply_gradients(zip(gradients, self._weights, strict=True))
        self._step.assign_add(1)
        return loss

    def _loss(self, batch: tf.Tensor) -> tf.Tensor:
        options = self._options
        items, rating = tf.gather(self._item, batch), tf.gather(self._rating, batch)
        users = self.user_tower(_rows(self._users, tf.gather(self._user, batch)), step=self._step)
        vectors = self.item_tower(_rows(self._items, items), step=self._step)
        loss = tf.constant(0.0)
        if options.rating_weight:
            error = self._line.value[0] + self._line.value[1] * tf.reduce_sum(users * vectors, 1) - rating
            loss += options.rating_weight * tf.reduce_mean(error**2)
        if options.softmax_weight:
            loss += options.softmax_weight * self._softmax(users, vectors, items, rating)
        return loss

    def _softmax(
        self, users: tf.Tensor, vectors: tf.Tensor, items: tf.Tensor, rating: tf.Tensor
    ) -> tf.Tensor:
        """In-batch sampled softmax, corrected for popularity (Yi et al., 2019), weighted by the rating.

        Other rows of the same item are no negatives of it.
        """
        logits = tf.matmul(users, vectors, transpose_b=True) / self._options.temperature
        logits -= tf.gather(self._log_popularity, items)[None, :]
        same = tf.equal(items[:, None], items[None, :])
        hidden = same & ~tf.eye(tf.shape(items)[0], dtype=tf.bool)
        logits = tf.where(hidden, tf.constant(-1e9), logits)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(tf.shape(items)[0]), logits)
        return tf.reduce_sum(losses * rating) / tf.maximum(tf.reduce_sum(rating), 1e-6)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [users, dim] and [items, dim] of all customers and products."""
        return self.user_tower(self._users).numpy(), self.item_tower(self._items).numpy()

    def predict(self, users: np.ndarray, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Predicted ratings [rows] on the scale 0…1, clipped to it."""
        line = self._line.value.numpy()
        user, item = self._user.numpy()[rows], self._item.numpy()[rows]
        return np.asarray(np.clip(line[0] + line[1] * (users[user] * items[item]).sum(1), 0, 1))


def _transformed(
    data: Ratings, spec: FeatureSpec, scalers: Path
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    transform = load_transform(scalers)
    user, item = (
        dict(
            transform.transform_raw_features(
                {n: tf.constant(v) for n, v in raw_arrays(batch, inputs).items()}
            )
        )
        for batch, inputs in ((data.users, spec.user), (data.items, spec.item))
    )
    return user, item


def _rows(features: Mapping[str, Any], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    return {name: tf.gather(values, rows) for name, values in features.items()}


def _log_popularity(item: np.ndarray, items: int) -> tf.Tensor:
    """log of each item's share of the training ratings, float32 [items]; one more for each avoids log 0."""
    counts = np.bincount(item, minlength=items) + 1.0
    return tf.constant(np.log(counts / counts.sum()), tf.float32)
