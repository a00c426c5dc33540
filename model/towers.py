"""The two towers: identity and features of a side to one vector; score = inner product.

A tower is an identity embedding added to a small network over the features. In training the identity is
dropped to UNSEEN now and then, and so are categories, so that an unknown customer or product gets the
vector that its features make (Volkovs et al., "DropoutNet", 2017, does the same with its inputs).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras  # type: ignore[import-untyped]
import tensorflow as tf

from beamrec.model.full_disk import explaining_full_disk
from beamrec.model.options import TowerOptions
from beamrec.model.preprocessing import FIRST_ENTRY, MISSING, UNSEEN, load_transform, missing_name
from beamrec.schemas.releases import TowerInput

__all__ = ["ServedTower", "Tower", "export_tower"]


class Tower(keras.Model):  # type: ignore[misc]
    """Transformed inputs of one side (outputs of the preprocessing graph) to vectors [n, dim]."""

    def __init__(
        self,
        inputs: tuple[TowerInput, ...],
        vocabulary_sizes: Mapping[str, int],
        options: TowerOptions,
        seed: int,
    ) -> None:
        super().__init__()
        self._entries, self._tower_options, self._seed = inputs, options, seed
        self._embeddings = {
            i.name: self._embedding(vocabulary_sizes[i.name], i.kind == "identity", seed + number)
            for number, i in enumerate(inputs)
            if i.kind != "number"
        }
        start = keras.initializers.GlorotUniform
        self._hidden = keras.layers.Dense(options.hidden, "relu", kernel_initializer=start(seed + 1001))
        self._out = keras.layers.Dense(options.dim, kernel_initializer=start(seed + 1002))

    def _embedding(self, size: int, is_identity: bool, seed: int) -> keras.layers.Embedding:
        # A small identity begins as a correction of what the features say.
        start = keras.initializers.RandomNormal(stddev=0.05 if is_identity else 0.3, seed=seed)
        width = self._tower_options.dim if is_identity else self._tower_options.feature_dim
        return keras.layers.Embedding(size + FIRST_ENTRY, width, embeddings_initializer=start)

    @property
    def tables(self) -> list[tf.Variable]:
        """Embedding tables, after the first call."""
        return [layer.embeddings.value for layer in self._embeddings.values()]

    @property
    def dense(self) -> list[tf.Variable]:
        """All other weights, after the first call; none where there is nothing but an identity."""
        return [weight.value for layer in (self._hidden, self._out) for weight in layer.trainable_weights]

    def call(self, inputs: Mapping[str, tf.Tensor], step: tf.Tensor | None = None) -> tf.Tensor:
        """Vectors [n, dim]; `step`, a scalar int that counts training steps, turns dropout on."""
        features, identity = [], None
        for number, entry in enumerate(self._entries):
            values = inputs[entry.name]
            if entry.kind == "number":
                features += [values[:, None], inputs[missing_name(entry.name)][:, None]]
            elif entry.kind == "identity":
                identity = self._embeddings[entry.name](self._dropped(values, number, True, step))
            elif entry.kind == "text":
                features.append(_mean_of_words(self._embeddings[entry.name], values))
            else:
                features.append(self._embeddings[entry.name](self._dropped(values, number, False, step)))
        vectors = identity
        if features:
            vectors = identity + self._out(self._hidden(tf.concat(features, 1)))
        return tf.math.l2_normalize(vectors, 1) if self._tower_options.normalize else vectors

    def _dropped(
        self, values: tf.Tensor, number: int, is_identity: bool, step: tf.Tensor | None
    ) -> tf.Tensor:
        """Stateless, so that the same seed and step drop the same rows on every run."""
        if step is None:
            return values
        options = self._tower_options
        rate = options.identity_dropout if is_identity else options.category_dropout
        draws = tf.random.stateless_uniform(tf.shape(values), [self._seed + number, tf.cast(step, tf.int32)])
        return tf.where(draws < rate, tf.constant(UNSEEN, values.dtype), values)


def _mean_of_words(embedding: keras.layers.Embedding, words: tf.Tensor) -> tf.Tensor:
    """Mean embedding [n, width] of the words [n, TOKENS] that are there; zero for an empty text."""
    present = tf.cast(tf.not_equal(words, MISSING), tf.float32)[:, :, None]
    total = tf.reduce_sum(embedding(words) * present, 1)
    return total / tf.maximum(tf.reduce_sum(present, 1), 1.0)


class ServedTower(tf.Module):  # type: ignore[misc]
    """A tower behind the preprocessing graph: raw tensors in, vectors out, in one SavedModel.

    The signature `serving_default` takes one dense tensor for each of its inputs, string [n] with "" for
    missing or float32 [n] with NaN for missing, and gives {"vector": float32 [n, dim]}.
    """

    def __init__(self, tower: Tower, inputs: tuple[TowerInput, ...], scalers: Path) -> None:
        super().__init__()
        self._entries = inputs
        self._tower = tower
        self._transform = load_transform(scalers)
        # Held here, so that the SavedModel takes along the graph's vocabularies. As a layer it is Keras 2
        # and of no use to Keras 3; `transform_raw_features` calls the same graph.
        self._graph = self._transform.transform_features_layer()

    def signature(self) -> Any:
        """The function to export, traced once for any number of rows."""
        specs = {
            i.name: tf.TensorSpec([None], tf.float32 if i.kind == "number" else tf.string, i.name)
            for i in self._entries
        }
        return tf.function(self.vectors).get_concrete_function(**specs)

    def vectors(self, **raw: tf.Tensor) -> dict[str, tf.Tensor]:
        """Raw tensors by input name to {"vector": float32 [n, dim]}."""
        return {"vector": self._tower(dict(self._transform.transform_raw_features(raw)))}


def export_tower(tower: Tower, inputs: tuple[TowerInput, ...], scalers: Path, folder: Path) -> None:
    """Writes a trained tower as a SavedModel with one signature, `serving_default`.

    Raises:
      OSError: it cannot be written; ENOSPC where there is no room.
    """
    served = ServedTower(tower, inputs, scalers)
    with explaining_full_disk(folder):
        tf.saved_model.save(served, str(folder), signatures={"serving_default": served.signature()})
