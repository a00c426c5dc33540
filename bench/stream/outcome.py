"""When each probe of a run became visible in the serving table, read behind the run."""

import dataclasses
import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from generate import PROBE_EVERY
from hdrh.histogram import HdrHistogram

from beamrec.io.postgres import connect

__all__ = ["Outcome", "clear", "file_times", "latencies", "read_outcome", "visible"]

_LONGEST_US = 3_600_000_000
_PERCENTILES = (50, 90, 99, 99.9)
# Backlog may waver by this share of what is sent in the half run, not grow beyond it.
_GROWTH = 0.02


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's probes: which number, when due and when visible (seconds since the epoch)."""

    numbers: npt.NDArray[np.int64]
    due: npt.NDArray[np.float64]
    seen: npt.NDArray[np.float64]
    sent: int

    @property
    def complete(self) -> bool:
        """Every probe that was sent is there."""
        return len(self.numbers) == -(-self.sent // PROBE_EVERY)

    def rate(self) -> float:
        """Events a second from the first that is visible to the last."""
        first, last = self.seen.min(), self.seen.max()
        return float((self.numbers.max() - self.numbers.min()) / max(last - first, 1e-9))

    def grows(self) -> bool:
        """Whether the second half of the run left more waiting than the first."""
        start, end = self.due.min(), self.due.max()
        moments = np.linspace(start, end, 41)[1:]
        sent, seen = np.sort(self.due), np.sort(self.seen)
        waiting = np.searchsorted(sent, moments, "right") - np.searchsorted(seen, moments, "right")
        early, late = waiting[10:20].mean(), waiting[30:].mean()
        return bool(late - early > _GROWTH * len(self.due) / 2 + 2)


def clear(uri: str) -> None:
    """Empties the serving tables."""
    _ask(uri, "TRUNCATE beamrec.recommendations_latest, beamrec.recommendations_log")


def visible(uri: str, run: str) -> int:
    """How many probes of a run are in the serving table."""
    count = "SELECT count(*) FROM beamrec.recommendations_latest WHERE event_id LIKE %s"
    return int(_ask(uri, count, f"{run}-%0")[0][0])


def read_outcome(uri: str, run: str, start: float, rate: float, sent: int) -> Outcome:
    """Numbers and commit times of a run's probes."""
    rows = _ask(
        uri,
        "SELECT split_part(event_id, '-', -1)::bigint, extract(epoch FROM pg_xact_commit_timestamp(xmin)) "
        "FROM beamrec.recommendations_latest WHERE event_id LIKE %s ORDER BY 1",
        f"{run}-%0",
    )
    numbers = np.array([row[0] for row in rows], np.int64)
    return Outcome(numbers, start + numbers / rate, np.array([float(row[1]) for row in rows]), sent)


def latencies(seconds: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Percentiles in milliseconds, out of an HDR histogram of microseconds with three digits."""
    histogram = HdrHistogram(1, _LONGEST_US, 3)
    for value in np.maximum(seconds * 1e6, 1).astype(np.int64).tolist():
        histogram.record_value(value)
    found = {f"p{p:g}_ms": histogram.get_value_at_percentile(p) / 1e3 for p in _PERCENTILES}
    return {**found, "max_ms": histogram.get_max_value() / 1e3, "samples": len(seconds)}


def file_times(output: Path, window_seconds: int, run: str) -> npt.NDArray[np.float64]:
    """Seconds from the end of the window of each event of a run to when its file could be seen; 0 before."""
    found = []
    for path in output.glob("recommendations/**/*.jsonl"):
        at = path.stat().st_ctime  # of the link that made it visible
        for line in map(orjson.loads, path.read_bytes().splitlines()):
            if line["event_id"].startswith(f"{run}-"):
                when = dt.datetime.fromisoformat(line["event_time"]).timestamp()
                found.append(at - (when // window_seconds + 1) * window_seconds)
    return np.maximum(found, 0.0)


def _ask(uri: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    connection = connect(uri)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows
