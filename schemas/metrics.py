"""Every metric of the stream: its name, kind, unit and meaning, and how a histogram is told in counters.

Beam's own histograms stay inside the worker (`HistogramCell` reports nothing to a runner). A histogram here
is one counter a bucket and one for the sum, which every runner adds up. Metrics are counts of attempts, which
retries raise and crashes forget: the ledger is the account, these are for dashboards.
"""

import bisect
import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "BOUNDS_US",
    "METRICS",
    "NAMESPACE",
    "Kind",
    "Metric",
    "bucket_counts",
    "bucket_name",
    "bucket_of",
    "bucket_with",
    "percentile",
    "sum_name",
]

NAMESPACE = "beamrec"

Kind = Literal["counter", "gauge", "distribution", "histogram"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
      name: in the namespace `beamrec`; those of a histogram's counters are `bucket_name` and `sum_name`.
      kind: a Beam counter, gauge or distribution, or a histogram.
      unit: `rows`, `us` (microseconds), …
      meaning: one line, for docs and for Prometheus.
      label: what stands behind a `.` in the name, if it has parts: one metric of each value seen.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    label: str = ""


# 2^(1/3) apart: three buckets an octave, from 128 us to 2.4 h; what is below or beyond is in the outer ones.
BOUNDS_US: tuple[int, ...] = tuple(round(2 ** (k / 3)) for k in range(21, 100))
"""Upper bounds of a histogram's buckets [microseconds]; behind them is one without."""

_BOUNDS = np.asarray(BOUNDS_US, np.int64)
_ERROR = 2 ** (1 / 6)  # a value is at most this factor from the middle of its bucket: 12 %


@functools.lru_cache(maxsize=2048)
def bucket_name(name: str, bucket: int) -> str:
    """The counter of a histogram's bucket: `upsert_us_le_1024`, the last one `upsert_us_le_inf`."""
    return f"{name}_le_{BOUNDS_US[bucket] if bucket < len(BOUNDS_US) else 'inf'}"


def sum_name(name: str) -> str:
    """The counter of the sum of a histogram's values [microseconds]."""
    return f"{name}_sum"


def bucket_of(counter: str) -> tuple[str, int] | None:
    """The inverse of `bucket_name`; None for a counter that is no bucket."""
    name, found, bound = counter.rpartition("_le_")
    return (name, _BUCKETS[bound]) if found and bound in _BUCKETS else None


_BUCKETS = {str(bound): bucket for bucket, bound in enumerate(BOUNDS_US)} | {"inf": len(BOUNDS_US)}


def bucket_with(value_us: int) -> int:
    """The bucket that a value lies in."""
    return bisect.bisect_left(BOUNDS_US, value_us)


def bucket_counts(values_us: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """How many of the values [n] lie in which bucket: (bucket, count) of those that hold any.

    Clocks of several machines make values below zero; they count as the shortest.
    """
    buckets = np.searchsorted(_BOUNDS, values_us)
    counts = np.bincount(buckets)
    return [(int(bucket), int(counts[bucket])) for bucket in np.flatnonzero(counts)]


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """A percentile in microseconds, within 12 % of a value between 128 us and 2.4 h; None without values.

    Args:
      counts: bucket → how many values lie in it.
      share: 0.99 for p99.
    """
    total = sum(counts.values())
    if not total:
        return None
    rank, below = share * total, 0
    for bucket in sorted(counts):
        below += counts[bucket]
        if below >= rank and counts[bucket]:
            break
    return BOUNDS_US[min(bucket, len(BOUNDS_US) - 1)] / (_ERROR if bucket < len(BOUNDS_US) else 1)


def _counter(name: str, meaning: str, unit: str = "rows", label: str = "") -> Metric:
    return Metric(name, "counter", unit, meaning, label)


def _histogram(name: str, meaning: str) -> Metric:
    return Metric(name, "histogram", "us", meaning)


_ALL = (
    _counter("read", "events that the source handed on, those read again after a start included"),
    Metric("read_batch", "distribution", "rows", "events in a batch of the source"),
    Metric("watermark_ms", "gauge", "ms since 1970", "watermark of a reader; the lag is the time since then"),
    _counter("parsed", "events that are good"),
    _counter("parse_dead_letters", "records that are no events"),
    _counter("late", "events whose window had ended when they arrived, written with the next files"),
    _counter("expired", "events beyond the allowed lateness"),
    _counter("looked_up", "events that were stamped with a release"),
    _counter("unknown_products", "products of histories that the release does not know"),
    _counter("release_load_failures", "promoted releases that could not serve on a worker", "failures"),
    Metric("items_version", "gauge", "version", "version of the release's items, higher after each upsert"),
    _counter("searched", "user vectors that were searched for, exactly or by the index", label="way"),
    _counter("served_by", "recommendations by the path that served them", label="path"),
    _counter("release", "recommendations by release; the one that grows is in use", label="release"),
    _counter("short_lists", "lists that the business rules left with fewer items than --items"),
    _counter("rule_facts_failures", "readings of the shop for business rules that failed", "reads"),
    _counter("purchases_unknown", "customers of a batch whose purchases nobody knew", "customers"),
    Metric("rule_facts_age_seconds", "gauge", "s", "age of the products' columns that business rules see"),
    _counter("upserted", "rows of the serving table that changed"),
    _counter("committed", "records that got their fate in the ledger", label="fate"),
    _counter("replays", "records that came to the ledger again"),
    _counter("sent", "records that went out to a stream (--also)", label="system"),
    _counter("too_large", "records too large for a stream, left out there", label="system"),
    _counter("gaps", "places where records of a source are missing", "gaps"),
    _counter("lost_records", "records that are missing there, as far as known"),
    _counter("clicks_removed", "clicks of sessions too old to be a history"),
    Metric("commit_batch", "distribution", "rows", "records in a commit of a shard"),
    _counter("store_retries", "times that a store was asked again", "retries", label="store"),
    _counter("store_wait_us", "time spent waiting for a store that was away", "us", label="store"),
    _histogram("event_to_serving_us", "from the event's own time until it is in the serving table"),
    _histogram("arrival_to_serving_us", "from the event's arrival until it is in the serving table"),
    _histogram("event_to_file_us", "from the event's own time until its file is visible"),
    _histogram("arrival_to_file_us", "from the event's arrival until its file is visible"),
    _histogram("event_to_stream_us", "from the event's own time until it is in a stream (--also)"),
    _histogram("arrival_to_stream_us", "from the event's arrival until it is in a stream (--also)"),
    _histogram("look_up_us", "one look-up of neighbours and customers, a batch"),
    _histogram("inference_us", "features and user tower, a batch"),
    _histogram("search_us", "user to item search, a batch"),
    _histogram("upsert_us", "one statement into the serving table, a batch"),
    _histogram("commit_us", "one commit of a shard's files and ledger"),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""All metrics by name."""
