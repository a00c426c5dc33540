"""The analysis: one Beam pass over the training files makes the preprocessing graph.

tensorflow-transform's own analyzers cost about a dozen Beam stages each: 10.4 s for the eleven features
of the built-in shop, whatever the data. Here one combiner makes all vocabularies and one all moments, a
batch at a time: 2.7 s.
"""

import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from tensorflow_transform.beam.experimental import PTransformAnalyzer
from tensorflow_transform.tf_metadata import schema_utils
from tfx_bsl.tfxio import tensor_adapter
from tfx_bsl.tfxio import tensor_representation_util as representation

from beamrec.model.preprocessing import (
    FIRST_ENTRY,
    MISSING,
    TOKENS,
    UNSEEN,
    FeatureSpec,
    missing_name,
    raw_arrays,
    vocabulary_name,
)
from beamrec.schemas.shop import Feature

__all__ = [
    "Moments",
    "Scaling",
    "Vocabularies",
    "analyze_features",
    "count_values",
    "preprocessing_fn",
    "vocabulary",
]

MAX_TEXT_VOCABULARY = 20_000
_CLIP = 5.0  # standard deviations; one absurd credit limit must not drown the rest of a tower's input
_NO_ENTRY = b"49d0cd50-04bb-48c0-bc6f-5b575dce351a"  # tft's own only line of an empty vocabulary


def analyze_features(source: Any, spec: FeatureSpec, output: Path) -> None:
    """Runs tensorflow-transform's analysis on Beam's FnApi runner and writes the graph to `output`.

    Args:
      source: a PTransform from the pipeline's begin to record batches as `build_features` makes them,
        holding the columns of both towers.
      output: folder that does not exist yet.
    """
    config = tensor_adapter.TensorAdapterConfig(
        _analysis_schema(spec), representation.InferTensorRepresentationsFromSchema(_raw_schema(spec))
    )
    with (
        tempfile.TemporaryDirectory() as temp,
        _silenced_tracing(),
        beam.Pipeline(FnApiRunner()) as pipeline,
        tft_beam.Context(temp_dir=temp),
    ):
        batches = pipeline | "Read" >> source | "Raw" >> beam.Map(_analysis_batch, spec)
        graph = (batches, config) | "Analyze" >> tft_beam.AnalyzeDataset(preprocessing_fn(spec))
        _ = graph | "Write" >> tft_beam.WriteTransformFn(str(output))


@contextlib.contextmanager
def _silenced_tracing() -> Iterator[None]:
    """TensorFlow warns about its own retracing while tft analyses; nothing a user could act on."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _analysis_batch(features: pa.RecordBatch, spec: FeatureSpec) -> pa.RecordBatch:
    """Record batch in the form that tensorflow-transform reads: one list of one value for each row."""
    offsets = pa.array(np.arange(features.num_rows + 1), pa.int64())
    columns = []
    for name, values in raw_arrays(features, spec.inputs).items():
        kind = _analysis_schema(spec).field(name).type.value_type
        columns.append(pa.LargeListArray.from_arrays(offsets, pa.array(values, kind)))
    return pa.RecordBatch.from_arrays(columns, schema=_analysis_schema(spec))


def _analysis_schema(spec: FeatureSpec) -> pa.Schema:
    kinds = {"number": pa.float32()}
    return pa.schema([(i.name, pa.large_list(kinds.get(i.kind, pa.large_binary()))) for i in spec.inputs])


def _raw_schema(spec: FeatureSpec) -> Any:
    return schema_utils.schema_from_feature_spec(
        {
            i.name: tf.io.FixedLenFeature([], tf.float32 if i.kind == "number" else tf.string)
            for i in spec.inputs
        }
    )


def preprocessing_fn(spec: FeatureSpec) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The graph as tensorflow-transform traces it.

    Its outputs, by input name: an index int64 [n] for an identity and a category (UNSEEN, MISSING, then
    the vocabulary) and int64 [n, TOKENS] for a text; float32 [n] for a number in standard deviations, and
    a second output, 1 where it is missing.
    """
    names = [i.name for i in spec.inputs if i.kind != "number"]
    texts = {i.name for i in spec.inputs if i.kind == "text"}
    numbers = [i.name for i in spec.inputs if i.kind == "number"]

    def preprocess(raw: Mapping[str, Any]) -> dict[str, Any]:
        strings = {name: _cleaned(raw[name], spec.cleaning.get(name)) for name in names}
        strings |= {name: _words(strings[name]) for name in texts}
        values = _matrix([_linear(raw[name], spec.cleaning[name]) for name in numbers], raw[names[0]])
        files = tft.experimental.ptransform_analyzer(
            list(strings.values()),
            Vocabularies({name: MAX_TEXT_VOCABULARY if name in texts else None for name in names}),
            output_dtypes=[tf.string] * len(names),
            output_shapes=[[]] * len(names),
            output_asset_default_values=[_NO_ENTRY] * len(names),
        )
        (scaling,) = tft.experimental.ptransform_analyzer(
            [values], Scaling(), output_dtypes=[tf.float32], output_shapes=[[2, len(numbers)]]
        )
        outputs = {name: _index(strings[name], file) for name, file in zip(names, files, strict=True)}
        for column, name in enumerate(numbers):
            value = _linear(raw[name], spec.cleaning[name])
            outputs[name] = _scaled(value, scaling[0, column], scaling[1, column])
            outputs[missing_name(name)] = tf.cast(~tf.math.is_finite(value), tf.float32)
        return outputs

    return preprocess


def _cleaned(values: Any, feature: Feature | None) -> Any:
    """Trimmed and folded as the feature says; identities, which have no feature, stay as they are."""
    if feature is None:
        return values
    if feature.trim:
        values = tf.strings.regex_replace(values, r"^[\s\pZ]+|[\s\pZ]+$", "")
    return tf.strings.lower(values, encoding="utf-8") if feature.lower else values


def _words(values: Any) -> Any:
    """The first TOKENS words of each text, string [n, TOKENS] padded with "": letters and digits, folded."""
    words = tf.strings.regex_replace(tf.strings.lower(values, encoding="utf-8"), r"[^\pL\pN]+", " ")
    tokens = tf.strings.split(tf.strings.strip(words))
    return tokens.to_tensor(default_value="", shape=[None, TOKENS])


def _index(values: Any, vocabulary_file: Any) -> Any:
    index = tft.apply_vocabulary(values, vocabulary_file, default_value=-1) + FIRST_ENTRY
    unseen = tf.where(tf.equal(index, FIRST_ENTRY - 1), tf.constant(UNSEEN, tf.int64), index)
    return tf.where(tf.equal(values, ""), tf.constant(MISSING, tf.int64), unseen)


def _linear(values: Any, feature: Feature) -> Any:
    """Numbers as they are scaled: log1p of the magnitude, with its sign, where the feature says so."""
    return tf.sign(values) * tf.math.log1p(tf.abs(values)) if feature.log else values


def _matrix(columns: list[Any], like: Any) -> Any:
    """Stacks [n] columns to float32 [n, m], also where m is 0."""
    return tf.stack(columns, 1) if columns else tf.zeros([tf.shape(like)[0], 0])


def _scaled(values: Any, mean: Any, deviation: Any) -> Any:
    """Standard deviations from the mean, clipped; a missing number is the mean."""
    scaled = (values - mean) / deviation
    usable = tf.where(tf.math.is_finite(values), scaled, tf.zeros_like(values))
    return tf.clip_by_value(usable, -_CLIP, _CLIP)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of [n, m] numbers by column, each float64 [m].

    They merge by Chan, Golub & LeVeque (1979), which does not lose the deviation of large numbers.
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Moments":
        """Moments of the finite entries of each column; NaN stands for missing."""
        present = np.isfinite(numbers)
        values = np.where(present, numbers, 0).astype(np.float64)
        count = present.sum(0).astype(np.float64)
        mean = values.sum(0) / np.maximum(count, 1)
        return cls(count, mean, (np.where(present, values - mean, 0) ** 2).sum(0))

    def merged(self, other: "Moments") -> "Moments":
        """Moments of both samples together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        gap = other.mean - self.mean
        squares = self.squares + other.squares + gap**2 * self.count * share
        return Moments(count, self.mean + gap * share, squares)

    @property
    def deviation(self) -> np.ndarray:
        """Population standard deviation [m]; 1 where there is none, so that one may divide by it."""
        deviation = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(deviation > 0, deviation, 1.0)

    @property
    def scaling(self) -> np.ndarray:
        """Mean and deviation [2, m] float32."""
        return np.stack([self.mean, self.deviation]).astype(np.float32)


def count_values(counters: list[Counter[bytes]], batch: tuple[np.ndarray, ...]) -> list[Counter[bytes]]:
    """Adds the occurrences of one batch, an array of strings for each counter, and returns the counters."""
    for counter, values in zip(counters, batch, strict=True):
        found = pa.array(values.ravel(), pa.binary()).value_counts()
        counter.update(dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))
    return counters


def vocabulary(counter: Counter[bytes], limit: int | None) -> list[bytes]:
    """Entries by falling count, then value; without empty text and what a line of text cannot hold."""
    usable = {v: c for v, c in counter.items() if v and not set(b"\r\n") & set(v)}
    return sorted(usable, key=lambda v: (-usable[v], v))[:limit] or [_NO_ENTRY]


class _CountValues(beam.CombineFn):  # type: ignore[misc]
    def __init__(self, vocabularies: int) -> None:
        self._vocabularies = vocabularies

    def create_accumulator(self) -> list[Counter[bytes]]:
        return [Counter() for _ in range(self._vocabularies)]

    def add_input(
        self, accumulator: list[Counter[bytes]], batch: tuple[np.ndarray, ...]
    ) -> list[Counter[bytes]]:
        return count_values(accumulator, batch)

    def merge_accumulators(self, accumulators: Iterable[list[Counter[bytes]]]) -> list[Counter[bytes]]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            for counter, more in zip(merged, accumulator, strict=True):
                counter.update(more)
        return merged

    def extract_output(self, accumulator: list[Counter[bytes]]) -> list[Counter[bytes]]:
        return accumulator


class Vocabularies(PTransformAnalyzer):  # type: ignore[misc]
    """Analyzer: one vocabulary file for each string input, in one pass.

    Args:
      limits: input name → most entries to keep (None: all).
    """

    def __init__(self, limits: dict[str, int | None]) -> None:
        super().__init__()
        self._limits = limits

    def expand(self, batches: Any) -> Any:
        """[tuple of string arrays] -> for each input a PCollection of its file's name."""
        counters = batches | "Count" >> beam.CombineGlobally(_CountValues(len(self._limits)))
        return tuple(
            counters | f"Write {name}" >> beam.Map(_write_vocabulary, number, name, limit, self.base_temp_dir)
            for number, (name, limit) in enumerate(self._limits.items())
        )


def _write_vocabulary(
    counters: list[Counter[bytes]], number: int, name: str, limit: int | None, folder: str
) -> np.ndarray:
    path = Path(folder) / vocabulary_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(entry + b"\n" for entry in vocabulary(counters[number], limit)))
    return np.array(str(path))


def _merge_moments(moments: Iterable[Moments | None]) -> Moments | None:
    """None is the empty sample, which Beam's combiner makes for want of a column count."""
    present = [m for m in moments if m is not None]
    return functools.reduce(Moments.merged, present) if present else None


class Scaling(beam.PTransform):  # type: ignore[misc]
    """Analyzer: mean and deviation of every column of the numbers, in one pass."""

    def expand(self, batches: Any) -> Any:
        """[(numbers float32 [n, m],)] -> [2, m] float32."""
        return (
            batches
            | "Moments" >> beam.Map(lambda batch: Moments.of(batch[0]))
            | "Merge" >> beam.CombineGlobally(_merge_moments)
            | "Scaling" >> beam.Map(lambda moments: moments.scaling)
        )
