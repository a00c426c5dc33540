"""The streaming job while its database is stopped and started again: nothing lost, memory bounded."""

import collections
import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from beamrec.io.ledger import Tally, account
from beamrec.io.store import LocalStore

if TYPE_CHECKING:
    from postgresql_fixtures import PostgreSQL

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
STOPS = ("kill", "fast") if SHORT else ("kill", "fast", "immediate") * 3 + ("kill",)
DOWN_SECONDS = 8 if SHORT else 30
STEADY_SECONDS = 3 if SHORT else 20
RATE = 50 if SHORT else 500
PADDING = 2_000  # bytes; what is not left in the source shows in the memory
# What the outages may add to the memory of a job that has warmed up, however long they are.
MORE_MEGABYTES = 250
WAIT_SECONDS = 900  # only a failure waits so long


@dataclasses.dataclass
class Serving:
    """The serving database of a job, with the release of the trained shop."""

    server: "PostgreSQL"
    uri: str

    def served_at(self) -> dict[str, tuple[str, float]]:
        """Customer → (id of the event, when its row was committed)."""
        rows = self.server.execute(
            "SELECT customer_id, event_id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) "
            "FROM beamrec.recommendations_latest",
            database="serving",
        )
        return {customer: (event, float(at)) for customer, event, at in rows}


@pytest.fixture
def serving(
    unsteady_postgresql: "PostgreSQL",
    trained: Any,
    command_line: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    source_password: str,
) -> Serving:
    """A database of the test's own on a server that may be stopped."""
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    name = unsteady_postgresql.create_database("serving")
    unsteady_postgresql.execute("CREATE EXTENSION vector", database=name)
    uri = unsteady_postgresql.uri(name)
    for verb in ("load", "promote"):
        done = command_line("release", verb, trained.release, f"--vector-db={uri}", home=trained.home)
        assert done["ok"], done
    return Serving(unsteady_postgresql, uri)


def check(job: Any, clicks: Any, serving: Serving) -> None:
    """Every event has one record, none is a dead letter, and each customer is served its newest event."""
    counted = collections.Counter(record["event_id"] for _, record in job.visible())
    assert counted == {f"e{event.number}": 1 for event in clicks.sent}
    assert job.errors() == []
    found = account(LocalStore(job.output))
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == len(clicks.sent)
    assert {customer: event for customer, (event, _) in serving.served_at().items()} == clicks.newest()


def wait_until_served(serving: Serving, clicks: Any, job: Any) -> float:
    """Until what is sent now is served; returns how long that took."""
    began = time.monotonic()
    wanted = len(clicks.sent) - 1
    customer = str(clicks.sent[wanted - 1 + wanted % 2].customer)  # one of its own
    while customer not in serving.served_at():
        assert job.running, job.log.read_text()[-3000:]
        assert time.monotonic() - began < WAIT_SECONDS, job.log.read_text()[-3000:]
        time.sleep(0.2)
    return time.monotonic() - began


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


def latencies(serving: Serving, clicks: Any) -> list[tuple[float, float]]:
    """(when an event was due, seconds until it was served) of the customers that came once."""
    served = serving.served_at()
    once = (event for event in clicks.sent if event.number % 2)
    return [(event.at, served[str(event.customer)][1] - event.at) for event in once]


def p99(points: list[tuple[float, float]], begin: float, end: float) -> float:
    """Of the latencies of events that were due between two times."""
    within = sorted(latency for at, latency in points if begin <= at < end)
    return within[int(0.99 * (len(within) - 1))] if within else float("nan")


def recovery(points: list[tuple[float, float]], back: float, end: float, usual: float) -> float:
    """Seconds after `back` from which on the p99 of each second is within three times the usual one."""
    slow = [s for s in range(int(end - back)) if p99(points, back + s, back + s + 1) > 3 * usual]
    return float(max(slow) + 1) if slow else 0.0


def test_the_database_goes_away_again_and_again(
    serving: Serving, stream_job: Callable[..., Any], stream_load: Callable[..., Any]
) -> None:
    job = stream_job(f"--vector-db={serving.uri}", "--window-seconds=2", "--max-delay=1").start()
    clicks = stream_load("clicks", job.input, RATE, PADDING)
    job.wait_for(1, WAIT_SECONDS)
    memory, tally = stream_load("memory", job.pid), Tally(LocalStore(job.output))
    outages: list[tuple[float, float]] = []
    wait_until_served(serving, clicks, job)
    steady = time.time()
    time.sleep(2 * STEADY_SECONDS)
    for how in STOPS:
        down = time.time()
        serving.server.stop(how)
        read = wait_while_nothing_is_read(tally, DOWN_SECONDS)
        assert len(clicks.sent) - read > RATE * DOWN_SECONDS / 2
        serving.server.start()
        outages.append((down, time.time()))
        wait_until_served(serving, clicks, job)
        time.sleep(STEADY_SECONDS)
    clicks.stop()
    wait_until_served(serving, clicks, job)
    assert job.interrupt()["ok"], job.log.read_text()[-3000:]
    memory.stop()
    check(job, clicks, serving)
    report(serving, clicks, memory, steady, outages)
    before = memory.peak(end=outages[0][0])
    assert memory.peak() < before + MORE_MEGABYTES


def report(serving: Serving, clicks: Any, memory: Any, steady: float, outages: list[Any]) -> None:
    """Prints the figures: they say how fast this machine is, and decide nothing."""
    points = latencies(serving, clicks)
    usual = p99(points, steady, outages[0][0])
    ends = [down for down, _ in outages[1:]] + [clicks.sent[-1].at]
    times = [recovery(points, back, end, usual) for (_, back), end in zip(outages, ends, strict=True)]
    print(
        f"{len(clicks.sent):,} events at {RATE}/s, {len(outages)} outages of {DOWN_SECONDS} s; p99 before "
        f"{1000 * usual:.0f} ms, after {[round(1000 * p99(points, e - STEADY_SECONDS, e)) for e in ends]} "
        f"ms; back to normal after {times} s; memory {memory.peak(end=outages[0][0]):.0f} MB before, "
        f"{memory.peak():.0f} MB at most"
    )
