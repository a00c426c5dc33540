"""Background reading of Kinesis shards: a call takes a round trip, and a Beam reader must not block for it.

One thread a shard, within its five reads a second; what they have read waits in memory until the reader
takes it, a bounded number of answers at a time.
"""

import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from beamrec.io.aws import error_code
from beamrec.io.kinesis_client import Shard, StoppedError, Stream, patiently
from beamrec.io.kpl import unpack
from beamrec.io.source_log import Part

__all__ = ["Answer", "Failure", "Listing", "ShardPool", "Span"]

# Five a second for all readers of a shard, of which there is one.
_READ_SECONDS = 0.21
_LIST_SECONDS = 1.0
# Answers in memory at a time, of up to 10 MB each; and so many calls at a time.
_ANSWERS = 8
# A re-read is at its end where the tip is reached with nothing found: once might be an answer between two.
_QUIET_READS = 3


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
      part: the sealed part that was read again; None for what is new.
    """

    shard: str
    span: Span
    rows: list[tuple[int, bytes]]
    bound_us: int
    behind: bool
    part: Part | None = None


class Failure(NamedTuple):
    """Reading of a shard, or of the list of shards, was refused for good."""

    what: str
    error: Exception


class Listing(NamedTuple):
    """The shards of the stream; `started` is our clock before the call, `clock` the service's."""

    started: float
    clock: float
    shards: dict[str, Shard]


class _Read(NamedTuple):
    records: list[tuple[str, int, bytes]]  # sequence number, arrival, data
    closed: bool
    behind_ms: int
    asked: float

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
    """

    def __init__(self, stream: Stream, until_us: int | None, grace_seconds: float) -> None:
        self.stream = stream
        self.until_us = until_us
        self.grace_seconds = grace_seconds
        self.listing: Listing | None = None
        self.replaying = 0
        self.stopped = threading.Event()
        self.tickets = threading.BoundedSemaphore(_ANSWERS)
        self.found: queue.SimpleQueue[Answer | Failure] = queue.SimpleQueue()
        self._run("list", self._list)

    def start(self, shard: str, replays: Sequence[Part], place: str | None) -> None:
        """Reads sealed parts of a shard again, and then from a place on, unless that is None."""
        self.replaying += len(replays)
        self._run(shard, lambda: _Fetcher(self, shard).fetch(replays, place))

    def take(self) -> Answer | Failure | None:
        """The next answer, if one is there."""
        try:
            found = self.found.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, Answer):
            self.tickets.release()
            self.replaying -= found.part is not None
        return found

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
        while not self.stopped.is_set():
            started = time.time()
            shards, clock = patiently(self.stream.shards, self.stopped, self.stream.address.where)
            self.listing = Listing(started, clock, {shard.id: shard for shard in shards})
            self.stopped.wait(_LIST_SECONDS)


class _Fetcher:
    """Reads one shard, in a thread of its own."""

    def __init__(self, pool: ShardPool, shard: str) -> None:
        self._pool = pool
        self._shard = shard
        self._next_read = 0.0

    def fetch(self, replays: Sequence[Part], place: str | None) -> None:
        for part in replays:
            self._replay(part)
        if place is not None:
            self._follow(_Cursor(self, place))

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
                )
            )
            if read.closed or until:
                return

    def _within(self, read: _Read) -> tuple[list[tuple[str, int, bytes]], int]:
        """The records before the end of a bounded read, and that end if it was reached."""
        limit = self._pool.until_us
        if limit is None:
            return read.records, 0
        records = [record for record in read.records if record[1] < limit]
        over = len(records) < len(read.records)
        past = not read.behind_ms and read.asked - self._pool.grace_seconds >= limit / 1e6
        return records, limit if over or (past and not read.closed) else 0

    def _replay(self, part: Part) -> None:
        span, cursor = Span.decode(part.tail), _Cursor(self, Span.decode(part.tail).begin)
        records: list[tuple[str, int, bytes]] = []
        quiet = 0
        while True:
            read = cursor.read()
            records += [record for record in read.records if int(record[0]) <= int(span.end)]
            quiet = 0 if read.records or read.behind_ms else quiet + 1
            over = bool(read.records) and int(read.records[-1][0]) >= int(span.end)
            if over or read.closed or quiet == _QUIET_READS:
                break
            self._pool.tickets.release()
        bound_us = records[-1][1] if records else part.arrival_us
        self._pool.found.put(Answer(self._shard, span, _rows(records), bound_us, True, part))

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
        while not pool.tickets.acquire(timeout=0.5):
            if pool.stopped.is_set():
                raise StoppedError(self._where)
        try:
            asked = time.time()
            self._next_read = time.monotonic() + _READ_SECONDS
            return pool.stream.read(iterator), asked
        except BaseException:
            pool.tickets.release()
            raise

    @property
    def _where(self) -> str:
        return f"{self._pool.stream.address.where} {self._shard}"


class _Cursor:
    """A place in a shard that moves on with every read; an iterator that has expired is made anew there."""

    def __init__(self, fetcher: _Fetcher, place: str) -> None:
        self._fetcher = fetcher
        self._iterator: str | None = None
        self.place = place

    def read(self) -> _Read:
        """The next records; a ticket was taken for them."""
        while True:
            iterator = self._iterator or self._fetcher.iterator(self.place)
            try:
                answer, asked = self._fetcher.get(iterator)
                break
            except ClientError as error:
                if error_code(error) != "ExpiredIteratorException":
                    raise
                self._iterator = None
        self._iterator = answer.get("NextShardIterator")
        records = self._since([_record(entry) for entry in answer["Records"]])
        if records:
            self.place = records[-1][0]
        return _Read(records, self._iterator is None, answer.get("MillisBehindLatest", 0), asked)

    def _since(self, records: list[tuple[str, int, bytes]]) -> list[tuple[str, int, bytes]]:
        """Without what lies before a time to start at: an iterator at a time knows whole seconds only."""
        if not self.place.startswith("@"):
            return records
        first = int(self.place[1:])
        kept = next((i for i, record in enumerate(records) if record[1] >= first), len(records))
        return records[kept:]


def _record(entry: dict[str, Any]) -> tuple[str, int, bytes]:
    arrival = round(entry["ApproximateArrivalTimestamp"].timestamp() * 1e6)
    return entry["SequenceNumber"], arrival, entry["Data"]


def _rows(records: list[tuple[str, int, bytes]]) -> list[tuple[int, bytes]]:
    return [(arrival, payload) for _, arrival, data in records for payload in unpack(data)]
