"""The streaming job on an output that fails: nothing lost, nothing half, and never a quiet gap."""

import collections
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.ledger import Tally, account, missing_segments
from beamrec.io.store import LocalStore, Store, open_store

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RATE = 50
FAILING_SECONDS = 10 if SHORT else 120
KILLS = 1 if SHORT else 5
EVENTS, NOTE = (4_000, 8_000) if SHORT else (30_000, 8_000)  # NOTE in bytes
WAIT_SECONDS = 900  # only a failure waits so long


class FullDisk(threading.Thread):
    """A disk that is full again and again, a third of the time."""

    def __init__(self, disk: Any) -> None:
        super().__init__(name="full disk", daemon=True)
        self._disk, self._random = disk, random.Random(3)
        self._stopped, self.full = threading.Event(), threading.Event()
        self.times = 0

    def run(self) -> None:
        while not self._stopped.is_set():
            self._disk.fill()
            self.times += 1
            self.full.set()
            self._stopped.wait(self._random.uniform(0.5, 2))
            self.full.clear()
            self._disk.empty()
            self._stopped.wait(self._random.uniform(1, 4))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def wait_until(condition: Callable[[], Any], job: Any) -> None:
    """Until something holds, while the job runs."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert job.running, job.log.read_text()[-3000:]
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.2)


def check(store: Store, clicks: Any, records: list[dict[str, Any]]) -> None:
    """Every event has one record, and the account says so too."""
    counted = collections.Counter(record["event_id"] for record in records)
    assert counted == {f"e{event.number}": 1 for event in clicks.sent}
    found = account(store)
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == len(clicks.sent)
    assert missing_segments(store) == []


def test_a_disk_that_is_full_again_and_again_and_kills_in_between(
    small_disk: Callable[..., Any],
    trained: Any,
    stream_job: Callable[..., Any],
    stream_load: Callable[..., Any],
) -> None:
    job = stream_job("--window-seconds=2", "--max-delay=0.5", "--shards=2")
    disk = FullDisk(small_disk(job.output, megabytes=64))
    job.start()
    clicks, reader = stream_load("clicks", job.input, RATE), stream_load("reader", job.output)
    job.wait_for(1, WAIT_SECONDS)
    tally = Tally(LocalStore(job.output))
    disk.start()
    try:
        for _ in range(KILLS):
            time.sleep(FAILING_SECONDS / KILLS)
            assert job.running, job.log.read_text()[-3000:]
            disk.full.wait(WAIT_SECONDS)
            job.kill()
            # Whatever ran into the full disk at its start is started again, as a user would.
            wait_until_started(job, tally)
    finally:
        disk.stop()
    clicks.stop()
    wait_until(lambda: tally.update().out == len(clicks.sent), job)
    assert job.interrupt()["ok"], job.log.read_text()[-3000:]
    reader.stop()
    assert disk.times > 2
    logs = [path.read_text() for path in (trained.home / "runs").glob("stream-*/log")]
    assert any("No space left" in log for log in logs), "the disk was never full: the test has shown nothing"
    check(LocalStore(job.output), clicks, [record for _, record in job.visible()])
    assert reader.faults == []
    assert len(reader.seen) > 5


def wait_until_started(job: Any, tally: Tally) -> None:
    """Starts a job until one of them has written something: on a full disk it may refuse to."""
    written, deadline = tally.update().out, time.monotonic() + WAIT_SECONDS
    job.start()
    while tally.update().out == written:
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        if not job.running:
            result = job.finish()
            assert result["exit_code"] == 4, result
            job.start()
        time.sleep(0.2)


def records_of(store: Store) -> list[dict[str, Any]]:
    """Every recommendation in an object store."""
    names = (name for name in store.sizes("recommendations") if name.endswith(".jsonl"))
    return [json.loads(line) for name in names for line in store.read(name).splitlines()]


def test_an_object_store_that_refuses_a_third_of_all_requests_and_then_all_of_them(
    s3: Any, stream_job: Callable[..., Any], stream_load: Callable[..., Any]
) -> None:
    store = open_store(s3.uri)
    job = stream_job(
        f"--output={s3.uri}", "--window-seconds=2", "--max-delay=0.5", "--shards=2", "--patience=5"
    )
    job.start()
    clicks, tally = stream_load("clicks", job.input, RATE), Tally(store)
    wait_until(lambda: tally.update().out, job)
    with s3.faults(0.3):
        time.sleep(FAILING_SECONDS)
        assert job.running, job.log.read_text()[-3000:]
    with s3.faults(1.0):
        result = job.finish(timeout=WAIT_SECONDS)
    assert (result["ok"], result["exit_code"]) == (False, 4), result
    assert s3.bucket in result["error"], result["error"]
    assert not account(store).reconciled, "what was read and not written shows as a gap"
    job.start()
    wait_until(lambda: tally.update().out >= len(clicks.sent) - 3 * RATE, job)
    clicks.stop()
    wait_until(lambda: tally.update().out == len(clicks.sent), job)
    assert job.interrupt()["ok"], job.log.read_text()[-3000:]
    check(store, clicks, records_of(store))


def test_what_a_slow_object_store_has_not_taken_yet_is_left_in_the_source(
    s3: Any, stream_job: Callable[..., Any], stream_load: Callable[..., Any]
) -> None:
    """Each window of a second takes longer than a second to write; the events of minutes lie there."""
    store, room = open_store(s3.uri), 4 << 20  # bytes
    job = stream_job(
        f"--output={s3.uri}", "--window-seconds=1", "--max-delay=0", "--shards=2", "--max-in-flight-mb=4"
    )
    write_backlog(job.input, EVENTS, NOTE)
    with s3.slow(0.2):
        job.start()
        memory, tally = stream_load("memory", job.pid), Tally(store)
        waiting, counts = [0], tally.update()
        while counts.out < EVENTS:
            assert job.running, job.log.read_text()[-3000:]
            waiting.append(counts.records_in - counts.out)
            time.sleep(0.5)
            counts = tally.update()
    assert job.interrupt()["ok"], job.log.read_text()[-3000:]
    print(f"{EVENTS} events of {NOTE} bytes: {max(waiting)} on their way, {memory.peak():.0f} MB at most")
    # What there is room for, what a reader takes at once (4 MiB) beyond it, and what it has just counted.
    assert max(waiting) < (room + 2 * (4 << 20)) / NOTE < EVENTS / 2
    records = records_of(store)
    assert sorted(record["event_id"] for record in records) == sorted(f"e{n}" for n in range(EVENTS))
    assert account(store).reconciled


def write_backlog(folder: Path, events: int, note: int) -> None:
    """Files of a hundred events, each a second older than the one after it."""
    for first in range(0, events, 100):
        lines = (
            json.dumps({"event_id": f"e{n}", "customer_number": n, "browse_history": [], "note": "x" * note})
            for n in range(first, first + 100)
        )
        path, age = folder / f"{first:06d}.jsonl", (events - first) / 100 + 60
        path.write_text("\n".join(lines) + "\n")
        os.utime(path, (time.time() - age, time.time() - age))
