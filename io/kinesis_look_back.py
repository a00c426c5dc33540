"""Whether a stream's retention was faster than the job: records that are gone before anybody read them.

Kinesis says nothing of it: a place that was trimmed reads on at the oldest record that is left, and a shard
whose records have all expired is no longer listed. But what arrived within the retention is still there, so
nothing can be missing of a shard that was read up to a time within it, and the ledger says up to when each
shard was read. Beyond that the record at the place is looked for: as long as it is there, so is what follows.
"""

import datetime as dt
from collections.abc import Callable, Iterable

from beamrec.io.gaps import Gap, note_gap
from beamrec.io.kinesis_client import HORIZON, Shard
from beamrec.io.kinesis_fetch import Listing, Span
from beamrec.io.source_log import Part
from beamrec.io.store import Store

__all__ = ["LookBack"]


class LookBack:
    """What the ledger knew of the shards of a stream when a reader began, against what is still there.

    Args:
      store: where gaps are noted.
      name: of a shard in the ledger.
      stream: name of the stream in the ledger, with which those of its shards begin.
      parts: of the ledger.
    """

    def __init__(self, store: Store, name: Callable[[str], str], stream: str, parts: Iterable[Part]) -> None:
        self._store, self._name = store, name
        ours = [part for part in parts if part.source == stream or part.source.startswith(name(""))]
        self._last = {part.source.removeprefix(name("")): part for part in ours if part.source != stream}
        self._newest_us = max((part.arrival_us for part in ours), default=0)
        self._listing: Listing | None = None

    def begin(self, listing: Listing) -> None:
        """Takes the first listing of the shards; notes those that were trimmed as a whole."""
        if self._listing is not None:
            return
        self._listing = listing
        for shard, part in self._last.items():
            span = Span.decode(part.tail)
            gone = shard not in listing.shards and not span.closed and not span.until
            if gone and part.arrival_us < listing.horizon_us:
                self._note(shard, part.position, part.arrival_us, "the whole shard has expired")

    def doubts(self, shard: Shard, place: str) -> bool:
        """Whether the record at a place may be gone, so that its reader has to look.

        A gap that needs no look, where there is no such record, is noted.
        """
        listing = self._listing
        # A shard that was listed later began later: nothing of it has expired.
        if listing is None or shard.id not in listing.shards:
            return False
        since_us = self._read_up_to(shard)
        if since_us >= listing.horizon_us:
            return False
        last = self._last.get(shard.id)
        if last is None or _is_no_record(Span.decode(last.tail).end):
            self._note(shard.id, 0, since_us, "it holds no record by which to tell what has expired")
            return False
        return place == Span.decode(last.tail).end

    def missing(self, shard: str, after: int) -> None:
        """Notes that the record at a doubtful place is gone."""
        since_us = self._last[shard].arrival_us
        self._note(shard, after, since_us, "the last record that was read is no longer there")

    def expired(self, part: Part) -> bool:
        """Whether the record before a sealed part may be gone."""
        return self._listing is not None and part.arrival_us < self._listing.horizon_us

    def _read_up_to(self, shard: Shard) -> int:
        """What arrived in the shard before this time was read, microseconds since the epoch."""
        known = [self._last[name] for name in (shard.id, *shard.parents) if name in self._last]
        if shard.id in self._last:
            known = known[:1]
        return max((part.arrival_us for part in known), default=self._newest_us)

    def _note(self, shard: str, after: int, since_us: int, what: str) -> None:
        since = dt.datetime.fromtimestamp(since_us / 1e6, dt.UTC).isoformat(timespec="seconds")
        reason = (
            f"{what}; it had been read up to {since}, which is longer ago than the stream keeps its records: "
            "those that arrived since may be lost, and nobody can say how many; raise the retention"
        )
        note_gap(self._store, Gap(self._name(shard), after, since_us, reason))


def _is_no_record(place: str) -> bool:
    return place == HORIZON or place.startswith("@")
