"""The whole streaming job on Prism, killed, drained and started again: nothing lost, nothing twice."""

import collections
import datetime as dt
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from beamrec.io.ledger import account, missing_segments
from beamrec.io.store import LocalStore

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
KILLS = 2 if SHORT else 10
DRAINS = 1 if SHORT else 5


class Producer(threading.Thread):
    """Appends events at a steady rate to a few files, one in ten of them late, until told to stop."""

    def __init__(self, folder: Path, event_time: bool, seed: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._event_time, self._random = folder, event_time, random.Random(seed)
        self._stopped = threading.Event()
        self.sent: dict[str, str | None] = {}

    def run(self) -> None:
        while not self._stopped.is_set():
            with open(self._folder / f"events-{len(self.sent) // 400}.jsonl", "ab") as file:
                for _ in range(20):
                    file.write(self._line())
                    self._stopped.wait(0.002)
            self._stopped.wait(0.1)

    def _line(self) -> bytes:
        number, hour = len(self.sent), None
        event = {
            "session_id": f"s{number}",
            "customer_number": self._random.choice([103, 112, 999_999]),
            "city": "Nantes",
            "country": "France",
            "credit_limit": 21000,
            "browse_history": [],
        }
        if self._event_time:
            late = self._random.uniform(60, 3000) if self._random.random() < 0.1 else 0
            time_ = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=late)
            event |= {"event_id": f"e{number}", "event_time": time_.isoformat()}
            hour = f"year={time_:%Y}/month={time_:%m}/day={time_:%d}/hour={time_:%H}"
        self.sent[event["session_id"]] = hour
        return json.dumps(event).encode() + b"\n"

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def check(job: Any, sent: dict[str, str | None]) -> None:
    """Every event has one record in its hour, and the account says so too."""
    rows = job.visible()
    counted = collections.Counter(record["session_id"] for _, record in rows)
    assert [s for s in sent if s not in counted] == []
    assert [s for s, times in counted.items() if times != 1] == []
    assert [s for hour, record in rows if sent[s := record["session_id"]] not in (None, hour)] == []
    store = LocalStore(job.output)
    found = account(store)
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == len(sent)
    assert missing_segments(store) == []


def hours(job: Any) -> dict[str, str]:
    """Where each visible record lies."""
    return {record["session_id"]: hour for hour, record in job.visible()}


@pytest.mark.parametrize("event_time", [True, False], ids=["event-time", "arrival-time"])
def test_killed_at_random_moments(stream_job: Callable[..., Any], event_time: bool) -> None:
    job = stream_job("--window-seconds=2", "--max-delay=1")
    draw = random.Random(7)
    producer = Producer(job.input, event_time, seed=1)
    producer.start()
    placed: dict[str, str] = {}
    for kill in range(KILLS):
        job.start()
        if kill % 2:
            time.sleep(draw.uniform(1, 15))
        else:
            job.wait_for(len(placed) + 1)
            time.sleep(draw.uniform(0, 4))
        job.kill()
        now = hours(job)
        assert placed.items() <= now.items(), "a visible record moved or went away"
        placed = now
    producer.stop()
    result = job.start("--stop-when-idle=4").finish()
    assert result["ok"], result
    assert placed.items() <= hours(job).items()
    check(job, producer.sent)


def test_clean_drains_and_restarts(stream_job: Callable[..., Any]) -> None:
    job = stream_job("--window-seconds=10", "--max-delay=1")
    producer = Producer(job.input, event_time=True, seed=2)
    producer.start()
    for _ in range(DRAINS):
        job.start()
        job.wait_for(len(job.visible()) + 1)
        result = job.interrupt()
        assert result["ok"], result
        found = account(LocalStore(job.output))
        assert found.reconciled, f"a drain leaves nothing half done: {found}"
    producer.stop()
    assert job.start("--stop-when-idle=4").finish()["ok"]
    check(job, producer.sent)


def test_a_runner_that_ends_by_itself_is_started_again(stream_job: Callable[..., Any]) -> None:
    job = stream_job("--window-seconds=2", "--max-delay=1").start()
    producer = Producer(job.input, event_time=True, seed=4)
    producer.start()
    job.wait_for(1)
    (prism,) = [child for child in psutil.Process(job.pid).children() if "prism" in child.name()]
    prism.kill()
    job.wait_for(len(producer.sent))
    producer.stop()
    assert job.interrupt()["ok"]
    check(job, producer.sent)


def test_a_second_job_on_the_same_output_is_refused(stream_job: Callable[..., Any]) -> None:
    first = stream_job("--window-seconds=2", "--max-delay=1").start()
    producer = Producer(first.input, event_time=True, seed=3)
    producer.start()
    first.wait_for(1)
    second = stream_job("--window-seconds=2").start().finish()
    assert second["exit_code"] == 2
    assert "is writing to this output folder" in second["error"]
    producer.stop()
    first.wait_for(len(producer.sent))
    assert first.interrupt()["ok"]
    check(first, producer.sent)
