"""The model's inputs, made by one function on the batch side and on the stream side.

Both sides bring the same values in other Arrow types: a credit limit is decimal128(10, 2) in a training
file and float64 in an event. What comes out is the same to the last bit.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.schemas.shop import Feature
from beamrec.transforms.numbers import to_float64

__all__ = ["BuildFeatures", "build_features"]


def build_features(batch: pa.RecordBatch, key: str, features: Sequence[Feature]) -> pa.RecordBatch:
    """The inputs of one tower.

    Args:
      batch: has the key column and every feature's column, in any Arrow type; other columns are left out.
      key: name of the key column; integers or text.
      features: the tower's features, such as `Shop.user_features`.

    Returns:
      The key as canonical text (103 and "103" are one key), then each feature by its column name: `number`
      as float32, every other kind as string. NULL stays NULL, an empty string an empty string.

    Raises:
      KeyError: a column is missing.
      ValueError: the key is neither integer nor text, or a number cannot be read as one.
    """
    keys = _plain(batch.column(key))
    if not (pa.types.is_integer(keys.type) or _is_text(keys.type) or pa.types.is_null(keys.type)):
        raise ValueError(f"key {key}: expected integers or text, got {keys.type}")
    columns = [_text(keys), *(_feature(_plain(batch.column(f.column)), f) for f in features)]
    return pa.RecordBatch.from_arrays(columns, names=[key, *(f.column for f in features)])


@dataclasses.dataclass(eq=False)
class BuildFeatures(beam.PTransform):  # type: ignore[misc]
    """`build_features` on a PCollection of record batches."""

    key: str
    features: tuple[Feature, ...]

    def expand(self, batches: Any) -> Any:
        return batches | beam.Map(build_features, self.key, self.features).with_output_types(pa.RecordBatch)


def _feature(column: pa.Array, feature: Feature) -> pa.Array:
    try:
        if feature.kind == "number":
            return pc.cast(to_float64(column), pa.float32(), safe=False)
        return _text(column)
    except pa.ArrowInvalid:
        # Arrow's message would quote the value, which may be personal.
        raise ValueError(f"feature {feature.column}: not readable as a {feature.kind}") from None


def _text(column: pa.Array) -> pa.Array:
    """Equal numbers give equal text, whatever their type: 5, 5.0 and 5.00 are all "5"."""
    if pa.types.is_decimal(column.type) or pa.types.is_floating(column.type):
        numbers = to_float64(column)
        integers = pc.cast(numbers, pa.int64(), safe=False)
        is_integer = pc.equal(pc.cast(integers, pa.float64(), safe=False), numbers)
        return pc.if_else(is_integer, pc.cast(integers, pa.string()), pc.cast(numbers, pa.string()))
    return pc.cast(column, pa.string())


def _plain(column: pa.Array) -> pa.Array:
    """Partition columns come from Hive paths as dictionaries."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_text(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(kind(type_) for kind in kinds)
