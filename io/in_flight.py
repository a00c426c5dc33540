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

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.books import Books
from beamrec.io.store import Store
from beamrec.schemas.errors import UnavailableError

__all__ = ["InFlight"]

_LOOK_SECONDS = 1.0
# A window that has just been closed is written at once, as a rule: reading goes on meanwhile.
_GRACE_SECONDS = 5.0
_CLOSED_SHARE = 0.25
_INTERVAL = ["source", "after", "position"]


@dataclasses.dataclass
class _Window:
    """What was emitted of one window: bytes, and of each source the interval that its rows lie in."""

    bytes: int = 0
    intervals: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


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
        sources = batch.column("source").dictionary_encode()
        rows = pa.table([sources.indices, batch.column("after"), batch.column("position")], _INTERVAL)
        names = sources.dictionary.to_pylist()
        for row in rows.group_by("source").aggregate([("after", "min"), ("position", "max")]).to_pylist():
            name, after, position = names[row["source"]], row["after_min"], row["position_max"]
            before = window.intervals.get(name, (after, position))
            window.intervals[name] = min(before[0], after), max(before[1], position)

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
        return all(
            source in sources and sources[source].has_fate(*interval)
            for source, interval in window.intervals.items()
        )
