"""A trained shop, once for all tests of the streaming pipeline, and the command line as a user types it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def beamrec(*argv: str, home: Path, timeout: float = 900) -> dict[str, Any]:
    """Runs `beamrec … --json`; returns its object."""
    command = [sys.executable, "-m", "beamrec.pipelines.cli", *argv, "--json", f"--home={home}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.stdout.strip(), done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] == (done.returncode == 0), done.stderr[-3000:]
    return result | {"exit_code": done.returncode, "stderr": done.stderr}


@pytest.fixture(scope="session")
def command_line() -> Callable[..., dict[str, Any]]:
    """`beamrec(*argv, home=…)`: the command line in a process of its own."""
    return beamrec


@dataclasses.dataclass(frozen=True)
class TrainedShop:
    """A home whose embedded server has an active release of a generated shop."""

    home: Path
    source: str
    release: str


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedShop]:
    """Generated shop → training files → release, loaded and promoted."""
    home = tmp_path_factory.mktemp("home")
    source = f"sqlite:///{home}/shop.db"
    for argv in (
        ("generate", "shop", f"--output={source}"),
        ("batch", f"--source={source}", f"--output={home}/lake"),
    ):
        result = beamrec(*argv, home=home)
        assert result["ok"], result
    release = train_and_promote(home, home / "lake")
    yield TrainedShop(home, source, release)
    beamrec("down", home=home)


def train_and_promote(home: Path, lake: Path) -> str:
    """Trains on a lake; returns the id of the release that is now active."""
    trained = beamrec("train", f"--data={lake}", home=home)
    assert trained["ok"], trained
    release: str = trained["release"]
    for verb in ("load", "promote"):
        result = beamrec("release", verb, release, home=home)
        assert result["ok"], result
    return release


@pytest.fixture
def stream_job(trained: TrainedShop, tmp_path: Path) -> Iterator[Callable[..., "StreamJob"]]:
    """`stream_job(*options)`: a job on `tmp_path/in` and `tmp_path/out`; killed at the end of the test."""
    jobs: list[StreamJob] = []

    def make(*options: str, home: Path = trained.home) -> StreamJob:
        jobs.append(StreamJob(home, tmp_path, *options))
        return jobs[-1]

    yield make
    for job in jobs:
        job.kill()


class StreamJob:
    """`beamrec stream` as a process group of its own, on one input and one output folder."""

    def __init__(self, home: Path, root: Path, *options: str) -> None:
        self.home = home
        self.input = root / "in"
        self.output = root / "out"
        self.input.mkdir(exist_ok=True)
        self.log = root / "log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> "StreamJob":
        """Starts the job."""
        # The job's own options come later and win: another input, say.
        places = (f"--input={self.input}", f"--output={self.output}")
        return self._launch("stream", *places, *self._options, *options)

    def start_replay(self, *options: str) -> "StreamJob":
        """Starts `beamrec replay --errors` on the output of the job, with its options."""
        return self._launch("replay", f"--errors={self.output}", *self._options, *options)

    def _launch(self, verb: str, *options: str) -> "StreamJob":
        command = [sys.executable, "-m", "beamrec.pipelines.cli", verb, "--json", f"--home={self.home}"]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        """Of the process that was started; what it started lies below it."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether that process lives."""
        assert self._process is not None
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to every process of the job."""
        if self._process is None or self._process.poll() is not None:
            return
        for pid in [self._process.pid, *descendants(self._process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def interrupt(self) -> dict[str, Any]:
        """Ctrl-C: SIGINT to the foreground process group; returns the object of the drained job."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)
        return self.finish()

    def finish(self, timeout: float = 900) -> dict[str, Any]:
        """Waits for the end; returns the `--json` object."""
        assert self._process is not None
        out, _ = self._process.communicate(timeout=timeout)
        assert out.strip(), self.log.read_text()[-3000:]
        return json.loads(out.splitlines()[-1]) | {"exit_code": self._process.returncode}

    def wait_for(self, rows: int, timeout: float = 900) -> None:
        """Waits until that many recommendations are visible."""
        deadline = time.monotonic() + timeout
        while len(self.visible()) < rows:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, (
                f"{len(self.visible())} of {rows} rows\n{self.log.read_text()[-3000:]}"
            )
            time.sleep(0.1)

    def visible(self) -> list[tuple[str, dict[str, Any]]]:
        """(hour folder, record) of every recommendation, as any reader of the folder sees them."""
        return self._lines("recommendations")

    def errors(self) -> list[dict[str, Any]]:
        """Every dead letter."""
        return [record for _, record in self._lines("errors")]

    def _lines(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        records = []
        for path in sorted((self.output / folder).rglob("*.jsonl")):
            data = path.read_bytes()
            assert data.endswith(b"\n"), f"{path} is not whole"
            hour = str(path.parent.relative_to(self.output / folder))
            records += [(hour, json.loads(line)) for line in data.splitlines()]
        return records


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in map(int, children) for p in (child, *descendants(child))]
