"""Writes docs/metrics.md from `schemas.metrics`: `make docs`; `--check` says whether it is current."""

import argparse
import sys
from pathlib import Path

from beamrec.schemas.metrics import METRICS, Metric

TARGET = Path(__file__).with_suffix(".md")

HEAD = """\
# Metrics and logs

Made from the code by `make docs`; do not edit the tables.

`beamrec stream` counts and measures by Beam's own metrics, in the namespace `beamrec`, on every runner.
They are for dashboards: retries raise them, a crash forgets some, and Prism may forget what two bundles
send first at the same time. What became of each record is in the ledger (`beamrec stream --json`: `in`,
`out`, …), which is exact.

## Where to read them

- `beamrec stream --metrics-port 9464` answers Prometheus at `http://127.0.0.1:9464/metrics`
  (`--metrics-host` for other machines), with figures at most two seconds old: what the runner says, and of
  the ledger `beamrec_ledger_records{fate=…}` over all runs and `beamrec_open_window_rows`; also the
  watermarks as `beamrec_watermark_timestamp_seconds{split=…}`, and
  `beamrec_release_in_use{release=…}`, which is 1. Counters begin at 0 with each run.
- `beamrec runs show ID` (or `last`) shows the last minute of a stream: rate, latencies, lag, release in
  use.
- `beamrec stream --json` ends with `latency` (p50, p90, p99 in ms of the whole run) and `metrics`.
- A runner's own pages and exporters, by the names below. Who started the job hears of them while it runs on
  Prism and Dataflow, which tells no gauges (its own pages show the watermark); on Flink and the direct
  runner at the end, and meanwhile of Flink's own reporters.

The watermark lag is `time() - beamrec_watermark_timestamp_seconds`: the time of the watermark is exported
and not its age, so that a reader that stands still is seen to fall behind. Some alerts:

```
time() - beamrec_watermark_timestamp_seconds > 60                                         # not keeping up
histogram_quantile(0.99, rate(beamrec_arrival_to_serving_seconds_bucket[5m])) > 1         # slow
rate(beamrec_store_wait_seconds_total[1m]) > 0.5                                          # a store is away
increase(beamrec_release_load_failures_total[10m]) > 0                                    # a bad release
rate(beamrec_parse_dead_letters_total[5m]) / rate(beamrec_read_total[5m]) > 0.01          # bad events
```

## Histograms

Beam's own histograms reach no runner in Beam 2.77 (the worker does not send them), so that each histogram
here is counters: `NAME_le_BOUND`, one a bucket, and `NAME_sum`. Bounds lie a factor of 2^(1/3) apart, from
128 us to 2.4 h, so that a percentile is within 12 % of the exact one. A bundle sends only the buckets that
it has filled.

"""

LOGS = """\

## Logs

`--log-format json` (`BEAMREC_LOG_FORMAT`) makes one JSON object a line of the log of a run (`beamrec runs
logs`) and of standard error: `time` (RFC 3339, UTC), `level`, `logger`, `message`, `thread`, and where
there are any `run`, `step` (of the pipeline) and `exception` (`type`, `message`, `traceback`). What
libraries print below Python's logging goes to the file `output` beside the log. Workers on other machines
log as their runner says.

Logs, errors and metrics hold ids (of events, sessions, customers, products, releases) and no other value of
an event or a row. What PostgreSQL, MySQL, Arrow and others quote in their errors is left out: `(withheld)`.
With `--debug` too: what the clients of clouds send and receive stays out of the log. A dead letter holds
the record that it is about, and `error_message` in it may quote a value.
"""


def main() -> int:
    """Writes the file, or with `--check` compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if it is not current")
    text = render()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is not current; run `make docs`", file=sys.stderr)
        return 1
    return 0


def render() -> str:
    """The whole file."""
    histograms = [metric for metric in METRICS.values() if metric.kind == "histogram"]
    others = [metric for metric in METRICS.values() if metric.kind != "histogram"]
    return "".join(
        [
            HEAD,
            "| name in Beam | Prometheus | meaning |\n|---|---|---|\n",
            *map(_histogram, histograms),
            "\n## Counters, gauges and distributions\n\n",
            "| name in Beam | kind | unit | Prometheus | meaning |\n|---|---|---|---|---|\n",
            *map(_other, others),
            LOGS,
        ]
    )


def _histogram(metric: Metric) -> str:
    return f"| `{metric.name}_le_…` | `{_prometheus(metric)}` | {metric.meaning} |\n"


def _other(metric: Metric) -> str:
    name = f"{metric.name}.{metric.label.upper()}" if metric.label else metric.name
    return f"| `{name}` | {metric.kind} | {metric.unit} | `{_prometheus(metric)}` | {metric.meaning} |\n"


def _prometheus(metric: Metric) -> str:
    if metric.name == "watermark_ms":
        return "beamrec_watermark_timestamp_seconds{split}"
    name = f"beamrec_{metric.name.removesuffix('_us')}"
    labels = f"{{{metric.label}}}" if metric.label else ""
    return f"{name}{'_seconds' if metric.unit == 'us' else ''}{'_total' * (metric.kind == 'counter')}{labels}"


if __name__ == "__main__":
    sys.exit(main())
