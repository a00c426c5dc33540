"""What Prometheus reads: its own parser takes it, histograms add up, and the account is the ledger's."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from beamrec.pipelines.job_metrics import JobMetrics, MetricsHistory, latency
from beamrec.pipelines.prometheus import serve_metrics
from beamrec.schemas.errors import UsageError

EARLY = JobMetrics(
    at=1000.0,
    counters={"read": {"": 100}, "release": {"r1": 100}, "upsert_us_sum": {"": 900}},
    histograms={"upsert_us": {0: 4}},
)
LATE = JobMetrics(
    at=1010.0,
    counters={
        "read": {"": 350},
        "release": {"r1": 110, "r2": 240},
        "upsert_us_sum": {"": 2_500_900},
        "store_wait_us": {"output": 1_500_000},
    },
    histograms={"upsert_us": {0: 4, 40: 1}},
    watermarks={"0": 1008.0, "1": 1003.5},
    gauges={"items_version": 7},
    distributions={"read_batch": (2, 350, 100, 250)},
)
ACCOUNT = {"in": 350, "out": 300, "dead_letters": 20, "duplicates": 5, "expired": 1, "seconds": 0.0}


def history() -> MetricsHistory:
    """A job that has said its metrics twice."""
    made = MetricsHistory()
    made.add(EARLY)
    made.add(LATE)
    made.account = ACCOUNT
    return made


def scraped(made: MetricsHistory) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) → value, as Prometheus' own parser reads the endpoint."""
    with (
        serve_metrics(made, 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
    ):
        text = answer.read().decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}


def test_all_kinds_of_metrics_are_scraped() -> None:
    found = scraped(history())
    assert found["beamrec_read_total", ()] == 350
    assert found["beamrec_release_total", (("release", "r2"),)] == 240
    assert found["beamrec_release_in_use", (("release", "r2"),)] == 1
    assert found["beamrec_store_wait_seconds_total", (("store", "output"),)] == 1.5
    assert found["beamrec_watermark_timestamp_seconds", (("split", "1"),)] == 1003.5
    assert found["beamrec_items_version", ()] == 7
    assert (found["beamrec_read_batch_count", ()], found["beamrec_read_batch_sum", ()]) == (2, 350)
    assert found["beamrec_ledger_records", (("fate", "visible"),)] == 300
    assert found["beamrec_open_window_rows", ()] == 350 - 326


def test_a_histogram_is_cumulative_in_seconds() -> None:
    found = scraped(history())
    buckets = sorted(
        (float(labels[0][1]), value)
        for (name, labels), value in found.items()
        if "upsert_seconds_bucket" in name
    )
    assert buckets[0] == (0.000128, 4)
    assert [value for _, value in buckets] == [4.0] * 40 + [5.0] * 40
    assert buckets[-1] == (float("inf"), 5)
    assert found["beamrec_upsert_seconds_count", ()] == 5
    assert found["beamrec_upsert_seconds_sum", ()] == pytest.approx(2.5009)


def test_a_job_that_has_said_nothing_yet_has_an_endpoint_too() -> None:
    assert not any(name.startswith("beamrec_read") for name, _ in scraped(MetricsHistory()))


def test_a_taken_port_is_wrong_usage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--metrics-port {port}"), serve_metrics(history(), port):
            pass


def test_the_release_in_use_is_the_one_that_grew_last_and_stays_while_nothing_grows() -> None:
    made = history()
    assert made.release == "r2"
    made.add(LATE)
    assert made.release == "r2"


def test_percentiles_of_what_came_since() -> None:
    recent = latency(LATE.since(EARLY), ("upsert",))["upsert"]
    assert recent["count"] == 1
    assert recent["mean"] == 2500
    assert recent["p50"] == pytest.approx(1160, rel=0.13)
    assert LATE.lags() == {"0": 2.0, "1": 6.5}
