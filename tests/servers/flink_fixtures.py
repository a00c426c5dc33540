"""A Flink cluster of processes of this machine, what kills its parts, and streaming jobs on it."""

import collections
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from beamrec.io.ledger import account, missing_segments
from beamrec.io.store import LocalStore
from beamrec.runners.flink_cluster import Cluster, flink_down, flink_up, restart
from beamrec.runners.flink_jobs import FlinkJobs
from beamrec.schemas.errors import UnavailableError

# What was on its way before a kill may still become visible: no sign of a recovery.
_ON_THEIR_WAY_SECONDS = 3.0
_WAIT_SECONDS = 900.0


class LocalFlink:
    """A running cluster.

    Attributes:
      folder: of everything that it keeps.
      jobs: what its JobManager says and does.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.folder = cluster, cluster.folder
        self.jobs = FlinkJobs(cluster.dashboard)

    def flags(self, parallelism: int = 2) -> list[str]:
        """Of a job that runs on it."""
        return [
            "--runner=flink",
            f"--job_endpoint={self.cluster.job_endpoint}",
            f"--flink_master={self.cluster.master}",
            "--environment_type=EXTERNAL",
            f"--environment_config={self.cluster.pool}",
            f"--parallelism={parallelism}",
        ]

    def workers(self) -> list[psutil.Process]:
        """The Python workers; their working folders are the cluster's."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if "sdk_worker_main" in command and Path(process.cwd()).is_relative_to(self.folder):
                    found.append(process)
        return found

    def kill(self, name: str, draw: random.Random) -> "Recovering":
        """SIGKILL to a part, or to one of the Python workers for `worker`; somebody starts a part again."""
        if name == "worker":
            draw.choice(sorted(self.workers(), key=lambda process: process.pid)).kill()
            return Recovering(name, None)
        os.killpg(self.cluster.pids[name], signal.SIGKILL)
        supervisor = threading.Thread(target=self._restart, args=(name,), daemon=True)
        supervisor.start()
        return Recovering(name, supervisor)

    def _restart(self, name: str) -> None:
        self.cluster = restart(self.folder, name)

    def only_job(self) -> str:
        """Id of the job that runs, when it does."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(running := self.jobs.running()) != 1:
            assert time.monotonic() < deadline, f"jobs that run: {running}"
            time.sleep(0.2)
        return running[0]

    def end_jobs(self) -> None:
        """Cancels what runs."""
        for job in self.jobs.running():
            self.jobs.cancel(job)


class Recovering:
    """A kill, and how long until a job went on.

    Attributes:
      seconds: from the kill until the next record became visible, those of the first three seconds left out.
    """

    def __init__(self, name: str, supervisor: threading.Thread | None) -> None:
        self.name, self.began, self.seconds = name, time.monotonic(), 0.0
        self._supervisor = supervisor

    def wait(self, job: Any) -> "Recovering":
        """Until then, and until what was killed runs again."""
        time.sleep(_ON_THEIR_WAY_SECONDS)
        wait_for_rows(job, visible(job) + 1)
        self.seconds = round(time.monotonic() - self.began, 1)
        if self._supervisor:
            self._supervisor.join()
        return self


class EventProducer(threading.Thread):
    """Appends numbered events to files of a folder, forty a second, until told to stop.

    Attributes:
      sent: how many were.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        super().__init__(daemon=True)
        self._folder, self._first, self.sent = folder, first, 0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            number = self._first + self.sent
            with open(self._folder / f"events-{number // 2000}.jsonl", "ab") as file:
                file.write(b"".join(map(self._line, range(number, number + 20))))
            self.sent += 20
            self._stopped.wait(0.5)

    def _line(self, number: int) -> bytes:
        customer = (103, 112, 999_999)[number % 3]
        event = {"session_id": f"s{number}", "event_id": f"e{number}", "customer_number": customer}
        return json.dumps(event | {"browse_history": []}).encode() + b"\n"

    def stop(self) -> None:
        """Returns when the last event is written."""
        self._stopped.set()
        self.join()


def check_account(job: Any, sent: int) -> None:
    """Events 0 to `sent` are visible once each, and the ledger says so too."""
    counted = collections.Counter(record["event_id"] for _, record in job.visible())
    wanted = {f"e{number}" for number in range(sent)}
    assert counted.keys() == wanted, f"{len(wanted - counted.keys())} lost"
    assert set(counted.values()) == {1}, "visible twice"
    found = account(LocalStore(job.output))
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == sent
    assert missing_segments(LocalStore(job.output)) == []


def visible(job: Any) -> int:
    """How many records a job's output folder shows, by its ledger."""
    return account(LocalStore(job.output)).counts.out


def wait_for_rows(job: Any, rows: int) -> None:
    """Until that many are visible."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while visible(job) < rows:
        assert job.running, job.log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"{visible(job)} of {rows}: {job.log.read_text()[-3000:]}"
        time.sleep(0.5)


@pytest.fixture(scope="session")
def flink_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFlink]:
    """JobManager, two TaskManagers, job server and worker pool."""
    folder = tmp_path_factory.mktemp("flink-session")
    # Workers inherit the pool's environment: what the Kinesis servers of the tests take.
    secrets = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in secrets.items():
            patch.setenv(name, value)
        try:
            cluster = flink_up(folder)
        except UnavailableError as error:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
        try:
            yield LocalFlink(cluster)
        finally:
            flink_down(folder)


@pytest.fixture
def flink(flink_session: LocalFlink) -> Iterator[LocalFlink]:
    """The cluster of the session; its jobs end with the test."""
    yield flink_session
    flink_session.end_jobs()


@pytest.fixture
def flink_job(flink: LocalFlink, stream_job: Callable[..., Any]) -> Callable[..., Any]:
    """`flink_job(*options)`: `stream_job` on the cluster, with two splits and windows of two seconds."""

    def make(*options: str, parallelism: int = 2) -> Any:
        short = ("--splits=2", "--window-seconds=2", "--max-delay=1")
        return stream_job(*flink.flags(parallelism), *short, *options)

    return make


@pytest.fixture
def event_producer() -> Iterator[Callable[..., EventProducer]]:
    """`event_producer(folder)`: events that go on into a folder until it is stopped."""
    started: list[EventProducer] = []

    def start(folder: Path, first: int = 0) -> EventProducer:
        started.append(EventProducer(folder, first))
        started[-1].start()
        return started[-1]

    yield start
    for producer in started:
        producer.stop()
