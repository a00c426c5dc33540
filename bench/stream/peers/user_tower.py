"""The user tower of a release: a SavedModel, called on the features of events."""

import gc
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from shop_events import Event, Fields

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

__all__ = ["UserTower", "is_usable"]

# Small operations are slower when a second thread has to be woken for them.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class UserTower:
    """Vectors of customers, by the model in a release's folder."""

    def __init__(self, folder: Path, fields: Fields) -> None:
        inputs = json.loads((folder / "manifest.json").read_bytes())["user_inputs"]
        columns = [column for column, _, _ in fields.features]
        self._identity = inputs[0]["name"]
        self._features = [
            (entry["name"], columns.index(entry["column"]), entry["kind"] == "number") for entry in inputs[1:]
        ]
        self._model = tf.saved_model.load(str(folder / "model" / "user_tower"))
        self._call = self._model.signatures["serving_default"]
        # TensorFlow's half a million objects out of the collector's sight: batches of events make it look
        # often, which was a third of the loop's time.
        gc.collect()
        gc.freeze()

    def vectors(self, events: Sequence[Event]) -> np.ndarray:
        """[len(events), dim] float32."""
        inputs = {self._identity: tf.constant([event.customer or "" for event in events])}
        columns = list(zip(*(event.features for event in events), strict=True))
        for name, place, is_number in self._features:
            inputs[name] = tf.constant(columns[place], tf.float32 if is_number else tf.string)
        vectors: np.ndarray = self._call(**inputs)["vector"].numpy()
        return vectors


def is_usable(event: Event, known: bool) -> bool:
    """Whether the tower has anything to go by: a customer that the release knows, or any feature."""
    return known or any(
        value.strip() if isinstance(value, str) else math.isfinite(value) for value in event.features
    )
