"""The metrics of a running job as Prometheus text, on `--metrics-port`.

`prometheus_client` writes the format; the figures are those that the job's runner said last, at most two
seconds ago, and no series is kept here.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from beamrec.pipelines.job_metrics import MetricsHistory
from beamrec.schemas.errors import UsageError
from beamrec.schemas.metrics import BOUNDS_US, METRICS, sum_name

__all__ = ["JobCollector", "serve_metrics"]

_FATES = {
    "in": "read",
    "out": "visible",
    "dead_letters": "dead_letter",
    "duplicates": "duplicate",
    "expired": "expired",
}


class JobCollector(Collector):
    """Families of the metrics of `schemas.metrics`, of the ledger's account and of what follows from them."""

    def __init__(self, history: MetricsHistory) -> None:
        self._history = history

    def collect(self) -> Iterable[Metric]:
        """One family a metric; counters are from the start of this run."""
        yield from self._counters()
        yield from self._histograms()
        yield from self._others()
        yield from self._account()

    def _counters(self) -> Iterator[Metric]:
        for name, parts in self._history.last.counters.items():
            metric = METRICS.get(name)
            if metric is None or metric.kind != "counter":
                continue
            seconds = metric.unit == "us"
            family = CounterMetricFamily(
                _seconds(f"beamrec_{name}") if seconds else f"beamrec_{name}",
                metric.meaning,
                labels=[metric.label] if metric.label else [],
            )
            for label, value in parts.items():
                family.add_metric([label] if metric.label else [], value / 1e6 if seconds else value)
            yield family

    def _histograms(self) -> Iterator[Metric]:
        last = self._history.last
        for name, counts in last.histograms.items():
            total = last.counters.get(sum_name(name), {}).get("", 0) / 1e6
            family = HistogramMetricFamily(_seconds(f"beamrec_{name}"), METRICS[name].meaning)
            family.add_metric([], _cumulative(counts), total)
            yield family

    def _others(self) -> Iterator[Metric]:
        last = self._history.last
        times = GaugeMetricFamily(
            "beamrec_watermark_timestamp_seconds",
            "watermark of a reader, since 1970; the lag is time() less this",
            labels=["split"],
        )
        for split, seconds in last.watermarks.items():
            times.add_metric([split], seconds)
        yield times
        for name, value in last.gauges.items():
            yield GaugeMetricFamily(f"beamrec_{name}", METRICS[name].meaning, value=value)
        for name, (count, total, _, _) in last.distributions.items():
            yield SummaryMetricFamily(f"beamrec_{name}", METRICS[name].meaning, count, total)
        if self._history.release:
            in_use = GaugeMetricFamily("beamrec_release_in_use", "which release serves", labels=["release"])
            in_use.add_metric([self._history.release], 1)
            yield in_use

    def _account(self) -> Iterator[Metric]:
        account = self._history.account
        if not account:
            return
        records = GaugeMetricFamily(
            "beamrec_ledger_records", "records of the output folder by fate, over all runs", labels=["fate"]
        )
        for key, fate in _FATES.items():
            records.add_metric([fate], account[key])
        yield records
        waiting = account["in"] - sum(account[key] for key in _FATES if key != "in")
        yield GaugeMetricFamily("beamrec_open_window_rows", "records read and without a fate yet", waiting)


def _seconds(name: str) -> str:
    return f"{name.removesuffix('_us')}_seconds"


def _cumulative(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """(upper bound in seconds, how many values up to it), as Prometheus has them."""
    found, below = [], 0
    for bucket, bound in enumerate([*(str(us / 1e6) for us in BOUNDS_US), "+Inf"]):
        below += counts.get(bucket, 0)
        found.append((bound, float(below)))
    return found


@contextlib.contextmanager
def serve_metrics(history: MetricsHistory, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Answers `GET /metrics` while in the `with` block; yields the port.

    Args:
      port: 0 takes any that is free.

    Raises:
      UsageError: the port is taken, or the host is not this machine's.
    """
    registry = CollectorRegistry()
    registry.register(JobCollector(history))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(
            f"--metrics-port {port}: cannot be opened on {host} ({error.strerror}); give another one"
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
