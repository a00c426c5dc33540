"""Refused, dropped and slow calls, readers that overtake each other, streams that are not what they were."""

import dataclasses
from typing import Any

import pytest

from beamrec.io import kinesis_client
from beamrec.schemas.errors import BeamrecError, UnavailableError


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%06d" % i for i in range(first, last)]


def test_throttling_expired_iterators_and_lost_answers_are_waited_out(kinesis_job: Any) -> None:
    job, sent = kinesis_job, numbered(0, 1500)
    before = job.server.report()["kinds"]
    job.server.put(*sent[:500])
    with job.server.faults(0.4):
        job.start(splits=2)
        rows = job.read(500)
        for first in (500, 1000):
            job.server.put(*sent[first : first + 500])
            rows += job.read(500)
            job.fate(rows)
            job.start(splits=2)
            rows = []
        job.wait(
            lambda _: {"ExpiredIteratorException", "dropped"} <= _more(before, job.server.report()["kinds"])
        )
    job.fate(job.read(0, quiet_seconds=2))
    job.check(sent)


def _more(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Kinds of faults that came."""
    return {kind for kind, count in after.items() if count > before.get(kind, 0)}


def test_a_service_too_slow_for_large_answers_is_asked_for_small_ones(
    kinesis_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinesis_client, "_TIMEOUT_SECONDS", 1)
    job, sent = kinesis_job, numbered(0, 300)
    job.server.put(*sent)
    with job.server.slow(above=2000):
        job.start()
        job.fate(job.read(300))
    job.check(sent)


def test_an_outage_does_not_count_as_quiet(kinesis_job: Any) -> None:
    job, sent = kinesis_job, numbered(0, 200)
    job.start()
    (reader,) = job.readers
    job.wait(lambda _: not reader.busy(True))
    with job.server.faults(1.0):
        job.server.put(*sent)
        # Before it is known that nobody answers, it would be quiet time.
        assert job.wait(lambda _: reader.busy(True)) == []
        reader.options = dataclasses.replace(reader.options, stop_when_idle_seconds=2.0)
        assert job.read(0, quiet_seconds=4) == []
    rows = job.finish()
    assert sorted(row["payload"] for row in rows) == sent


def test_of_two_readers_of_the_same_shards_each_record_is_sealed_by_one(kinesis_job: Any) -> None:
    job, sent = kinesis_job, numbered(0, 900)
    job.start()
    slow = job.readers
    job.readers = []
    job.start()
    job.readers += slow  # a runner that has lost sight of a worker starts another
    rows = []
    for first in range(0, len(sent), 300):
        job.server.put(*sent[first : first + 300])
        rows += job.wait(lambda _, seen=first + 300: len(job.seen) == seen)
    job.fate(rows)
    job.check(sent)


def test_a_stream_that_was_made_anew_is_refused(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*numbered(0, 10))
    job.start()
    job.read(10)
    job.server.make_anew()
    job.start()
    with pytest.raises((BeamrecError, UnavailableError)):
        job.wait(lambda rows: rows)


def test_a_stream_that_is_gone_fails_the_job(kinesis_job: Any) -> None:
    job = kinesis_job
    job.start()
    job.read(0)
    job.server.client.delete_stream(StreamName=job.server.stream)
    with pytest.raises(UnavailableError, match="ResourceNotFoundException"):
        job.wait(lambda rows: rows)
