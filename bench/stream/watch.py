"""What a running system costs: processor time and memory of a process and all that it started."""

import threading
import time
from types import TracebackType

import psutil

__all__ = ["Watch"]

_EVERY_SECONDS = 0.5


class Watch:
    """Samples a process tree until the `with` block ends.

    Attributes:
      samples: (seconds since the epoch, CPU seconds so far, resident MiB) in order.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._known: dict[int, tuple[psutil.Process, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[tuple[float, float, float]] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def cpu_seconds(self, since: float, until: float) -> float:
        """Processor time between two moments, by the samples nearest to them."""
        return self._at(until)[1] - self._at(since)[1]

    def peak_mib(self, since: float, until: float) -> float:
        """Most resident memory between two moments."""
        return max((s[2] for s in self.samples if since <= s[0] <= until), default=0.0)

    def mean_mib(self, since: float, until: float) -> float:
        """Mean resident memory between two moments."""
        found = [s[2] for s in self.samples if since <= s[0] <= until]
        return sum(found) / max(len(found), 1)

    def _at(self, moment: float) -> tuple[float, float, float]:
        return min(self.samples, key=lambda sample: abs(sample[0] - moment))

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            memory = 0.0
            for process in self._tree():
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        memory += process.memory_info().rss
                    self._known[process.pid] = process, times.user + times.system
                except psutil.Error:
                    continue
            spent = sum(seconds for _, seconds in self._known.values())
            self.samples.append((time.time(), spent, memory / 2**20))

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []
