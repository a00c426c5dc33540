"""Windows: pieces lie in one window, late rows keep their hour, nothing is lost."""

import math
from datetime import UTC, datetime, timedelta

import apache_beam as beam
import pyarrow as pa
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import event_schema
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.windows import SplitWindows, WindowBatches, split_windows

ARRIVAL = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC)


def events(*ages_seconds: float) -> pa.RecordBatch:
    """Events that arrived at ARRIVAL and happened that many seconds before."""
    rows = [
        {
            "source": "file:a",
            "after": i,
            "position": i + 1,
            "arrival": ARRIVAL,
            "payload": b"{}",
            "event_id": str(i),
            "event_time": ARRIVAL - timedelta(seconds=age),
            "fields": b"{}",
            "customerNumber": None,
            "city": None,
            "country": None,
            "creditLimit": None,
            "history": [],
        }
        for i, age in enumerate(ages_seconds)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=event_schema(CLASSICMODELS))


def test_rows_of_one_window_stay_together_and_carry_their_minimum_time():
    pieces, expired = split_windows(events(1, 5, 3), 60, 3600, 2)
    assert [(stamp, piece.num_rows) for stamp, piece in pieces] == [
        (int((ARRIVAL - timedelta(seconds=5)).timestamp() * 1e6), 3)
    ]
    assert expired.num_rows == 0


def test_a_late_row_goes_with_the_window_of_its_arrival_and_keeps_its_event_time():
    pieces, expired = split_windows(events(0, 1800), 60, 3600, 2)
    assert [piece.num_rows for _, piece in pieces] == [2]
    assert pieces[0][1].column("event_time")[1].as_py() == ARRIVAL - timedelta(seconds=1800)
    assert expired.num_rows == 0


def test_a_row_beyond_the_allowed_lateness_has_expired():
    pieces, expired = split_windows(events(0, 3600 + 91), 60, 3600, 2)
    assert [piece.num_rows for _, piece in pieces] == [1]
    assert expired.column("fate").to_pylist() == ["expired"]
    assert expired.column("folder").to_pylist() == ["errors/expired/year=2026/month=11/day=22/hour=12"]
    letter = DeadLetter.from_json(expired.column("line")[0].as_py())
    assert letter.error_message == (
        "event time 2026-11-22T10:58:59+00:00: its window ended at 2026-11-22T10:59:00+00:00, more than "
        "3600 s before it arrived at 2026-11-22T12:00:30+00:00"
    )


def test_the_very_end_of_the_allowed_lateness():
    # Its window ended at 10:59:00 + 0 s; the watermark stands at arrival less 2 s = 12:00:28.
    end = datetime(2026, 11, 22, 11, 0, tzinfo=UTC)
    age = (ARRIVAL - end).total_seconds() + 1
    for lateness, expected in ((3628, 1), (3629, 0)):
        _, expired = split_windows(events(age), 60, lateness, 2)
        assert expired.num_rows == expected


def test_with_no_bound_nothing_is_too_late():
    """A device whose clock began at 1970 when it was switched on, or before."""
    first = datetime(1904, 1, 1, tzinfo=UTC)
    ages = [(ARRIVAL - time).total_seconds() for time in (first, datetime(1970, 1, 1, tzinfo=UTC))]
    pieces, expired = split_windows(events(*ages, 0), 60, math.inf, 2)
    assert [(stamp, piece.num_rows) for stamp, piece in pieces] == [(int(ARRIVAL.timestamp() * 1e6), 3)]
    assert expired.num_rows == 0
    assert split_windows(events(*ages, 0), 60, 1e9, 2)[1].num_rows == 2


@settings(max_examples=200, deadline=None)
@given(
    ages=st.lists(st.floats(-300, 20_000), min_size=1, max_size=40),
    window=st.sampled_from([1, 10, 60, 3600]),
    lateness=st.floats(0, 7200),
    delay=st.floats(0, 100),
)
def test_every_row_is_in_exactly_one_piece_or_expired(ages, window, lateness, delay):
    batch = events(*ages)
    pieces, expired = split_windows(batch, window, lateness, delay)
    ids = [i for _, piece in pieces for i in piece.column("event_id").to_pylist()]
    assert sorted(ids + expired.column("event_id").to_pylist()) == sorted(
        batch.column("event_id").to_pylist()
    )
    watermark = (ARRIVAL.timestamp() - delay) * 1e6
    windows = [int(stamp) // (window * 1_000_000) for stamp, _ in pieces]
    assert len(set(windows)) == len(windows)
    # The runner never finds a piece late: its window ends after the watermark.
    assert all((w + 1) * window * 1_000_000 > watermark - 1 for w in windows)


def test_late_batches_fire_again_and_none_is_dropped():
    """With the watermark far past every window, GroupByKey must still let everything through."""
    stream = (
        TestStream()
        .advance_watermark_to(0)
        .add_elements([beam.window.TimestampedValue((0, "on time"), 10)])
        .advance_watermark_to(10_000_000)
        .add_elements([beam.window.TimestampedValue((0, "late"), 10)])
        .add_elements([beam.window.TimestampedValue((0, "ancient"), -10_000_000)])
        .advance_watermark_to_infinity()
    )
    with TestPipeline() as pipeline:
        groups = pipeline | stream | WindowBatches(60) | beam.GroupByKey()
        assert_that(
            groups | beam.FlatMapTuple(lambda _, values: values),
            equal_to(["on time", "late", "ancient"]),
        )


def test_split_windows_transform_has_an_events_and_an_expired_output():
    with TestPipeline() as pipeline:
        split = pipeline | beam.Create([events(0, 100_000)]) | SplitWindows(60, 3600, 2)
        assert_that(split.events | beam.Map(lambda b: b.num_rows), equal_to([1]), "events")
        assert_that(split.expired | beam.Map(lambda b: b.num_rows), equal_to([1]), "expired")
