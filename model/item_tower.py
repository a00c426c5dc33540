"""Vectors of products that a release did not train on, by its own item tower."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from beamrec.model.handler import quiet_tensorflow
from beamrec.model.preprocessing import FeatureSpec, raw_arrays
from beamrec.model.release import ITEM_TOWER, verify_release
from beamrec.schemas.errors import UsageError

__all__ = ["embed_items"]

_ROWS_A_BATCH = 4_096


def embed_items(folder: Path, checksum: str, spec: FeatureSpec, features: pa.RecordBatch) -> np.ndarray:
    """Vectors [rows, dim] float32 of rows of item features, as `build_features` makes them.

    Args:
      folder: of the release.
      checksum: SHA-256 of its manifest that is expected.

    Raises:
      BadDataError: the folder is not what it was when it was loaded.
      UsageError: the release has no item tower, or was trained for another shop.
    """
    manifest = verify_release(folder, checksum)
    if not manifest.has_item_tower:
        raise UsageError(
            f"release {manifest.id} has no item tower to make vectors of products; give vectors, as a CSV "
            "file with the header id,embedding"
        )
    if manifest.item_inputs != spec.item:
        raise UsageError(
            f"release {manifest.id} was trained for shop {manifest.shop} with the inputs "
            f"{[i.column for i in manifest.item_inputs]}; this shop's are {[i.column for i in spec.item]}: "
            "give the same --shop"
        )
    tf = quiet_tensorflow()
    # The loaded object must live as long as its signature: it owns the tables and weights.
    loaded = tf.saved_model.load(str(folder / ITEM_TOWER))
    tower, parts = loaded.signatures["serving_default"], [np.zeros((0, manifest.dim), np.float32)]
    for start in range(0, features.num_rows, _ROWS_A_BATCH):
        raw = raw_arrays(features.slice(start, _ROWS_A_BATCH), manifest.item_inputs)
        answer = tower(**{name: tf.constant(values) for name, values in raw.items()})
        parts.append(answer["vector"].numpy())
    return np.concatenate(parts)
