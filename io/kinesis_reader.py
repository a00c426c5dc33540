"""The reader of a range of a stream's shards: lineage, sealing, watermark and end.

The rules that it keeps are those of `io.reader`; the calls themselves are made in `io.kinesis_fetch`.
"""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from beamrec.io.aws import explained
from beamrec.io.events import SourceOptions
from beamrec.io.kinesis_client import HORIZON, Address, Shard, Stream
from beamrec.io.kinesis_fetch import Answer, Failure, Listing, ShardPool, Span
from beamrec.io.kinesis_look_back import LookBack
from beamrec.io.reader import LedgerReader, Row, raw_events
from beamrec.io.source_log import Part
from beamrec.schemas.errors import BeamrecError

__all__ = ["KinesisReader"]

_GROUP_BYTES = 4 << 20  # what is sealed at a time, of all shards that have answered
# A shard that has not answered for so long is not idle but out of reach.
_SILENT_SECONDS = 5.0
# A closed shard that gives nothing for so long holds no watermark: it should have been at its end at once.
# Moto's server never ends one.
_MOVING_SECONDS = 30.0
# An idle shard is noted as read up to now so often: only what came later can expire unread during a stop.
_MARK_US = 3600 * 1_000_000


@dataclasses.dataclass
class _State:
    """How far the reader is with one shard.

    Attributes:
      position, place: up to where it is sealed.
      replays: sealed parts that are still to be read again.
      over: nothing new will be read: it was read to its end, or to that of a bounded read.
      bound_us: whatever it emits next arrived then or later; None if nothing is known yet.
      behind: whether more is waiting in it.
      heard, moved: when it last answered, and with a record, by the monotonic clock.
      closed_at: when its end was found, by our clock.
    """

    position: int
    place: str
    replays: int
    over: bool
    bound_us: int | None
    behind: bool = True
    heard: float = dataclasses.field(default_factory=time.monotonic)
    moved: float = dataclasses.field(default_factory=time.monotonic)
    closed_at: float = dataclasses.field(default_factory=time.time)

    @property
    def done(self) -> bool:
        return self.over and not self.replays


class KinesisReader(LedgerReader):
    """Reads the shards that `owns` says are its own."""

    def __init__(self, address: Address, options: SourceOptions, owns: Callable[[Shard], bool]) -> None:
        super().__init__(options)
        self._address = address
        self._owns = owns
        parts = self.log.read()
        self._look_back = LookBack(self._store, self._name, self._name("")[:-1], parts)
        self._open(parts)

    def _open(self, parts: Sequence[Part]) -> None:
        address = self._address
        self._shards: dict[str, _State] = {}
        self._emitting: list[Answer] = []
        self._held_back: Answer | None = None
        self._listing: Listing | None = None
        self._look_again = False
        self._waiting: list[Shard] = []
        self._moved: dict[str, tuple[int, float]] = {}
        self._unfinished: dict[str, list[Part]] = collections.defaultdict(list)
        self._is_new = not parts
        for part in parts:
            if part.source.startswith(self._name("")) and part.records and self.unfinished(part):
                self._unfinished[part.source].append(part)
        delay = self.options.max_delay_seconds
        self._pool = ShardPool(Stream(address), address.end, delay, look_back=not self._is_new)

    def release(self) -> None:
        """See LedgerReader."""
        self._pool.close()

    def positions(self) -> tuple[tuple[str, str], ...]:
        """The sequence number up to which each shard is sealed."""
        return tuple((shard, state.place) for shard, state in self._shards.items())

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """See LedgerReader."""
        self._settle()
        self._begin_shards(seal_new)
        answers = self._collect(seal_new)
        parts = self._seal(answers)
        if parts is None:
            self._give_way()
            return iter(())
        self._emitting = answers
        rows = [row for answer, part in zip(answers, parts, strict=True) for row in self._rows(answer, part)]
        self._advance()
        return self._batches_of(rows) if rows else None

    def busy(self, seal_new: bool) -> bool:
        """See LedgerReader."""
        if self._pool.replaying or self._held_back or (self._listing is None and self._unfinished):
            return True
        if not seal_new:
            return False
        silent = time.monotonic() - _SILENT_SECONDS
        unheard = any(not s.done and (s.behind or s.heard < silent) for s in self._shards.values())
        return unheard or self._listing is None or self._pool.waiting

    def at_end(self) -> bool:
        """See LedgerReader."""
        end, listing = self._address.end, self._listing
        if end is None or listing is None or listing.started <= end / 1e6:
            return False
        return all(self._ended(shard) for shard in listing.shards.values() if self._owns(shard))

    def _ended(self, shard: Shard) -> bool:
        """Whether nothing of the shard lies before the end of a bounded read that was not read yet."""
        state = self._shards.get(shard.id)
        if state:
            return state.done
        # What follows a shard that goes on beyond the end lies beyond it as a whole.
        return any(self._goes_beyond(parent) for parent in shard.parents)

    def _goes_beyond(self, shard: str) -> bool:
        last = self.log.last(self._name(shard))
        if last is not None:
            return Span.decode(last.tail).until >= (self._address.end or 0)
        assert self._listing is not None  # noqa: S101  (at_end looked)
        listed = self._listing.shards.get(shard)
        return listed is not None and any(self._goes_beyond(parent) for parent in listed.parents)

    def _name(self, shard: str) -> str:
        return f"kinesis:{self._address.stream}/{shard}"

    # Which shards are read

    def _begin_shards(self, seal_new: bool) -> None:
        listing = self._pool.listing
        if listing is None or (listing is self._listing and not self._look_again):
            return
        if self._listing is None:
            self._check_unfinished(listing)
            self._look_back.begin(listing)
        self._listing, self._look_again = listing, False
        own = [shard for shard in listing.shards.values() if self._owns(shard)]
        self._waiting = [shard for shard in own if shard.id not in self._shards]
        if not self._waiting:
            return
        if any(part.source in map(self._name, self._shards) for part in self.log.read()):
            self._give_way()
            return
        origin = self._origin(listing, seal_new)
        if origin is None:
            return
        for shard in self._waiting:
            if self.log.last(self._name(shard.id)) or all(self._is_read(p, listing) for p in shard.parents):
                self._begin(shard, origin)
        self._waiting = [shard for shard in self._waiting if shard.id not in self._shards]

    def _check_unfinished(self, listing: Listing) -> None:
        for source, parts in self._unfinished.items():
            if source.removeprefix(self._name("")) not in listing.shards:
                raise _gone(source, sum(part.records for part in parts))

    def _is_read(self, shard: str, listing: Listing) -> bool:
        """Whether a parent was read to its end, by whichever reader, or was trimmed as a whole."""
        last = self.log.last(self._name(shard))
        return shard not in listing.shards or (last is not None and Span.decode(last.tail).closed)

    def _origin(self, listing: Listing, seal_new: bool) -> str | None:
        """Where shards begin that have not been read yet: resolved once, by the first reader of all."""
        source = f"kinesis:{self._address.stream}"
        last = self.log.last(source)
        if last is None:
            start = self._address.start
            if start == "horizon" or not self._is_new:
                return HORIZON
            if not seal_new:
                return None
            time_us = int(listing.clock * 1e6) if start == "latest" else int(start)
            part = Part(source, 0, 0, 0, time_us, Span("", f"@{time_us}").encode())
            (last,) = self.log.seal([part])
        return Span.decode(last.tail).end

    def _begin(self, shard: Shard, origin: str) -> None:
        last = self.log.last(self._name(shard.id))
        parents = [self.log.last(self._name(parent)) for parent in shard.parents]
        # What follows a record after the origin does so too; the horizon is found faster than a time.
        place = HORIZON if any(parent and parent.position for parent in parents) else origin
        span = Span.decode(last.tail) if last else Span("", place)
        replays = self._unfinished.pop(self._name(shard.id), [])
        end = self._address.end
        over = span.closed or (end is not None and span.until >= end)
        bounds = [self._shards[p].bound_us for p in shard.parents if p in self._shards]
        self._shards[shard.id] = _State(
            last.position if last else 0,
            span.end,
            len(replays),
            over,
            max((bound for bound in bounds if bound is not None), default=None),
        )
        if replays or not over:
            again = [(part, self._look_back.expired(part)) for part in replays]
            doubtful = not over and self._look_back.doubts(shard, span.end)
            self._pool.start(shard.id, again, None if over else span.end, doubtful)

    # What they give

    def _collect(self, seal_new: bool) -> list[Answer]:
        """Answers that are there, at most one a shard; with `seal_new` false only what is sealed."""
        group: dict[str, Answer] = {}
        size = 0
        while size < _GROUP_BYTES:
            answer = self._held_back or self._pool.take()
            self._held_back = None
            if answer is None:
                break
            if isinstance(answer, Failure):
                with explained(f"{self._address.where} {answer.what}"):
                    raise answer.error
            if answer.shard in group:
                self._held_back = answer
                break
            if answer.part is not None or seal_new:
                group[answer.shard] = answer
                size += sum(len(payload) for _, payload in answer.rows)
        return list(group.values())

    def _seal(self, answers: Sequence[Answer]) -> list[Part | None] | None:
        """The part of each answer, None for one that says nothing; None if another reader was faster."""
        for answer in answers:
            if answer.cut:
                self._look_back.missing(answer.shard, self._shards[answer.shard].position)
        parts = [answer.part or self._part(answer) for answer in answers]
        new = [part for part, answer in zip(parts, answers, strict=True) if part and not answer.part]
        if any(self._overtaken(part) for part in new) or (new and self.log.seal(new) != new):
            return None
        for answer, part in zip(answers, parts, strict=True):
            self._note(answer, part)
        return parts

    def _overtaken(self, part: Part) -> bool:
        """Whether the log knows more of the shard already: it was read when another shard was sealed."""
        last = self.log.last(part.source)
        return last is not None and last.position != part.after

    def _part(self, answer: Answer) -> Part | None:
        if not (answer.rows or answer.span.closed or answer.span.until or self._mark_is_due(answer)):
            return None
        after, count = self._shards[answer.shard].position, len(answer.rows)
        arrival_us = min((arrival for arrival, _ in answer.rows), default=answer.bound_us)
        return Part(self._name(answer.shard), after, after + count, count, arrival_us, answer.span.encode())

    def _mark_is_due(self, answer: Answer) -> bool:
        last = self.log.last(self._name(answer.shard))
        return not answer.behind and answer.bound_us - (last.arrival_us if last else 0) >= _MARK_US

    def _note(self, answer: Answer, part: Part | None) -> None:
        state = self._shards[answer.shard]
        state.behind, state.heard = answer.behind, time.monotonic()
        if answer.part:
            state.replays -= 1
        elif part:
            state.position, state.place = part.position, answer.span.end
            state.over = answer.span.closed or bool(answer.span.until)
            state.closed_at = time.time()
            self._look_again |= answer.span.closed
        if answer.rows:
            state.bound_us = min(arrival for arrival, _ in answer.rows)

    def _rows(self, answer: Answer, part: Part | None) -> Iterator[Row]:
        """The rows of an answer that have no fate yet."""
        if part is None:
            return
        # Of a part that is read again the retention may have taken the first records.
        missing = part.records - len(answer.rows)
        lost = [p for p in range(part.after + 1, part.after + missing + 1) if not self.fated(part.source, p)]
        if missing < 0 or lost:
            raise _gone(part.source, len(lost))
        for position, (arrival, payload) in enumerate(answer.rows, part.after + missing + 1):
            if not self.fated(part.source, position):
                yield part.source, position - 1, position, arrival, payload

    def _batches_of(self, rows: list[Row]) -> Iterator[pa.RecordBatch]:
        for first in range(0, len(rows), self.options.batch_rows):
            yield raw_events(rows[first : first + self.options.batch_rows])

    def _give_way(self) -> None:
        """Another reader was faster with a shard of ours: whatever it sealed is read again."""
        self._pool.close()
        self.read_ledger()
        self._open(self.log.read())

    # The watermark

    def _settle(self) -> None:
        """What was handed out last has been emitted: each shard is where its answer ended."""
        for answer in self._emitting:
            state = self._shards[answer.shard]
            if answer.rows:
                state.moved = time.monotonic()
            if answer.rows or not self._at_its_end(answer, state):
                state.bound_us = answer.bound_us
        self._emitting = []

    def _at_its_end(self, answer: Answer, state: _State) -> bool:
        """Whether children go on from the last record of a shard, so that the time of asking says nothing.

        A shard that is closed and has nothing more will say so soon; but see _MOVING_SECONDS.
        """
        listed = self._listing.shards.get(answer.shard) if self._listing else None
        ending = listed is not None and listed.closed and time.monotonic() - state.moved < _MOVING_SECONDS
        return answer.span.closed or ending

    def _advance(self) -> None:
        """The watermark is that of the shard furthest behind; an idle one is at the time it was asked.

        A shard that was closed counts until the stream was listed again: its children take its place.
        """
        listing = self._listing
        if listing is None:
            return
        open_ = [s for s in self._shards.values() if not s.done or s.closed_at >= listing.started]
        bounds = [state.bound_us for state in open_]
        parents = {parent for shard in self._waiting for parent in shard.parents if parent in listing.shards}
        bounds += [self._bound_of_other(parent) for parent in parents - self._shards.keys()]
        if None not in bounds:
            first = min((b for b in bounds if b is not None), default=int(listing.started * 1e6))
            self.advance_watermark(first / 1e6)

    def _bound_of_other(self, parent: str) -> int:
        """How far another reader is with a parent of a shard of ours, whose records all arrived later.

        Only while that reader gets on with it: see _MOVING_SECONDS.
        """
        last, now = self.log.last(self._name(parent)), time.monotonic()
        position = last.position if last else 0
        before, since = self._moved.get(parent, (-1, now))
        if position != before:
            self._moved[parent] = position, now
        elif now - since > _MOVING_SECONDS:
            return int(time.time() * 1e6)
        return last.arrival_us if last else 0


def _gone(source: str, records: int) -> BeamrecError:
    return BeamrecError(
        f"--input {source}: {records} of its events have no fate yet and are no longer in the stream, or not "
        "as they were read: its retention is shorter than the job was down, or it was made anew; start a new "
        "output folder"
    )
