"""Metrics as a runner sees them: added up over bundles, and empty ones not sent with every bundle."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.metrics.execution import MetricsEnvironment
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from beamrec.pipelines.job_metrics import JobMetrics, read_metrics
from beamrec.schemas.events import TIMESTAMP
from beamrec.schemas.metrics import bucket_counts
from beamrec.transforms import metrics


class _Measure(beam.DoFn):  # type: ignore[misc]
    def start_bundle(self) -> None:
        metrics.start_bundle()

    def process(self, us: int) -> Iterator[int]:
        metrics.count("read", 2)
        metrics.count("store_retries", 1, "output")
        metrics.count_values("served_by", pa.array(["popular", "popular", "known_customer"]))
        metrics.distribute("read_batch", us)
        metrics.gauge("items_version", us)
        metrics.observe("upsert_us", np.array([us, us]))
        with metrics.timed("look_up_us"):
            pass
        yield us


def _measured(*values: int) -> JobMetrics:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(values, reshuffle=False) | beam.ParDo(_Measure())
    return read_metrics(pipeline.result)


def test_what_is_counted_comes_back_added_up_and_by_part() -> None:
    found = _measured(200, 300, 90_000)
    assert found.counters["read"] == {"": 6}
    assert found.counters["store_retries"] == {"output": 3}
    assert found.counters["served_by"] == {"popular": 6, "known_customer": 3}
    assert found.distributions["read_batch"] == (3, 90_500, 200, 90_000)
    assert found.gauges["items_version"] == 90_000
    expected = dict(bucket_counts(np.array([200, 200, 300, 300, 90_000, 90_000])))
    assert found.histograms["upsert_us"] == expected
    assert found.counters["upsert_us_sum"] == {"": 181_000}
    assert sum(found.histograms["look_up_us"].values()) == 3


def test_a_metric_that_is_not_listed_is_refused() -> None:
    with pytest.raises(KeyError):
        metrics.count("invented", 1)


def test_times_since_are_measured_and_nulls_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(metrics, "observe", lambda name, values: seen.append(values))
    ago = datetime.now(UTC) - timedelta(hours=1)
    metrics.observe_since("event_to_file_us", pa.chunked_array([pa.array([ago, None], TIMESTAMP)]))
    assert len(seen[0]) == 1
    assert 3.6e9 <= seen[0][0] < 3.6e9 + 6e7


class _Bundles(beam.DoFn):  # type: ignore[misc]
    """Yields what its step would send of ours when a bundle starts, after Beam has set its cells back."""

    def start_bundle(self) -> None:
        container = MetricsEnvironment.current_container()
        metrics.count("read", 5)
        metrics.observe("upsert_us", np.array([200]))
        metrics.gauge("items_version", 4)
        container.reset()
        before = len(container.metrics)
        metrics.count("parsed", 1)
        metrics.start_bundle()
        self._sizes = before, [str(key.metric_name.name) for key in container.metrics]

    def process(self, _: int) -> Iterator[tuple[int, list[str]]]:
        yield self._sizes


def test_a_bundle_starts_without_the_empty_metrics_of_those_before() -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        sizes = pipeline | beam.Create([1], reshuffle=False) | beam.ParDo(_Bundles())
        assert_that(sizes, equal_to([(4, ["parsed"])]))
