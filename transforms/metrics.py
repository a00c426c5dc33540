"""Updating the metrics of `schemas.metrics` from inside a DoFn: per batch, never per row.

An update costs 0.4 us, but Beam sends every metric that a step has ever touched with each of its bundles,
which costs 13 us apiece: 1.3 ms for a hundred buckets, of which a bundle fills a few. So DoFns that fill
histograms call `start_bundle` first, which forgets the empty ones.

Outside of a bundle (tests, the bounded side) nothing happens.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.metrics.execution import MetricsEnvironment
from apache_beam.metrics.metric import MetricName

from beamrec.schemas.metrics import (
    METRICS,
    NAMESPACE,
    bucket_counts,
    bucket_name,
    bucket_with,
    sum_name,
)

__all__ = [
    "count",
    "count_values",
    "count_waits",
    "distribute",
    "gauge",
    "inference_took",
    "observe",
    "observe_seconds",
    "observe_since",
    "start_bundle",
    "timed",
]


def count(name: str, rows: int, label: str = "") -> None:
    """Adds to a counter; `label` is the part of it, where it has parts."""
    if rows:
        _counter(_known(name, label)).inc(rows)


def count_values(name: str, values: pa.Array | pa.ChunkedArray) -> None:
    """Adds to the parts of a counter how often their names stand in an array of few different texts."""
    for entry in pc.value_counts(values).to_pylist():
        count(name, entry["counts"], str(entry["values"]))


def count_waits(waits: Mapping[str, tuple[int, float]]) -> None:
    """Counts (retries, seconds waited) by store."""
    for store, (retries, seconds) in waits.items():
        count("store_retries", retries, store)
        count("store_wait_us", round(seconds * 1e6), store)


def distribute(name: str, value: int) -> None:
    """Adds a value to a distribution (count, sum, least and greatest)."""
    _distribution(_known(name)).update(value)


def gauge(name: str, value: int) -> None:
    """Sets a gauge, whose last value counts."""
    _gauge(_known(name)).set(value)


def observe(name: str, values_us: npt.NDArray[np.int64]) -> None:
    """Adds values [n] in microseconds to a histogram."""
    if not len(values_us):
        return
    for bucket, rows in bucket_counts(values_us):
        _counter(bucket_name(_known(name), bucket)).inc(rows)
    _counter(sum_name(name)).inc(int(np.maximum(values_us, 0).sum()))


def observe_seconds(name: str, seconds: float) -> None:
    """Adds one value to a histogram."""
    us = max(round(seconds * 1e6), 0)
    _counter(bucket_name(_known(name), bucket_with(us))).inc()
    _counter(sum_name(name)).inc(us)


def observe_since(name: str, times: pa.Array | pa.ChunkedArray, until_us: int | None = None) -> None:
    """Adds to a histogram how long ago each of the times [n] of type TIMESTAMP was; nulls are left out.

    Args:
      until_us: by a clock that stood there, in microseconds since the epoch; None for now.
    """
    since = times.drop_null().cast(pa.int64()).to_numpy()
    observe(name, (time.time_ns() // 1000 if until_us is None else until_us) - since)


def inference_took(seconds: float) -> None:
    """Tells how long inference took of a batch."""
    observe_seconds("inference_us", seconds)


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Adds to a histogram how long the `with` block took, if it did not fail."""
    began = time.perf_counter()
    yield
    observe_seconds(name, time.perf_counter() - began)


def start_bundle() -> None:
    """Forgets this step's metrics that hold nothing; Beam has just set them all back.

    `MetricsContainer.metrics` is not part of Beam's public interface; where it is gone, bundles carry more.
    """
    container = MetricsEnvironment.current_container()
    metrics = getattr(container, "metrics", None)
    if not isinstance(metrics, dict):
        return
    for key, cell in list(metrics.items()):
        name = key.metric_name
        if isinstance(name, MetricName) and name.namespace == NAMESPACE and _is_empty(cell.get_cumulative()):
            metrics.pop(key, None)


def _is_empty(value: Any) -> bool:
    """Whether a counter, gauge or distribution is as it was made."""
    return value == 0 or 0 in (getattr(value, "timestamp", None), getattr(value, "count", None))


def _known(name: str, label: str = "") -> str:
    """The name of the Beam metric; raises KeyError for one that `schemas.metrics` does not list."""
    metric = METRICS[name]
    return f"{metric.name}.{label}" if metric.label else metric.name


@functools.lru_cache(maxsize=2048)
def _counter(name: str) -> Metrics.DelegatingCounter:
    """Made once: making one costs six times what its update costs."""
    return Metrics.counter(NAMESPACE, name)


@functools.lru_cache
def _distribution(name: str) -> Metrics.DelegatingDistribution:
    return Metrics.distribution(NAMESPACE, name)


@functools.lru_cache
def _gauge(name: str) -> Metrics.DelegatingGauge:
    return Metrics.gauge(NAMESPACE, name)
