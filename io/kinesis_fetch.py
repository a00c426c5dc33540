"""Background reading of Kinesis shards: a call takes a round trip, and a Beam reader must not block for it.

One thread a shard, within its five reads a second; what they have read waits in memory until the reader
takes it, a bounded number of answers at a time.
"""

import collections
import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from botocore.exceptions import ClientError, ReadTimeoutError

from beamrec.io.aws import error_code
from beamrec.io.kinesis_client import HORIZON, MOST_RECORDS, Shard, StoppedError, Stream, patiently
from beamrec.io.kpl import unpack
from beamrec.io.source_log import Part

__all__ = ["Answer", "Failure", "Listing", "ShardPool", "Span"]

# Five a second for all readers of a shard, of which there is one.
_READ_SECONDS = 0.21
_LIST_SECONDS = 1.0
# A reader that nobody asks for so long may have been left behind by the runner: it makes no calls until then.
_UNASKED_SECONDS = 30.0
# Answers in memory at a time, of up to 10 MB each; and so many calls at a time.
_ANSWERS = 8
# A service or a line too slow for large answers is asked for smaller ones: it would time out for ever.
_LEAST_RECORDS = 100
# A re-read is at its end where the tip is reached with nothing found: once might be an answer between two.
_QUIET_READS = 3
# sequence number, arrival (microseconds since the epoch), data
_Record = tuple[str, int, bytes]


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a part of a shard lies, as `Part.tail` keeps it; places as in `io.kinesis_client`.

    Attributes:
      begin, end: what lies between is the part; whole Kinesis records.
      closed: the shard was read to its end.
      until: the reading ended at this arrival time, microseconds since the epoch; 0 if it did not.
    """

    begin: str
    end: str
    closed: bool = False
    until: int = 0

    def encode(self) -> str:
        """As text."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if v}, separators=(",", ":"))

    @classmethod
    def decode(cls, tail: str) -> "Span":
        """The inverse of `encode`; raises ValueError or TypeError for anything else."""
        return cls(**{"begin": "", "end": "", **json.loads(tail)})


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one read of a shard gave.

    Attributes:
      rows: arrival (microseconds since the epoch) and payload of each user record.
      bound_us: whatever comes next arrived then or later.
      behind: whether more is waiting in the shard already.
      cut: whether the record before the first one was to be looked for and is gone.
      part: the sealed part that was read again; None for what is new.
    """

    shard: str
    span: Span
    rows: list[tuple[int, bytes]]
    bound_us: int
    behind: bool
    cut: bool = False
    part: Part | None = None


class Failure(NamedTuple):
    """Reading of a shard, or of the list of shards, was refused for good."""

    what: str
    error: Exception


class Listing(NamedTuple):
    """The shards of the stream; `started` is our clock before the call, `clock` the service's.

    What arrived at `horizon_us` (microseconds since the epoch) or later is still there; 0 if nobody knows.
    """

    started: float
    clock: float
    shards: dict[str, Shard]
    horizon_us: int = 0


class _Read(NamedTuple):
    records: list[_Record]
    closed: bool
    behind_ms: int
    asked: float
    cut: bool = False

    @property
    def bound_us(self) -> int:
        # Not the time of asking: a shard may be closed, and what its children hold arrived before that.
        if self.records:
            return self.records[-1][1]
        return int(self.asked * 1e6) - 1000 * self.behind_ms


class ShardPool:
    """The threads of one reader.

    Args:
      stream: what to read.
      until_us: arrival time at which reading ends; None never does.
      grace_seconds: how long after `until_us` a record may still become visible that arrived before.
      look_back: whether the stream was read before, so that its retention matters.
    """

    def __init__(
        self, stream: Stream, until_us: int | None, grace_seconds: float, look_back: bool = False
    ) -> None:
        self.stream = stream
        self.until_us = until_us
        self.grace_seconds = grace_seconds
        self.look_back = look_back
        self.listing: Listing | None = None
        self.replaying = 0
        self.asked = time.monotonic()
        self.stopped = threading.Event()
        self.tickets = threading.BoundedSemaphore(_ANSWERS)
        self.found: queue.SimpleQueue[Answer | Failure] = queue.SimpleQueue()
        self._run("list", self._list)

    def start(
        self, shard: str, replays: Sequence[tuple[Part, bool]], place: str | None, doubtful: bool = False
    ) -> None:
        """Reads sealed parts of a shard again, and then from a place on, unless that is None.

        With each part, and with the place, comes whether the record before it may be gone.
        """
        self.replaying += len(replays)
        self._run(shard, lambda: _Fetcher(self, shard).fetch(replays, place, doubtful))

    def take(self) -> Answer | Failure | None:
        """The next answer, if one is there."""
        self.asked = time.monotonic()
        try:
            found = self.found.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, Answer):
            self.tickets.release()
            self.replaying -= found.part is not None
        return found

    def pause(self) -> None:
        """Returns when somebody asks for answers; raises StoppedError if nobody will."""
        while time.monotonic() - self.asked > _UNASKED_SECONDS:
            if self.stopped.wait(0.2):
                raise StoppedError(self.stream.address.where)

    @property
    def waiting(self) -> bool:
        """Whether an answer is there."""
        return not self.found.empty()

    def close(self) -> None:
        """Lets the threads end; they are not waited for."""
        self.stopped.set()

    def _run(self, what: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except StoppedError:
                return
            except Exception as error:  # noqa: BLE001  (raised again where the reader is asked)
                self.found.put(Failure(what, error))

        threading.Thread(target=run, name=f"kinesis-{what}", daemon=True).start()

    def _list(self) -> None:
        stream, where = self.stream, self.stream.address.where
        kept = patiently(stream.retention_seconds, self.stopped, where) if self.look_back else None
        while not self.stopped.is_set():
            self.pause()
            started = time.time()
            shards, clock = patiently(stream.shards, self.stopped, where)
            horizon_us = 0 if kept is None else int((clock - kept) * 1e6)
            self.listing = Listing(started, clock, {shard.id: shard for shard in shards}, horizon_us)
            self.stopped.wait(_LIST_SECONDS)


class _Fetcher:
    """Reads one shard, in a thread of its own."""

    def __init__(self, pool: ShardPool, shard: str) -> None:
        self._pool = pool
        self._shard = shard
        self._next_read = 0.0
        self._limit = MOST_RECORDS

    def fetch(self, replays: Sequence[tuple[Part, bool]], place: str | None, doubtful: bool) -> None:
        self._replay(replays)
        if place is not None:
            self._follow(_Cursor(self, place, doubtful))

    def _follow(self, cursor: "_Cursor") -> None:
        while True:
            begin = cursor.place
            read = cursor.read()
            records, until = self._within(read)
            end = records[-1][0] if records else begin
            self._pool.found.put(
                Answer(
                    self._shard,
                    Span(begin, end, read.closed and not until, until),
                    _rows(records),
                    read.bound_us,
                    read.behind_ms > 0,
                    read.cut,
                )
            )
            if read.closed or until:
                return

    def _within(self, read: _Read) -> tuple[list[_Record], int]:
        """The records before the end of a bounded read, and that end if it was reached."""
        limit = self._pool.until_us
        if limit is None:
            return read.records, 0
        records = [record for record in read.records if record[1] < limit]
        over = len(records) < len(read.records)
        past = not read.behind_ms and read.asked - self._pool.grace_seconds >= limit / 1e6
        return records, limit if over or (past and not read.closed) else 0

    def _replay(self, replays: Sequence[tuple[Part, bool]]) -> None:
        """Parts that join are read in one go: an answer may hold many of them."""
        ahead: collections.deque[_Record] = collections.deque()
        cursor, place = None, None
        for part, expired in replays:
            span = Span.decode(part.tail)
            if cursor is None or span.begin != place:
                cursor = _Cursor(self, span.begin, expired)
                ahead.clear()
            self._read_up_to(span.end, cursor, ahead)
            place, records = span.end, []
            while ahead and int(ahead[0][0]) <= int(span.end):
                records.append(ahead.popleft())
            bound_us = records[-1][1] if records else part.arrival_us
            self._take_ticket()
            self._pool.found.put(Answer(self._shard, span, _rows(records), bound_us, True, part=part))

    def _read_up_to(self, end: str, cursor: "_Cursor", ahead: "collections.deque[_Record]") -> None:
        """Until the record at `end` is among those ahead, or it is no longer there."""
        quiet = 0
        while not (ahead and int(ahead[-1][0]) >= int(end)) and quiet < _QUIET_READS:
            read = cursor.read()
            self._pool.tickets.release()
            ahead.extend(read.records)
            quiet = 0 if read.records or read.behind_ms else quiet + 1
            if read.closed:
                return

    def iterator(self, place: str) -> str:
        pool = self._pool
        return patiently(lambda: pool.stream.iterator(self._shard, place), pool.stopped, self._where)

    def get(self, iterator: str) -> tuple[dict[str, Any], float]:
        """An answer, for which a ticket was taken, and when it was asked for."""
        return patiently(lambda: self._get(iterator), self._pool.stopped, self._where)

    def _get(self, iterator: str) -> tuple[dict[str, Any], float]:
        pool = self._pool
        if pool.stopped.wait(self._next_read - time.monotonic()):
            raise StoppedError(self._where)
        pool.pause()
        self._take_ticket()
        try:
            asked = time.time()
            self._next_read = time.monotonic() + _READ_SECONDS
            answer = pool.stream.read(iterator, self._limit)
        except BaseException as error:
            pool.tickets.release()
            if isinstance(error, ReadTimeoutError):
                self._limit = max(self._limit // 4, _LEAST_RECORDS)
            raise
        self._limit = min(self._limit * 2, MOST_RECORDS)
        return answer, asked

    def _take_ticket(self) -> None:
        while not self._pool.tickets.acquire(timeout=0.5):
            if self._pool.stopped.is_set():
                raise StoppedError(self._where)

    @property
    def _where(self) -> str:
        return f"{self._pool.stream.address.where} {self._shard}"


class _Cursor:
    """A place in a shard that moves on with every read; an iterator that has expired is made anew there.

    Args:
      doubtful: whether the record at the place, if it is one, may be gone: it is looked for from the horizon
        on, since Kinesis goes on there without a word.
    """

    def __init__(self, fetcher: _Fetcher, place: str, doubtful: bool = False) -> None:
        self._fetcher = fetcher
        self._iterator: str | None = None
        self._doubtful = doubtful and _is_record(place)
        self.place = place

    def read(self) -> _Read:
        """The next records; a ticket was taken for them."""
        while True:
            begin = HORIZON if self._doubtful else self.place
            iterator = self._iterator or self._fetcher.iterator(begin)
            try:
                answer, asked = self._fetcher.get(iterator)
                break
            except ClientError as error:
                if error_code(error) != "ExpiredIteratorException":
                    raise
                self._iterator = None
        self._iterator = answer.get("NextShardIterator")
        found, behind_ms = (
            [_record(entry) for entry in answer["Records"]],
            answer.get("MillisBehindLatest", 0),
        )
        over = self._iterator is None
        cut = self._doubtful and self._is_cut(found, over or not behind_ms)
        records = self._since(found)
        if records:
            self.place = records[-1][0]
        return _Read(records, over, behind_ms, asked, cut)

    def _is_cut(self, found: list[_Record], at_tip: bool) -> bool:
        """Whether the oldest record that is there comes after the place; nothing yet is no answer."""
        self._doubtful = not found and not at_tip
        return int(found[0][0]) > int(self.place) if found else at_tip

    def _since(self, records: list[_Record]) -> list[_Record]:
        """Without what lies before the place: an iterator at a time knows whole seconds only."""
        if _is_record(self.place):
            return [r for r in records if int(r[0]) > int(self.place)]
        if self.place == HORIZON:
            return records
        first = int(self.place[1:])
        kept = next((i for i, record in enumerate(records) if record[1] >= first), len(records))
        return records[kept:]


def _is_record(place: str) -> bool:
    return place != HORIZON and not place.startswith("@")


def _record(entry: dict[str, Any]) -> _Record:
    arrival = round(entry["ApproximateArrivalTimestamp"].timestamp() * 1e6)
    return entry["SequenceNumber"], arrival, entry["Data"]


def _rows(records: list[_Record]) -> list[tuple[int, bytes]]:
    return [(arrival, payload) for _, arrival, data in records for payload in unpack(data)]
