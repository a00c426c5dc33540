"""Load for a streaming job, what watches it, and a disk that is full when it is told to."""

import dataclasses
import datetime as dt
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

_REGULARS = tuple(range(9_000_000, 9_000_020))
_FIRST_STRANGER = 1_000_000
_LINES_A_FILE = 500


@dataclasses.dataclass(frozen=True)
class Sent:
    """An event as it was sent: when, by the plan and not by the clock, and of whom."""

    number: int
    at: float
    customer: int


class Clicks(threading.Thread):
    """Appends events at a steady rate, whatever becomes of them, until told to stop.

    Every other event is of a customer of its own, so that the serving table shows when that event was
    served; the others are of a few regulars.

    Attributes:
      sent: what was sent, in the order of event time.
    """

    def __init__(self, folder: Path, rate: float, padding: int = 0) -> None:
        super().__init__(name="clicks", daemon=True)
        self._folder, self._rate, self._padding = folder, rate, "x" * padding
        self._random, self._stopped = random.Random(5), threading.Event()
        self.sent: list[Sent] = []

    def run(self) -> None:
        began = time.time()
        while not self._stopped.wait(0.02):
            due = int((time.time() - began) * self._rate)
            while len(self.sent) < due:
                first = len(self.sent)
                last = min(due, (first // _LINES_A_FILE + 1) * _LINES_A_FILE)
                events = [self._event(n, began + n / self._rate) for n in range(first, last)]
                with open(self._folder / f"events-{first // _LINES_A_FILE}.jsonl", "ab") as file:
                    file.write(b"".join(map(self._line, events)))
                self.sent += events

    def _event(self, number: int, at: float) -> Sent:
        customer = _FIRST_STRANGER + number if number % 2 else self._random.choice(_REGULARS)
        return Sent(number, at, customer)

    def _line(self, event: Sent) -> bytes:
        record = {
            "event_id": f"e{event.number}",
            "session_id": f"s{event.number}",
            "customer_number": event.customer,
            "event_time": dt.datetime.fromtimestamp(event.at, dt.UTC).isoformat(),
            "browse_history": [],
            "note": self._padding,
        }
        return json.dumps(record).encode() + b"\n"

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def newest(self) -> dict[str, str]:
        """Customer → id of its last event: what a serving table must hold in the end."""
        return {str(event.customer): f"e{event.number}" for event in self.sent}


class Memory(threading.Thread):
    """Resident memory of a process and all below it, twice a second.

    Attributes:
      megabytes: (time, sum over the processes), oldest first.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(name="memory", daemon=True)
        self._process, self._stopped = psutil.Process(pid), threading.Event()
        self.megabytes: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            self.megabytes.append((time.time(), self._now()))

    def _now(self) -> float:
        total = 0
        try:
            for process in (self._process, *self._process.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            pass
        return total / 2**20

    def peak(self, begin: float = 0, end: float = 1e12) -> float:
        """The most between two times."""
        return max((size for at, size in self.megabytes if begin <= at <= end), default=0.0)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


class Reader(threading.Thread):
    """Lists a folder again and again; a file that was seen must be whole, and stay as it was.

    Attributes:
      seen: path → its bytes when it was first seen.
      faults: what was wrong, in words.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(name="reader", daemon=True)
        self._root, self._stopped = root, threading.Event()
        self.seen: dict[Path, bytes] = {}
        self.faults: list[str] = []

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            for folder in ("recommendations", "errors"):
                for path in (self._root / folder).rglob("*"):
                    if path not in self.seen and path.is_file():
                        self._meet(path)

    def _meet(self, path: Path) -> None:
        data = self.seen[path] = path.read_bytes()
        try:
            whole = data.endswith(b"\n") and all(json.loads(line) for line in data.splitlines())
        except ValueError:
            whole = False
        if not whole:
            self.faults.append(f"{path} is not whole")

    def stop(self) -> None:
        """Ends the reading, and looks whether every file is still what it was."""
        self._stopped.set()
        self.join()
        for path, data in self.seen.items():
            if not path.is_file() or path.read_bytes() != data:
                self.faults.append(f"{path} has changed")


@dataclasses.dataclass(frozen=True)
class SmallDisk:
    """A file system of a few megabytes, mounted at a folder."""

    folder: Path

    def fill(self) -> None:
        """Takes all room that is left; what others free meanwhile is taken too."""
        with open(self._ballast, "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        """Gives that room back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.folder / ".ballast"


@pytest.fixture
def small_disk() -> Iterator[Callable[..., SmallDisk]]:
    """`small_disk(folder, megabytes)`: mounted there; the test is skipped, saying so, if that may not be.

    The folder belongs to whom the folder `like` belongs to.
    """
    mounted: list[Path] = []

    def make(folder: Path, megabytes: int, like: Path | None = None) -> SmallDisk:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "beamrec-test", str(folder)]
        if not shutil.which("mount"):
            pytest.skip("a full disk needs a file system of its own: there is no mount")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a full disk needs a file system of its own: {done.stderr}")
        mounted.append(folder)
        owner = (like or folder.parent).stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        return SmallDisk(folder)

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def stream_load() -> Iterator[Callable[..., Any]]:
    """`stream_load(kind, …)`: a started `clicks`, `memory` or `reader`; all are stopped with the test."""
    kinds = {"clicks": Clicks, "memory": Memory, "reader": Reader}
    begun: list[Any] = []

    def begin(kind: str, *arguments: Any) -> Any:
        begun.append(kinds[kind](*arguments))
        begun[-1].start()
        return begun[-1]

    yield begin
    for thread in begun:
        thread.stop()
