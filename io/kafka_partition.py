"""What a reader knows of one Kafka partition: what is sealed, what has come, and how far the broker was read.

No client here: what the broker delivers goes in, parts to seal and whole sealed parts come out.

A record's position is its offset plus one, and it begins where the record before it ends: offsets that no
record has (compaction, transactions) belong to the record after them, so the intervals tile.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from beamrec.io.source_log import Part
from beamrec.schemas.errors import BeamrecError

__all__ = ["Partition", "Place", "Record", "next_offset", "place_of"]

_QUIET_US = 60_000_000


class Record(NamedTuple):
    """One record: where it ends, when the broker says that it came (microseconds, -1 unknown), its value."""

    position: int
    stamp_us: int
    value: bytes


class Place(NamedTuple):
    """What `Part.tail` holds: the topic as the cluster numbers it, and the offset to read the part from."""

    topic_id: str
    offset: int

    def __str__(self) -> str:
        return f"{self.topic_id}@{self.offset}"


def place_of(part: Part) -> Place:
    """Raises BeamrecError if the ledger holds something else there."""
    topic_id, _, offset = part.tail.rpartition("@")
    if not offset.isdecimal():
        raise BeamrecError(
            f"the ledger has no place for {part.source} at {part.after} but {part.tail!r}: restore _ledger "
            "from a backup, or start a new output folder"
        )
    return Place(topic_id, int(offset))


def next_offset(part: Part) -> int:
    """Where reading goes on after a part."""
    return max(part.position, place_of(part).offset)


@dataclasses.dataclass
class Partition:
    """One partition as it is read.

    Attributes:
      source: its name in the ledger.
      topic_id: of the topic that its offsets belong to.
      sealed_to: position up to which it is sealed.
      next_new: offset that the next part is read from.
      emitted_to: position up to which its rows were handed out, or had a fate before.
      base: offset from which it is read; a sealed part that begins before it is read in part only.
      reached: offset up to which the broker was read.
      limit: offset at which a bounded read ends, if any.
      front_us: records that come from now on arrived at this time or later; None until that is known.
      at_end: whether all was read that was there when the broker was last asked.
    """

    source: str
    topic_id: str
    sealed_to: int
    next_new: int
    emitted_to: int
    base: int = 0
    reached: int = 0
    limit: int | None = None
    front_us: int | None = None
    at_end: bool = False
    _quiet_since_us: int | None = None
    _sealed: collections.deque[Part] = dataclasses.field(default_factory=collections.deque)
    _records: collections.deque[Record] = dataclasses.field(default_factory=collections.deque)

    @classmethod
    def resume(cls, parts: Iterable[Part], resume: int) -> "Partition":
        """A partition whose sealed parts, at least one, are in the ledger; up to `resume` all has a fate."""
        *_, last = known = list(parts)
        unfinished = [part for part in known if part.position > resume]
        emitted_to = max(unfinished[0].after, resume) if unfinished else last.position
        partition = cls(last.source, place_of(last).topic_id, last.position, next_offset(last), emitted_to)
        partition._sealed.extend(unfinished)
        partition.restart()
        return partition

    def restart(self) -> None:
        """Forgets what has come and was not handed out: the broker is read again from `base` on."""
        self._records.clear()
        self.at_end = False
        first = max(place_of(self._sealed[0]).offset, self.emitted_to) if self._sealed else self.next_new
        self.base = self.reached = first

    @property
    def owed(self) -> bool:
        """Whether sealed records are still to be handed out."""
        return bool(self._sealed)

    @property
    def finished(self) -> bool:
        """Whether a bounded read of it has come to its end."""
        return self.limit is not None and self.reached >= self.limit and not self._sealed

    def take(self, record: Record) -> None:
        """A record as the broker delivers it."""
        self.reached = record.position
        if self.limit is None or record.position <= max(self.limit, self.sealed_to):
            self._records.append(record)

    def see_end(self, offset: int, asked_us: int) -> None:
        """The broker's answer of where the partition ended when it was asked."""
        self.at_end = self.reached >= offset
        if self.at_end and not self._sealed:
            self.see_arrival(asked_us)

    def see_arrival(self, arrival_us: int | None) -> None:
        """All that arrived before was handed out."""
        if arrival_us is not None:
            self.front_us = max(arrival_us, self.front_us or 0)

    def drop_new(self) -> None:
        """Forgets what has come and is not sealed: a drain leaves it to the next start."""
        while self._records and self._records[-1].position > self.sealed_to:
            self._records.pop()

    def new_part(self, now_us: int) -> Part | None:
        """What has come beyond the last sealed part, as a part to seal.

        After a quiet minute also the bare place that was reached, if it lies beyond the last record (the
        marker of a transaction): else, when all before it has expired, something would seem to be lost.
        """
        if not self._records or self._records[-1].position <= self.sealed_to:
            return self._reached_part(now_us)
        self._quiet_since_us = None
        count = sum(record.position > self.sealed_to for record in self._records)
        place = Place(self.topic_id, self.next_new)
        last = self._records[-1].position
        return Part(self.source, self.sealed_to, last, count, now_us, str(place))

    def _reached_part(self, now_us: int) -> Part | None:
        if not self.at_end or self._sealed or self.reached <= self.next_new:
            self._quiet_since_us = None
            return None
        self._quiet_since_us = self._quiet_since_us or now_us
        if now_us - self._quiet_since_us < _QUIET_US:
            return None
        place = Place(self.topic_id, self.reached)
        return Part(self.source, self.sealed_to, self.sealed_to, 0, now_us, str(place))

    def add_sealed(self, part: Part) -> None:
        """A part that holds, perhaps another reader's that has seen less or more."""
        self._sealed.append(part)
        self.sealed_to = part.position
        self.next_new = next_offset(part)

    def whole_parts(self) -> Iterator[tuple[Part, int, list[Record]]]:
        """Sealed parts whose records are all here, each with the position at which its first record begins.

        Raises:
          BeamrecError: a part has other records than were counted when it was sealed.
        """
        while self._sealed and self._complete(self._sealed[0]):
            part = self._sealed.popleft()
            # Others may have read on so far that the log has no parts any more of what lies between.
            after = max(self.emitted_to, part.after)
            while self._records and self._records[0].position <= after:
                self._records.popleft()
            records = []
            while self._records and self._records[0].position <= part.position:
                records.append(self._records.popleft())
            if self.base <= max(part.after, place_of(part).offset) and len(records) != part.records:
                raise BeamrecError(
                    f"{part.source} has {len(records)} records from offset {place_of(part).offset} to "
                    f"{part.position - 1} where {part.records} were counted, and not all of them had a fate: "
                    "they were compacted or expired too soon; raise min.compaction.lag.ms and retention "
                    "above the time that a job may stand still, and start a new output folder"
                )
            self.emitted_to = part.position
            yield part, after, records

    def _complete(self, part: Part) -> bool:
        last = self._records[-1].position if self._records else 0
        return max(last, self.reached) >= part.position
