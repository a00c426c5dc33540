"""The preprocessing graph, written once: made by `analysis`, called by training and the served towers.

Its raw inputs are dense: string [n] with "" for missing, float32 [n] with NaN for missing. Nothing here
imports TensorFlow before it is needed.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.releases import TowerInput
from beamrec.schemas.shop import Feature, Shop

__all__ = [
    "FIRST_ENTRY",
    "MISSING",
    "TOKENS",
    "UNSEEN",
    "FeatureSpec",
    "load_transform",
    "missing_name",
    "raw_arrays",
    "read_vocabulary",
    "vocabulary_name",
    "vocabulary_sizes",
]

TOKENS = 16
"""Words of a text that the model sees."""

UNSEEN, MISSING, FIRST_ENTRY = 0, 1, 2
"""Indices of every vocabulary: values that training did not see, missing ones, then its entries."""

_SIDES: tuple[Literal["user", "item"], ...] = ("user", "item")


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The raw inputs of both towers and how the graph cleans each.

    Attributes:
      user, item: the inputs of a tower, its identity first.
      cleaning: input name → the shop's feature; identities have none.
    """

    user: tuple[TowerInput, ...]
    item: tuple[TowerInput, ...]
    cleaning: Mapping[str, Feature]

    @classmethod
    def from_shop(cls, shop: Shop) -> "FeatureSpec":
        """The inputs that a shop's features make; names are safe in a SavedModel's signature."""
        keys = {"user": shop.customers.key, "item": shop.products.key}
        features = {"user": shop.user_features, "item": shop.item_features}
        inputs: dict[str, tuple[TowerInput, ...]] = {}
        cleaning: dict[str, Feature] = {}
        for side in _SIDES:
            named = {_input_name(side, number, f): f for number, f in enumerate(features[side])}
            cleaning |= named
            inputs[side] = (
                TowerInput(f"{side}_id", keys[side], "identity"),
                *(TowerInput(name, f.column, f.kind) for name, f in named.items()),  # type: ignore[arg-type]
            )
        return cls(inputs["user"], inputs["item"], cleaning)

    @property
    def inputs(self) -> tuple[TowerInput, ...]:
        """Of both towers."""
        return self.user + self.item


def _input_name(side: str, number: int, feature: Feature) -> str:
    column = re.sub("[^a-z0-9]+", "_", feature.column.lower()).strip("_")
    return f"{side}_{number}_{column}"[:60]


def missing_name(name: str) -> str:
    """Name of the graph's output that is 1 where the number `name` is missing."""
    return f"{name}_missing"


def raw_arrays(features: pa.RecordBatch, inputs: tuple[TowerInput, ...]) -> dict[str, np.ndarray]:
    """One tower's raw inputs by name, from what `build_features` makes.

    Returns:
      Object arrays of bytes [n] with b"" for NULL, or float32 [n] with NaN for NULL.
    """
    arrays = {}
    for entry in inputs:
        column = features.column(entry.column)
        if entry.kind == "number":
            filled = pc.fill_null(column.cast(pa.float32()), float("nan"))
        else:
            filled = pc.fill_null(column.cast(pa.binary()), b"")
        arrays[entry.name] = filled.to_numpy(zero_copy_only=False)
    return arrays


def vocabulary_name(name: str) -> str:
    """Name of the vocabulary file of an input."""
    return f"vocabulary_{name}"


def load_transform(folder: Path) -> Any:
    """The graph that `beamrec.model.analysis.analyze_features` wrote, as a `TFTransformOutput`."""
    import tensorflow_transform as tft

    return tft.TFTransformOutput(str(folder))


def vocabulary_sizes(folder: Path, spec: FeatureSpec) -> dict[str, int]:
    """Entries of each vocabulary by input name, without the indices for unseen and missing."""
    return {i.name: len(read_vocabulary(folder, i.name)) for i in spec.inputs if i.kind != "number"}


def read_vocabulary(folder: Path, name: str) -> list[str]:
    """A vocabulary's entries in the order of their indices, from FIRST_ENTRY; read without TensorFlow.

    Args:
      folder: the `scalers/` folder of a release.
      name: input name.
    """
    path = folder / "transform_fn" / "assets" / vocabulary_name(name)
    return path.read_bytes().decode("utf-8").split("\n")[:-1]
