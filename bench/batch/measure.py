"""A whole process, start-up included: its time, and the memory and CPU time of all that it starts."""

import dataclasses
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["FailedError", "Measurement", "measure"]

_SAMPLE_SECONDS = 0.05
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LOG_TAIL = 3_000


class FailedError(Exception):
    """A process ended with another code than 0; the message has the end of its log."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one process cost.

    Attributes:
      seconds: from its start to its end, by the wall clock.
      peak_bytes: the most that its tree of processes held at one time, resident; pages that two of them
        share count twice. Sampled 20 times a second, and never less than the kernel's own high-water mark
        of any one of them.
      cpu_seconds: of the tree, user and system; the database server is not part of it.
    """

    seconds: float
    peak_bytes: int
    cpu_seconds: float


def measure(
    command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str], timeout_seconds: float
) -> Measurement:
    """Runs a command in `folder` to its end; its output goes to `log`.

    Raises:
      FailedError: its exit code was not 0, or the time was up (the whole tree is killed then).
    """
    with open(log, "wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        late = threading.Timer(timeout_seconds, sampler.kill)
        late.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    late.cancel()
    sampler.finish()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-_LOG_TAIL:]
        raise FailedError(
            f"{' '.join(command)}\nended with {process.returncode} after {seconds:.0f} s:\n{tail}"
        )
    # wait4 has the children that were waited for as well; a JVM that was not stands in the samples only.
    cpu_seconds = max(usage.ru_utime + usage.ru_stime, sampler.cpu_seconds)
    # Not ru_maxrss: it remembers what the process held between fork and exec, which is this one's memory.
    return Measurement(seconds, sampler.peak_bytes, cpu_seconds)


class _Sampler(threading.Thread):
    """Looks at a process and its descendants until told to finish."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._cpu: dict[int, float] = {}
        self._high_water: dict[int, int] = {}
        self._pid = pid
        self._done = threading.Event()

    @property
    def cpu_seconds(self) -> float:
        """User and system time of all processes seen, as of their last sample."""
        return sum(self._cpu.values())

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            resident = 0
            for pid in _tree(self._pid):
                fields = _stat(pid)
                if fields:
                    # A child between fork and exec still shows its parent's memory: counted once it lasts.
                    resident += int(fields[21]) * _PAGE if pid in self._cpu else 0
                    self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICK
                    self._high_water[pid] = _high_water(pid)
            self.peak_bytes = max(self.peak_bytes, resident, *self._high_water.values(), 0)

    def finish(self) -> None:
        """Ends the sampling and waits for the last sample."""
        self._done.set()
        self.join()

    def kill(self) -> None:
        """Kills the tree."""
        for pid in _tree(self._pid):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _stat(pid: int) -> list[str]:
    """Fields of proc(5)'s stat from the third on; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _high_water(pid: int) -> int:
    """The most bytes that one process ever held, resident."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
