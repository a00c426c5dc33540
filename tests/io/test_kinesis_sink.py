"""Recommendations out to Kinesis: every line at least once under its event id, whatever is refused."""

import collections
import datetime as dt
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from beamrec.io.sinks import open_sink
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import OUTCOMES

HOUR = dt.datetime(2026, 11, 22, 7, tzinfo=dt.UTC)


def outcomes(lines: list[bytes], fate: str = "visible", first: int = 0) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {"source": "file:a", "after": i, "position": i + 1, "event_id": f"e{i}", "fate": fate}
            | {"folder": "recommendations", "hour": HOUR, "line": line}
            for i, line in enumerate(lines, first)
        ],
        schema=OUTCOMES,
    )


def write(kinesis: Any, *batches: pa.RecordBatch) -> None:
    uri = f"kinesis://{kinesis.stream}?endpoint={kinesis.endpoint}&region=us-east-1"
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(batches) | open_sink(uri)


def test_visible_lines_are_put_once_under_their_event_ids(kinesis: Any) -> None:
    lines = [b'{"event":%d}' % i for i in range(1203)]
    write(kinesis, outcomes(lines), outcomes([b"dead"], fate="dead_letter", first=2000))
    assert sorted(kinesis.stored_under()) == sorted((f"e{i}", line) for i, line in enumerate(lines))


def test_refused_calls_and_refused_records_are_put_again(kinesis: Any) -> None:
    lines = [b'{"event":%d}' % i for i in range(3000)]
    batches = [outcomes(lines[first : first + 100], first=first) for first in range(0, len(lines), 100)]
    before = kinesis.report()["kinds"]
    with kinesis.faults(0.4):
        write(kinesis, *batches)
    after = kinesis.report()["kinds"]
    for kind in ("in part", "answer lost", "ProvisionedThroughputExceededException"):
        assert after[kind] > before.get(kind, 0), f"no fault of kind {kind!r}: the test has shown nothing"
    counted = collections.Counter(kinesis.stored_under())
    assert set(counted) == {(f"e{i}", line) for i, line in enumerate(lines)}
    # Of a call whose answer was lost nobody knows, so it is made again: at least once.
    assert max(counted.values()) > 1


def test_large_lines_go_in_calls_that_kinesis_takes_and_too_large_ones_are_left_out(kinesis: Any) -> None:
    fits = (1 << 20) - len("e0")
    lines = [bytes([65 + i]) * fits for i in range(8)] + [b"x" * (fits + 1), b"small"]
    write(kinesis, outcomes(lines))
    assert sorted(kinesis.stored()) == sorted([*lines[:8], b"small"])


def test_a_sink_has_no_start_and_must_be_there(kinesis: Any) -> None:
    base = f"?endpoint={kinesis.endpoint}&region=us-east-1"
    with pytest.raises(UsageError, match="has neither start nor end"):
        open_sink(f"kinesis://{kinesis.stream}{base}&start=latest")
    with pytest.raises(UsageError, match="there is no stream nothing-here"):
        open_sink(f"kinesis://nothing-here{base}")
    with pytest.raises(UsageError, match="--also: expected one of"):
        open_sink("sqlite:///events.db")
