"""The part that every event source shares: resume, drain, idle end, watermark and checkpoint marks.

A reader of a source derives from `LedgerReader` and says only how the next events are found. The rules
that it must keep, for *in* is counted from what it seals:

1. Seal a `Part` in the source log before any of its events is emitted, with their exact number.
2. Give each event the interval (`after`, `position`] of its source; the intervals of a source join.
3. Leave out what already has a fate (`self.fated(source, position)`).
4. At start, read sealed parts again that are not wholly fated, with the arrival times sealed with them.
5. With `seal_new` false, read on in what is sealed and seal nothing new: a drain ends there, and then
   everything that was counted in has a fate. (A replay of dead letters alone does not: what it has chosen is
   read to its end, or left to the next replay.)

What else is relied on:

- A source's name in the ledger is `system:name`, and says nothing of the splits: a job may start again with
  another number of them. `replay:` is taken.
- `SourceLog.seal` may have read parts of other readers. One that holds the place is returned instead of that
  given; what was sealed beyond it comes only from `seal_on`, and is to be read on from.
- `Part.tail` is all that a later reader has to find a part again: where positions are counts of records, it
  must say where the first of them begins and where the last ends.
- An exception from `next_batches` is final: runners do not ask again. An outage that may pass is therefore
  waited out inside, with no batches meanwhile and with `busy` true, or an idle end would come.
- `next_batches` shares its thread with the bundle: what can take longer than some tenths of a second belongs
  into a thread of the reader's own.
"""

import abc
import dataclasses
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import pyarrow as pa
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from beamrec.io.begun import current_options, ended_readers, report_end
from beamrec.io.events import SourceOptions
from beamrec.io.in_flight import InFlight
from beamrec.io.ledger import Progress, drain_requested
from beamrec.io.patience import patient
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import LocalStore, open_store
from beamrec.io.store_waits import WAITS
from beamrec.schemas.events import RAW_EVENTS, TIMESTAMP
from beamrec.transforms import metrics

__all__ = ["LedgerMark", "LedgerReader", "Row", "raw_events", "resume_or"]

# source, after, position, arrival (microseconds since the epoch), payload: what RAW_EVENTS is made of
Row = tuple[str, int, int, int, bytes]

# Two bundle times: on Flink a window that a drain closes can fire twice if the last bundle is open.
_DRAIN_HOLD_SECONDS = 0.3
_DRAIN_LOOK_SECONDS = 0.2
_NOTHING = Progress(0, frozenset())
_Reader = TypeVar("_Reader", bound="LedgerReader")
_LIVE: "weakref.WeakValueDictionary[str, LedgerReader]" = weakref.WeakValueDictionary()
_LIVE_LOCK = threading.Lock()


def raw_events(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows, at least one, as a batch of RAW_EVENTS."""
    sources, afters, positions, arrivals, payloads = zip(*rows, strict=True)
    return pa.record_batch(
        [
            pa.array(sources, pa.string()),
            pa.array(afters, pa.int64()),
            pa.array(positions, pa.int64()),
            pa.array(arrivals, pa.int64()).cast(TIMESTAMP),
            pa.array(payloads, pa.binary()),
        ],
        schema=RAW_EVENTS,
    )


@dataclasses.dataclass(frozen=True)
class LedgerMark(CheckpointMark):  # type: ignore[misc]
    """Tells one bundle's reader from another; where to resume is in the ledger, not in the mark.

    Attributes:
      positions: of a source with positions of its own, how far each part of it (a shard, a partition) has
        been read, in its own terms: for who looks into a runner's checkpoint.
    """

    reader: str
    sequence: int
    positions: tuple[tuple[str, str], ...] = ()


def resume_or(mark: LedgerMark | None, make: Callable[[], _Reader]) -> _Reader:
    """The reader of this process that cut a mark and has not gone on since, else a new one.

    Beam parks a reader with the instance of its DoFn that read last, and asks for another where the next
    bundle runs on another instance: often under load, for an instance is not free before its bundle was
    finalized. A new reader would emit everything again that is on its way.
    """
    live = _LIVE.get(mark.reader) if mark is not None else None
    if live is not None and mark is not None and live.resume(mark.sequence):
        return cast(_Reader, live)
    return make()


class LedgerReader(UnboundedReader, abc.ABC):  # type: ignore[misc]
    """A reader that begins at the lowest position without a fate, whatever the runner remembers.

    The ledger is never behind a runner's checkpoint in what must not be repeated: events that are on
    their way are read again, and the sink takes them out.
    """

    def __init__(self, options: SourceOptions) -> None:
        store = open_store(options.output)
        # A runner's savepoint brings the options of the run that it was taken in.
        current = current_options(store, options)
        self._has_begun, options = current is not None, current or options
        self.options = options
        # Which of the splits is read: a source says so after this.
        self.split_index = 0
        self._is_local = isinstance(store, LocalStore)
        # A runner gives a source that raises no second chance: an output that is away for a moment is waited
        # for here as it is in the sink.
        self._store = patient(store, options.patience_seconds)
        self._in_flight: InFlight | None = None
        if options.max_in_flight_mb is not None:
            self._in_flight = InFlight(store, options.window_seconds, options.max_in_flight_mb << 20)
        self.read_ledger()
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._current: pa.RecordBatch | None = None
        self._quiet_seconds, self._asked_at = 0.0, time.monotonic()
        self._ended_at: float | None = None
        # Whether the sink is waited for: what a bundle has emitted does not reach it before the bundle's end.
        self.paused = False
        self._drained: bool | None = None
        self._next_drain_look = 0.0
        self._watermark_us: int | None = None
        self._id, self._marks = uuid.uuid4().hex, 0
        self._resumable, self._uses = 0, 1
        _LIVE[self._id] = self

    @abc.abstractmethod
    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """Batches of RAW_EVENTS of what comes next, or None if there is nothing now. Must not block."""

    def read_ledger(self) -> None:
        """Reads from its beginning what the ledger says: at the start, or if another reader was faster."""
        self._progress = Progress.load(self._store)
        self.log = SourceLog(self._store)

    def busy(self, seal_new: bool) -> bool:
        """Whether more is known to be on its way, although `next_batches` had nothing: no end is near yet.

        For a reader that fetches in the background. With `seal_new` false only what is sealed counts.
        """
        return False

    def at_end(self) -> bool:
        """Whether nothing will ever come again: the end of a bounded read."""
        return False

    def positions(self) -> tuple[tuple[str, str], ...]:
        """What a checkpoint mark says of how far the reader is; see LedgerMark."""
        return ()

    def fated(self, source: str, position: int) -> bool:
        """Whether the event that ends there already had a fate when this reader began."""
        progress = self._progress.get(source, _NOTHING)
        return position <= progress.resume or position in progress.done

    def unfinished(self, part: Part) -> bool:
        """Whether a sealed part has to be read again."""
        return part.position > self._progress.get(part.source, _NOTHING).resume

    def advance_watermark(self, arrival_seconds: float) -> None:
        """Events that come from now on arrived at this time or later."""
        micros = int((arrival_seconds - self.options.max_delay_seconds) * 1e6)
        self._watermark_us = micros if self._watermark_us is None else max(micros, self._watermark_us)

    def start(self) -> bool:
        """See UnboundedReader."""
        return self.advance()

    def advance(self) -> bool:
        """See UnboundedReader."""
        self._resumable = 0
        if self._ended_at is not None:
            return False
        metrics.count_waits(WAITS.take())
        self._count_quiet_time()
        draining = self._draining()
        self.paused = self._waits_for_the_sink()
        if self.paused:
            return False
        batch = next(self._batches, None)
        while batch is None:
            batches = self.next_batches(seal_new=not draining)
            if batches is None:
                break
            self._batches = batches
            batch = next(batches, None)
        if batch is not None:
            self._current = batch
            if self._in_flight:
                self._in_flight.emitted(batch)
            metrics.count("read", batch.num_rows)
            metrics.distribute("read_batch", batch.num_rows)
            self._quiet_seconds = 0.0
            return True
        if self.busy(seal_new=not draining):
            self._quiet_seconds = 0.0
        elif draining or self._idle_long_enough() or self.at_end():
            if self._has_begun:
                report_end(self._store, self.options.run, self.split_index)
            self._ended_at = time.monotonic()
        return False

    def _waits_for_the_sink(self) -> bool:
        """Whether so much is on its way that nothing more is to be read for now."""
        if self._in_flight is None:
            return False
        end = self._in_flight.close_at()
        if end is not None:
            self._watermark_us = max(end, self._watermark_us or end)
        waits = self._in_flight.too_much(self._watermark_us)
        if waits:
            self._quiet_seconds = 0.0
        return waits

    def _has_ended(self) -> bool:
        return self.split_index in ended_readers(self._store, self.options.run)

    def _draining(self) -> bool:
        """Whether the run is to end; on an object store each look costs a request, so not at every poll."""
        if self._drained is None:
            # One that has ended ends again after a restart: somebody may count on its sealing nothing new.
            self._drained = self._has_begun and self._has_ended()
        if not self._drained and time.monotonic() >= self._next_drain_look:
            self._drained = drain_requested(self._store, self.options.run)
            if not self._is_local:
                self._next_drain_look = time.monotonic() + _DRAIN_LOOK_SECONDS
        return self._drained

    def _count_quiet_time(self) -> None:
        """A pause in which nobody asked (a busy machine) is not the end: there must be a look after it."""
        now, limit = time.monotonic(), self.options.stop_when_idle_seconds
        self._quiet_seconds += min(now - self._asked_at, (limit or 0.0) / 2)
        self._asked_at = now

    def _idle_long_enough(self) -> bool:
        limit = self.options.stop_when_idle_seconds
        return limit is not None and self._quiet_seconds >= limit

    def get_current(self) -> pa.RecordBatch:
        """See UnboundedReader."""
        return self._current

    def get_current_timestamp(self) -> Timestamp:
        """Never before the watermark: an element behind it would be late by itself."""
        return self._watermark()

    def get_watermark(self) -> Timestamp:
        """See UnboundedReader."""
        if self._ended_at is not None and time.monotonic() - self._ended_at >= _DRAIN_HOLD_SECONDS:
            return MAX_TIMESTAMP
        if self._watermark_us is not None:
            metrics.gauge("watermark_ms", self._watermark_us // 1000)
        return self._watermark()

    def get_checkpoint_mark(self) -> LedgerMark:
        """See UnboundedReader."""
        self._marks += 1
        self._resumable = self._marks
        return LedgerMark(self._id, self._marks, self.positions())

    def resume(self, sequence: int) -> bool:
        """Takes the reader for one more user, where the mark with that number is its last word."""
        with _LIVE_LOCK:
            if self._resumable != sequence:
                return False
            self._resumable = 0
            self._uses += 1
            return True

    def close(self) -> None:
        """See UnboundedReader; once for each user.

        Beam also closes what it has parked with an instance and nobody has asked for since: that ends nothing
        for an instance that has gone on with the reader. One that fails in the midst has no mark to resume.
        """
        with _LIVE_LOCK:
            self._uses -= 1
            if self._uses:
                return
            self._resumable = 0
        self.release()

    def release(self) -> None:
        """Gives back what the reader holds, when nobody uses it any more."""

    def _watermark(self) -> Timestamp:
        return MIN_TIMESTAMP if self._watermark_us is None else Timestamp(micros=self._watermark_us)
