"""The metrics of a running job, asked of its runner: counts, percentiles, watermark lag, the release in use.

Prism, Flink's and Dataflow's services answer while a job runs; the direct runner when it is done. What
they answer are counts of finished bundles (Prism, Dataflow) or of attempts (Flink).
"""

import collections
import contextlib
import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

from apache_beam.metrics import MetricsFilter

from beamrec.schemas.metrics import METRICS, NAMESPACE, bucket_of, percentile, sum_name

__all__ = ["JobMetrics", "MetricsHistory", "latency", "read_metrics", "tell_prometheus"]

_SPLIT = re.compile(r"Split(\d+)")
_RECENT_SECONDS = 60.0
_SINKS = ("serving", "file", "stream")
_LATENCIES = tuple(f"{since}_to_{sink}" for sink in _SINKS for since in ("event", "arrival"))
_TIMES = ("look_up", "inference", "search", "upsert", "commit")


@dataclasses.dataclass(frozen=True)
class JobMetrics:
    """What a runner says at one moment, over all steps and workers.

    Attributes:
      at: when it was asked, seconds since 1970.
      counters: name → label (`""` where the metric has no parts) → count.
      histograms: name → bucket → count.
      watermarks: split → watermark, seconds since 1970.
      gauges: name → the greatest of its steps' last values.
      distributions: name → count, sum, least and greatest.
    """

    at: float
    counters: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    histograms: Mapping[str, Mapping[int, int]] = dataclasses.field(default_factory=dict)
    watermarks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gauges: Mapping[str, int] = dataclasses.field(default_factory=dict)
    distributions: Mapping[str, tuple[int, int, int, int]] = dataclasses.field(default_factory=dict)

    def count(self, name: str) -> int:
        """A counter, all its parts together."""
        return sum(self.counters.get(name, {}).values())

    def lags(self) -> dict[str, float]:
        """Seconds from each reader's watermark to when the runner was asked."""
        return {split: round(self.at - time_, 3) for split, time_ in self.watermarks.items()}

    def since(self, before: "JobMetrics") -> "JobMetrics":
        """What was counted since `before`; gauges and distributions as they are."""
        return dataclasses.replace(
            self,
            counters={n: _less(parts, before.counters.get(n, {})) for n, parts in self.counters.items()},
            histograms={
                n: _less(parts, before.histograms.get(n, {})) for n, parts in self.histograms.items()
            },
        )


def _less(counts: Mapping[Any, int], before: Mapping[Any, int]) -> dict[Any, int]:
    """Counts less those before; a worker that went may take some with it, but none is below zero."""
    return {key: max(n - before.get(key, 0), 0) for key, n in counts.items()}


def read_metrics(result: Any) -> JobMetrics:
    """Asks the runner of a job, which may be running.

    Args:
      result: what `Pipeline.run` returned.
    """
    # A portable runner's result keeps the first answer for good.
    result._metrics = None
    answer = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    counters: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    histograms: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for found in answer["counters"]:
        name = found.key.metric.name
        bucket = bucket_of(name)
        if bucket:
            histograms[bucket[0]][bucket[1]] += found.result
        else:
            metric, _, label = name.partition(".")
            counters[metric][label] += found.result
    gauges = [(found.key, found.result.value) for found in answer["gauges"] if found.result.value]
    return JobMetrics(
        time.time(),
        counters,
        histograms,
        {_split(key.step): ms / 1e3 for key, ms in gauges if key.metric.name == "watermark_ms"},
        _greatest({(key.metric.name, key.step): value for key, value in gauges}),
        _together([(found.key.metric.name, found.result) for found in answer["distributions"]]),
    )


def _split(step: str) -> str:
    found = _SPLIT.search(step)
    return found.group(1) if found else step


def _greatest(gauges: Mapping[tuple[str, str], int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for (name, _), value in gauges.items():
        if name != "watermark_ms":
            found[name] = max(value, found.get(name, value))
    return found


def _together(distributions: list[tuple[str, Any]]) -> dict[str, tuple[int, int, int, int]]:
    found: dict[str, tuple[int, int, int, int]] = {}
    for name, one in distributions:
        if one.count:
            count, total, least, greatest = found.get(name, (0, 0, one.min, one.max))
            found[name] = count + one.count, total + one.sum, min(least, one.min), max(greatest, one.max)
    return found


def latency(metrics: JobMetrics, names: tuple[str, ...] = _LATENCIES) -> dict[str, dict[str, float]]:
    """Percentiles of histograms in milliseconds; those without values are left out."""
    found = {}
    for name in names:
        counts = metrics.histograms.get(f"{name}_us", {})
        if sum(counts.values()):
            shares = {f"p{share}": percentile(counts, share / 100) for share in (50, 90, 99)}
            total = metrics.counters.get(sum_name(f"{name}_us"), {}).get("", 0)
            found[name] = {
                **{key: round(value / 1e3, 3) for key, value in shares.items() if value is not None},
                "mean": round(total / sum(counts.values()) / 1e3, 3),
                "count": sum(counts.values()),
            }
    return found


class MetricsHistory:
    """What a job's runner has said, so that rates and what is recent can be told.

    Attributes:
      account: records by fate, as the ledger of the output folder has them.
    """

    def __init__(self) -> None:
        self.account: Mapping[str, Any] = {}
        self._seen: collections.deque[JobMetrics] = collections.deque([JobMetrics(time.time())])
        self._release: str | None = None

    @property
    def last(self) -> JobMetrics:
        """What was said last; nothing before the first time."""
        return self._seen[-1]

    @property
    def release(self) -> str | None:
        """The release in use: the last one whose recommendations have grown in number."""
        return self._release

    def add(self, metrics: JobMetrics) -> None:
        """Takes note of an answer."""
        grown = metrics.since(self.last).counters.get("release", {})
        self._release = max(
            (id_ for id_ in grown if grown[id_]), key=lambda id_: grown[id_], default=self._release
        )
        self._seen.append(metrics)
        while len(self._seen) > 2 and self._seen[1].at <= metrics.at - _RECENT_SECONDS:
            self._seen.popleft()

    def recent(self) -> dict[str, Any]:
        """The last minute, for `beamrec runs show`: rate, latencies, watermark lag, release."""
        first, last = self._seen[0], self.last
        metrics = last.since(first)
        seconds = max(last.at - first.at, 1e-3)
        return {
            "events_per_second": round(metrics.count("read") / seconds, 1),
            "latency_ms": latency(metrics),
            "times_ms": latency(metrics, _TIMES),
            "watermark_lag_seconds": last.lags(),
            "release": self._release,
        }

    def total(self) -> dict[str, Any]:
        """The whole run, for `beamrec stream --json`."""
        last = self.last
        sums = {sum_name(name) for name, metric in METRICS.items() if metric.kind == "histogram"}
        return {
            "counters": {
                n: parts[""] if "" in parts else dict(parts)
                for n, parts in sorted(last.counters.items())
                if n not in sums
            },
            "times_ms": latency(last, _TIMES),
            "batches": {
                n: dict(zip(("count", "sum", "least", "greatest"), v, strict=True))
                for n, v in last.distributions.items()
            },
            "watermark_lag_seconds": last.lags(),
            "release": self._release,
        }


def tell_prometheus(
    history: MetricsHistory, port: int | None, host: str
) -> contextlib.AbstractContextManager[int | None]:
    """`serve_metrics`, where a port was asked for."""
    if port is None:
        return contextlib.nullcontext()
    # Imported here: a job that nobody scrapes needs no server.
    from beamrec.pipelines.prometheus import serve_metrics

    return serve_metrics(history, port, host)
