"""The streaming job on an output that fails: nothing lost, nothing half, and readers see whole files."""

import collections
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from beamrec.io.ledger import Tally, account, missing_segments
from beamrec.io.store import LocalStore, Store

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RATE = 50
FAILING_SECONDS = 10 if SHORT else 120
KILLS = 1 if SHORT else 5
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
