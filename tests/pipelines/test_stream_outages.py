"""The streaming job while its database is stopped and started again: nothing lost, memory bounded."""

import collections
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from serving_fixtures import Serving

from beamrec.io.ledger import Tally, account
from beamrec.io.store import LocalStore

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
STOPS = ("kill", "fast") if SHORT else ("kill", "fast", "immediate") * 3 + ("kill",)
DOWN_SECONDS = 8 if SHORT else 30
STEADY_SECONDS = 3 if SHORT else 20
RATE = 50 if SHORT else 500
PADDING = 2_000  # bytes; what is not left in the source shows in the memory
# What outages may add to the memory of a job that has warmed up, however long they are: 256 MiB of payload
# may be on its way, here and in Prism. And what later outages may add to the earlier ones: nothing but noise.
MORE_MEGABYTES, LATER_MEGABYTES = 600, 150
WAIT_SECONDS = 900  # only a failure waits so long


def check(job: Any, clicks: Any, serving: Serving) -> None:
    """Every event has one record, none is a dead letter, and each customer is served its newest event."""
    counted = collections.Counter(record["event_id"] for _, record in job.visible())
    assert counted == {f"e{event.number}": 1 for event in clicks.sent}
    assert job.errors() == []
    found = account(LocalStore(job.output))
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == len(clicks.sent)
    assert {customer: event for customer, (event, _) in serving.served_at().items()} == clicks.newest()


def wait_while_nothing_is_read(tally: Tally, seconds: float) -> int:
    """What cannot be served stays in the source: returns how many events were read for so long."""
    changes, read, since = 0, tally.update().records_in, time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.2)
        now = tally.update().records_in
        if now != read:
            # What a reader had begun with, it puts into the ledger and keeps.
            changes, read, since = changes + 1, now, time.monotonic()
            assert changes <= 3, "the job reads on without its database"
    return read


def latencies(serving: Serving, clicks: Any) -> npt.NDArray[np.float64]:
    """[number of customers that came once, 2]: when an event was due, seconds until it was served."""
    served = serving.served_at()
    once = (event for event in clicks.sent if event.number % 2)
    return np.array([(event.at, served[str(event.customer)][1] - event.at) for event in once])


def p99(points: npt.NDArray[np.float64], begin: float, end: float) -> float:
    """Of the latencies of events that were due between two times."""
    first, last = np.searchsorted(points[:, 0], (begin, end))
    return float(np.percentile(points[first:last, 1], 99)) if last > first else float("nan")


def recovery(points: npt.NDArray[np.float64], back: float, end: float, usual: float) -> float:
    """Seconds after `back` from which on the p99 of each second is within three times the usual one."""
    slow = [s for s in range(int(end - back)) if p99(points, back + s, back + s + 1) > 3 * usual]
    return float(max(slow) + 1) if slow else 0.0


def test_the_database_goes_away_again_and_again(
    serving_database: Serving, stream_job: Callable[..., Any], stream_load: Callable[..., Any]
) -> None:
    serving = serving_database
    job = stream_job(f"--vector-db={serving.uri}", "--window-seconds=2", "--max-delay=1").start()
    clicks = stream_load("clicks", job.input, RATE, PADDING)
    job.wait_for(1, WAIT_SECONDS)
    memory, tally = stream_load("memory", job.pid), Tally(LocalStore(job.output))
    outages: list[tuple[float, float]] = []
    serving.wait_until_served(clicks, job, WAIT_SECONDS)
    steady = time.time()
    time.sleep(2 * STEADY_SECONDS)
    for how in STOPS:
        down = time.time()
        serving.server.stop(how)
        read = wait_while_nothing_is_read(tally, DOWN_SECONDS)
        assert len(clicks.sent) - read > RATE * DOWN_SECONDS / 2
        serving.server.start()
        outages.append((down, time.time()))
        serving.wait_until_served(clicks, job, WAIT_SECONDS)
        time.sleep(STEADY_SECONDS)
    clicks.stop()
    serving.wait_until_served(clicks, job, WAIT_SECONDS)
    deadline = time.monotonic() + WAIT_SECONDS
    while tally.update().records_in < len(clicks.sent):  # a drain reads no new file
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.2)
    assert job.interrupt()["ok"], job.log.read_text()[-3000:]
    memory.stop()
    check(job, clicks, serving)
    report(serving, clicks, memory, steady, outages)
    assert memory.peak() < memory.peak(end=outages[0][0]) + MORE_MEGABYTES
    half = outages[len(outages) // 2][0]
    assert memory.peak(begin=half) < memory.peak(end=half) + LATER_MEGABYTES


def report(serving: Serving, clicks: Any, memory: Any, steady: float, outages: list[Any]) -> None:
    """Prints the figures: they say how fast this machine is, and decide nothing."""
    points = latencies(serving, clicks)
    usual = p99(points, steady, outages[0][0])
    ends = [down for down, _ in outages[1:]] + [clicks.sent[-1].at]
    times = [recovery(points, back, end, usual) for (_, back), end in zip(outages, ends, strict=True)]
    load, peaks = (
        os.getloadavg(),
        [memory.peak(down, end) for (down, _), end in zip(outages, ends, strict=True)],
    )
    print(
        f"{len(clicks.sent):,} events at {RATE}/s, {len(outages)} outages of {DOWN_SECONDS} s; p99 before "
        f"{1000 * usual:.0f} ms, after {[round(1000 * p99(points, e - STEADY_SECONDS, e)) for e in ends]} "
        f"ms; back to normal after {times} s; memory {memory.peak(end=outages[0][0]):.0f} MB before, then "
        f"{[round(peak) for peak in peaks]} MB at most; load of the machine {load}"
    )
