"""What a reader has emitted and nobody has given a fate yet: the backpressure that runners lack.

Prism takes whatever comes before a shuffle, however slow what follows it is. So a reader looks into the
ledger how far the sink has come, and pauses while too much waits for it.

A pause must not hold what it waits for. Rows whose window is open wait for the watermark, and that is the
reader's own: so either only what lies in windows that the watermark has passed is waited for, or the
watermark is moved on to where the window of the last row ends, which makes its remaining rows late ones.
Late or not decides only with which others a row is written, never what becomes of it (DESIGN 5).
"""

import collections
import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.books import Books
from beamrec.io.fated_positions import by_source
from beamrec.io.store import Store
from beamrec.schemas.errors import UnavailableError

__all__ = ["InFlight"]

_LOOK_SECONDS = 1.0
# A window that has just been closed is written at once, as a rule: reading goes on meanwhile.
_GRACE_SECONDS = 5.0
_CLOSED_SHARE = 0.25
_Run = tuple[int, int]


@dataclasses.dataclass
class _Window:
    """What was emitted of one window: bytes, and of each source the intervals that its rows tile.

    Only those: what lies between them may belong to another window, which waits for this reader.
    """

    bytes: int = 0
    runs: dict[str, collections.deque[_Run]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(collections.deque)
    )

    def add(self, source: str, after: int, position: int) -> None:
        """Takes note of an interval; one that joins the last of its source makes it longer."""
        runs = self.runs[source]
        if runs and runs[-1][1] == after:
            after, _ = runs.pop()
        runs.append((after, position))


class InFlight:
    """Bytes of one reader's events that have no fate yet, by the windows that hold them back.

    Args:
      store: the output folder, of which the ledger is read when it matters.
      window_seconds: length of the windows that rows are grouped in, by their arrival at the latest.
      max_bytes: most payload bytes without a fate; of a quarter of it, if that is in closed windows, the
        sink is given some seconds to get on with.
    """

    def __init__(self, store: Store, window_seconds: int, max_bytes: int) -> None:
        self._store, self._width_us, self._max_bytes = store, window_seconds * 1_000_000, max_bytes
        self._windows: dict[int, _Window] = collections.defaultdict(_Window)
        self._bytes = 0
        self._books: Books | None = None
        self._next_look = 0.0
        self._since: float | None = None

    def emitted(self, batch: pa.RecordBatch) -> None:
        """Takes note of a batch of RAW_EVENTS."""
        arrival = pc.max(batch.column("arrival").cast(pa.int64())).as_py()
        window = self._windows[(arrival // self._width_us + 1) * self._width_us]
        window.bytes += batch.nbytes
        self._bytes += batch.nbytes
        for source, after, position in _runs(batch):
            window.add(source, after, position)

    def close_at(self) -> int | None:
        """Where the window of the newest row ends [µs], if so much waits that it has to close early."""
        if self._bytes > self._max_bytes:
            self._look()
        return max(self._windows) if self._bytes > self._max_bytes else None

    def too_much(self, watermark_us: int | None) -> bool:
        """Whether to read no more for now: closed windows hold all there is room for, or much for a while."""
        much = int(_CLOSED_SHARE * self._max_bytes)
        closed = self._closed(watermark_us, much)
        if closed > much:
            self._look()
            closed = self._closed(watermark_us, much)
        if closed <= much:
            self._since = None
            return False
        self._since = time.monotonic() if self._since is None else self._since
        return closed > self._max_bytes or time.monotonic() - self._since >= _GRACE_SECONDS

    def _closed(self, watermark_us: int | None, most: int) -> int:
        """Bytes in windows that end before a watermark; 0 if all together are not too many."""
        if watermark_us is None or self._bytes <= most:
            return 0
        return sum(window.bytes for end, window in self._windows.items() if end <= watermark_us)

    def _look(self) -> None:
        """Lets go of what has its fate by now; at most once a second, and not where that cannot be told."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        try:
            # Only where much is emitted: it keeps what is open of every source.
            self._books = self._books or Books(self._store)
            self._books.update()
        except UnavailableError:
            return
        for end in [end for end, window in self._windows.items() if self._is_done(window)]:
            self._bytes -= self._windows.pop(end).bytes

    def _is_done(self, window: _Window) -> bool:
        assert self._books is not None  # noqa: S101  (made by `_look`)
        sources = self._books.sources
        for source, runs in window.runs.items():
            # What has its fate is let go of, and not asked for at the next look.
            while runs and source in sources and sources[source].has_fate(*runs[0]):
                runs.popleft()
            if runs:
                return False
        return True


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[str, int, int]]:
    """The intervals that the rows of a batch tile: (source, after, position), those of a source ascending."""
    afters, positions = batch.column("after").to_numpy(), batch.column("position").to_numpy()
    for source, index in by_source(pa.chunked_array([batch.column("source")]), positions):
        after, position = afters[index], positions[index]
        breaks = np.flatnonzero(after[1:] != position[:-1])
        begins, ends = after[np.append(0, breaks + 1)], position[np.append(breaks, -1)]
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            yield source, begin, end
