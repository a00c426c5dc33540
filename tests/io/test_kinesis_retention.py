"""A job that stood still for longer than the stream keeps its records: what is missing is said, once."""

from collections.abc import Callable
from typing import Any

import pytest

from beamrec.io.gaps import read_gaps
from beamrec.io.source_log import SourceLog


@pytest.fixture
def job(ageing_kinesis: Any, kinesis_jobs: Callable[[Any], Any]) -> Any:
    """On each server in turn, ten records read of the first shard, and none of the second."""
    made = kinesis_jobs(ageing_kinesis)
    made.server.put(*_records("read", 10), hash_key="1")
    made.start()
    rows = made.read(10)
    rows += made.wait(lambda _: len({part.source for part in SourceLog(made.store).read()}) == 2)
    made.fate(rows)
    made.stop()
    return made


def _records(name: str, count: int) -> list[bytes]:
    return [b"%s%d" % (name.encode(), number) for number in range(count)]


def _days_pass(server: Any) -> None:
    """Until the records are gone: not all servers remove them at once."""
    for _ in range(2):
        server.a_day_passes()


def _names(job: Any) -> list[str]:
    """The shards in the order of their making."""
    return [f"kinesis:{job.server.stream}/shardId-{number:012d}" for number in range(4)]


def test_records_that_expired_unread_are_a_gap_and_no_fault_of_the_account(
    job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job.server.put(*_records("lost", 5), hash_key="1")
    _days_pass(job.server)
    job.server.put(*_records("later", 3), hash_key="1")
    job.start()
    job.fate(job.read(3))
    job.wait(lambda _: len(read_gaps(job.store)) == 2)
    job.start()
    job.read(0)
    first, second = _names(job)[:2]
    assert [(gap.source, gap.after) for gap in read_gaps(job.store)] == [(first, 10), (second, 0)]
    assert caplog.text.count(f"{first}: records are missing after position 10") == 1
    job.check([*_records("read", 10), *_records("later", 3)])


def test_a_shard_that_has_nothing_any_more_is_a_gap_too(job: Any) -> None:
    job.server.put(*_records("lost", 5), hash_key="1")
    _days_pass(job.server)
    job.start()
    job.read(0)
    job.wait(lambda _: len(read_gaps(job.store)) == 2)
    assert [gap.after for gap in read_gaps(job.store)] == [10, 0]


def test_a_whole_shard_that_expired_before_its_end_was_read_is_a_gap(job: Any) -> None:
    job.server.put(*_records("lost", 5), hash_key="1")
    job.server.split(job.server.open_shards()[0])
    _days_pass(job.server)
    job.server.put(*_records("later", 3), hash_key="1")
    job.start()
    job.fate(job.read(3))
    assert (_names(job)[0], 10) in [(gap.source, gap.after) for gap in read_gaps(job.store)]
    if job.server.kind == "moto":
        assert _names(job)[0].partition("/")[2] not in [shard["ShardId"] for shard in job.server.shards()]
    job.check([*_records("read", 10), *_records("later", 3)])


def test_a_shard_that_was_read_to_its_end_may_expire(job: Any) -> None:
    job.server.split(job.server.open_shards()[0])
    job.start()
    job.read(0)
    job.wait(lambda _: {part.source for part in SourceLog(job.store).read()} == set(_names(job)))
    _days_pass(job.server)
    job.start()
    job.read(0, quiet_seconds=1)
    assert _names(job)[0] not in [gap.source for gap in read_gaps(job.store)]


def test_a_record_that_is_still_there_shows_that_nothing_is_missing(job: Any) -> None:
    if job.server.kind != "moto":
        pytest.skip("kinesalite removes a record as soon as it has expired")
    job.server.put(*_records("kept", 5), hash_key="1")
    job.server.a_day_passes()
    job.start()
    job.fate(job.read(5))
    assert _names(job)[0] not in [gap.source for gap in read_gaps(job.store)]
    job.check([*_records("read", 10), *_records("kept", 5)])


def test_a_stop_within_the_retention_is_no_gap(job: Any) -> None:
    job.server.put(*_records("more", 5), hash_key="1")
    job.start()
    job.fate(job.read(5))
    assert read_gaps(job.store) == []


def test_without_the_right_to_know_the_retention_the_job_goes_on(
    kinesis_job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = kinesis_job
    job.server.put(*_records("read", 10))
    job.start()
    job.fate(job.read(10))
    job.server.put(*_records("more", 5))
    with job.server.denied("DescribeStreamSummary"):
        job.start()
        job.fate(job.read(5))
    assert "without the right kinesis:DescribeStreamSummary" in caplog.text
    job.check([*_records("read", 10), *_records("more", 5)])


def test_an_idle_shard_is_noted_as_read_once_an_hour(kinesis_job: Any) -> None:
    kinesis_job.start()
    kinesis_job.wait(lambda _: len(SourceLog(kinesis_job.store).read()) >= 2)
    kinesis_job.start()
    kinesis_job.read(0, quiet_seconds=1)
    parts = SourceLog(kinesis_job.store).read()
    assert [(part.position, part.records) for part in parts] == [(0, 0), (0, 0)]
