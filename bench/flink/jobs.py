"""beamrec as a contestant on Flink and on Prism, and what its job on Flink tells of itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from servers import BEAMREC

from beamrec.runners.flink_jobs import FlinkJobs

__all__ = ["CONTESTANTS", "WINDOW_SECONDS", "Checkpoints", "account", "start"]

WINDOW_SECONDS = 10
_STOP_SECONDS = 300
_FLINK = ("--runner=flink", "--splits=2", "--parallelism=2")
_DEFAULT_BUNDLES = ("--max_bundle_size=1000", "--max_bundle_time_mills=1000")

CONTESTANTS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "flink": (None, _FLINK),
    "flink_bundles": (None, (*_FLINK, *_DEFAULT_BUNDLES)),
    "flink_defaults": ("1,10,0", (*_FLINK, *_DEFAULT_BUNDLES)),
    "prism": (None, ("--runner=prism", "--splits=2")),
}
"""Name -> (read settings if not the preset's, options)."""


@contextlib.contextmanager
def start(
    reads: str | None, options: Sequence[str], source: str, uri: str, folder: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """The running job; it is drained at the end, and killed if it does not end.

    Args:
      reads: poll, read and hold seconds; the preset's if None.
      options: of `beamrec stream`.
      source: URI of the input.
      uri: of PostgreSQL.
      folder: for its files, empty; the last line of `log` is the account.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = (
        [str(BEAMREC), "stream"]
        if reads is None
        else [sys.executable, str(Path(__file__).with_name("stream.py")), reads]
    )
    command += ["--json", "--input", source, "--vector-db", uri, "--output", str(folder / "out")]
    command += ["--home", str(folder / "home"), "--window-seconds", str(WINDOW_SECONDS), *options]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"the job did not stop; its log: {folder / 'log'}", file=sys.stderr)
            process.kill()
            process.wait()


def account(folder: Path) -> dict[str, Any]:
    """What the job said at its end."""
    lines = (folder / "log").read_text(errors="replace").splitlines()
    answer: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    names = ("ok", "in", "out", "dead_letters", "duplicates", "expired", "reconciled")
    return {name: answer.get(name) for name in names}


class Checkpoints:
    """Sizes of a job's completed checkpoints, collected while it runs: Flink itself keeps the last ten."""

    def __init__(self, dashboard: str) -> None:
        self._jobs = FlinkJobs(dashboard, 60)
        self._sizes: dict[int, tuple[float, int, int]] = {}

    def look(self) -> None:
        """Takes what is new."""
        for job in self._jobs.running():
            for found in self._jobs.checkpoints(job)["history"]:
                if found["status"] == "COMPLETED":
                    at = found["trigger_timestamp"] / 1e3
                    self._sizes[found["id"]] = at, found["state_size"], found["end_to_end_duration"]

    def watch(self, seconds: float, every: float = 10.0) -> None:
        """Looks for some time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(every, max(until - time.monotonic(), 0.0)))
            self.look()

    @property
    def sizes(self) -> list[tuple[float, int, int]]:
        """(seconds since the epoch, bytes, milliseconds that it took), in order."""
        return sorted(self._sizes.values())

    def bytes_per_hour(self) -> float | None:
        """Slope of the line nearest to the sizes without their first third; None of fewer than three."""
        import numpy as np

        kept = self.sizes[len(self.sizes) // 3 :]
        if len(kept) < 3:
            return None
        at, size = np.array([(at, size) for at, size, _ in kept]).T
        return float(np.polyfit(at - at[0], size, 1)[0] * 3600)
