"""docs/metrics.md is what the code says, and what Prometheus is told has the names that it gives."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.core import Metric as Family

from beamrec.pipelines.job_metrics import JobMetrics, MetricsHistory
from beamrec.pipelines.prometheus import JobCollector
from beamrec.schemas.metrics import METRICS, Metric

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_file_is_current() -> None:
    command = [sys.executable, str(DOCS / "metrics.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_each_metric_is_exported_by_the_name_and_labels_of_its_row(metric: Metric) -> None:
    (family,) = exported(metric)
    sample = family.samples[0]
    labels = set(sample.labels) - {"le"}
    name = f"{family.name}_total" if family.type == "counter" else family.name
    shown = f"`{name}{'{' + ','.join(sorted(labels)) + '}' if labels else ''}`"
    rows = [row for row in (DOCS / "metrics.md").read_text().splitlines() if metric.meaning in row]
    assert [shown in row for row in rows] == [True], (shown, rows)


def exported(metric: Metric) -> list[Family]:
    """The family of a job that knows nothing but this metric."""
    history = MetricsHistory()
    counts = {
        "counter": {"counters": {metric.name: {"x" if metric.label else "": 1}}},
        "histogram": {"histograms": {metric.name: {1: 1}}},
        "gauge": {"gauges": {metric.name: 1}},
        "distribution": {"distributions": {metric.name: (1, 1, 1, 1)}},
    }[metric.kind]
    if metric.name == "watermark_ms":
        counts = {"watermarks": {"0": 1.0}}
    history.add(JobMetrics(at=1.0, **counts))  # type: ignore[arg-type]
    ours = (f for f in JobCollector(history).collect() if f.samples)
    return [family for family in ours if family.name != "beamrec_release_in_use"]
