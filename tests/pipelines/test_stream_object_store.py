"""The streaming job on an object store that refuses, is slow or is away: nothing lost, nothing half."""

import collections
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from object_store_fixtures import ObjectReader, Objects

from beamrec.io.ledger import Tally, account, missing_segments

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RATE = 20
SECONDS = 8 if SHORT else 60
# A commit is a dozen requests, each with its pauses where a third is refused.
OPTIONS = ("--window-seconds=10", "--max-delay=0.5", "--shards=2")
# What a slow store may add to the memory of a job that has warmed up, however long it is slow.
MORE_MEGABYTES = 250
WAIT_SECONDS = 900  # only a failure waits so long


@pytest.fixture
def reader(s3_output: Objects) -> Iterator[ObjectReader]:
    """Looks at the bucket all the time."""
    thread = ObjectReader(s3_output)
    thread.start()
    yield thread
    thread.stop()


def wait_until(condition: Callable[[], Any], job: Any) -> None:
    """Until something holds, while the job runs."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert job.running, job.log.read_text()[-3000:]
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.5)


def check(output: Objects, sent: int) -> None:
    """Every event has one visible record, and the account says so too."""
    counted = collections.Counter(record["event_id"] for _, record in output.records())
    assert counted == {f"e{number}": 1 for number in range(sent)}
    assert output.sizes("errors") == {}
    found = account(output.store)
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == sent
    assert missing_segments(output.store) == []


def test_a_bucket_that_refuses_almost_every_third_request_and_a_kill(
    s3: Any,
    s3_output: Objects,
    reader: ObjectReader,
    stream_job: Callable[..., Any],
    stream_load: Callable[..., Any],
) -> None:
    job = stream_job(*OPTIONS, f"--output={s3_output.uri}")
    tally = Tally(s3_output.store)
    with s3.faults(0.3):
        clicks = stream_load("clicks", job.start().input, RATE)
        wait_until(lambda: tally.update().out, job)
        time.sleep(SECONDS / 2)
        job.kill()
        written = tally.update().out
        job.start()
        wait_until(lambda: tally.update().out > written, job)
        time.sleep(SECONDS / 2)
        clicks.stop()
        wait_until(lambda: tally.update().out == len(clicks.sent), job)
        result = job.interrupt()
    assert result["ok"], result
    reader.stop()
    check(s3_output, len(clicks.sent))
    assert reader.faults == []
    assert len(reader.seen) > 2
    assert reader.looks > 2


def test_a_bucket_that_refuses_all_ends_the_job_loudly_and_loses_nothing(
    s3: Any,
    s3_output: Objects,
    reader: ObjectReader,
    stream_job: Callable[..., Any],
    stream_load: Callable[..., Any],
) -> None:
    job = stream_job(*OPTIONS, f"--output={s3_output.uri}", "--patience=5")
    tally = Tally(s3_output.store)
    clicks = stream_load("clicks", job.start().input, RATE)
    wait_until(lambda: tally.update().out, job)
    with s3.faults(1.0):
        began = time.monotonic()
        result = job.finish(WAIT_SECONDS)
        print(f"the job failed {time.monotonic() - began:.0f} s after the bucket did: {result['error']}")
    assert (result["ok"], result["exit_code"]) == (False, 4), result
    assert s3_output.uri.partition("?")[0] in result["error"]
    assert re.search("SlowDown|503", result["error"])
    clicks.stop()
    assert tally.update().out < len(clicks.sent)
    result = job.start("--stop-when-idle=3").finish(WAIT_SECONDS)
    assert result["ok"], result
    reader.stop()
    check(s3_output, len(clicks.sent))
    assert reader.faults == []


def test_a_slow_bucket_delays_and_does_not_pile_up(
    s3: Any, s3_output: Objects, stream_job: Callable[..., Any], stream_load: Callable[..., Any]
) -> None:
    job = stream_job(*OPTIONS, f"--output={s3_output.uri}")
    tally = Tally(s3_output.store)
    with s3.slow(0.3):
        clicks = stream_load("clicks", job.start().input, RATE)
        wait_until(lambda: tally.update().out, job)
        memory = stream_load("memory", job.pid)
        time.sleep(5)
        warm, behind = time.time(), [len(clicks.sent) - tally.update().out]
        while time.time() < warm + 2 * SECONDS:
            time.sleep(1)
            behind.append(len(clicks.sent) - tally.update().out)
        clicks.stop()
        wait_until(lambda: tally.update().out == len(clicks.sent), job)
        memory.stop()
        result = job.interrupt()
    assert result["ok"], result
    check(s3_output, len(clicks.sent))
    middle = len(behind) // 2
    print(
        f"{RATE} events/s and 300 ms a request: {max(behind[:middle])} events without a fate at most in the "
        f"first half, {max(behind[middle:])} in the second; {memory.peak():.0f} MB at most"
    )
    assert memory.peak() < memory.peak(end=warm) + MORE_MEGABYTES


def put_events(folder: Path, begin: datetime, first: int, last: int) -> None:
    """A file for each minute of a past night, with ten events of that minute."""
    for minute in range(first, last):
        at = begin + timedelta(minutes=minute)
        events = [
            {
                "event_id": f"e{10 * minute + number}",
                "customer_number": 103,
                "event_time": (at + timedelta(seconds=6 * number)).isoformat(),
                "browse_history": [],
            }
            for number in range(10)
        ]
        partial = folder / f"{minute:04}.tmp"
        partial.write_text("".join(json.dumps(event) + "\n" for event in events))
        # The last of them arrives as it happens: none is late, and none ahead of its time.
        arrival = (at + timedelta(seconds=54)).timestamp()
        os.utime(partial, (arrival, arrival))
        partial.rename(folder / f"{minute:04}.jsonl")


def test_closed_hours_of_a_killed_job_are_compacted(
    object_output: Objects,
    trained: Any,
    command_line: Callable[..., dict[str, Any]],
    stream_job: Callable[..., Any],
) -> None:
    begin = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=9)
    job = stream_job("--window-seconds=300", "--max-delay=1", "--shards=2", f"--output={object_output.uri}")
    tally = Tally(object_output.store)
    put_events(job.input, begin, 0, 20)
    job.start()
    wait_until(lambda: tally.update().out, job)
    put_events(job.input, begin, 20, 60)
    time.sleep(1)
    job.kill()
    result = job.start("--stop-when-idle=3").finish(WAIT_SECONDS)
    assert result["ok"], result
    check(object_output, 600)
    before = {path: object_output.read(path) for path in object_output.sizes("recommendations")}
    hours = {hour: sorted(events) for hour, events in by_hour(object_output, "recommendations").items()}
    assert sorted(len(events) for events in hours.values()) == [300, 300]

    def compact(which: str) -> dict[str, Any]:
        done = command_line("compact", f"--output={object_output.uri}", which, home=trained.home)
        assert done["ok"], done
        return done

    assert compact(f"--hour={begin:%Y-%m-%dT%H}")["rows"] == 300
    first = next(iter(hours))
    assert by_hour(object_output, "compacted/recommendations") == {first: hours[first]}
    assert compact("--closed")["rows_added"] == 300
    assert by_hour(object_output, "compacted/recommendations") == hours
    assert len(object_output.sizes("compacted")) == 2
    assert {path: object_output.read(path) for path in object_output.sizes("recommendations")} == before
    check(object_output, 600)


def by_hour(output: Objects, folder: str) -> dict[str, list[str]]:
    """Hour folder → ids of its events, sorted, each as often as it is there."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for hour, record in output.records(folder):
        found[hour].append(record["event_id"])
    return {hour: sorted(events) for hour, events in sorted(found.items())}
