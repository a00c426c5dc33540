"""What has been read: parts of sources with their record counts and stored arrival times.

This is where *in* is counted: at the source, before anything else. It also keeps arrival times
for sources that do not keep them themselves (a file), or a replay would give other event times. The log
is a sequence of numbered entries, each with the parts that one look at the input found, so a thousand
small files cost one write. Of two readers that reach a place at the same time one wins, and the other
adopts what the winner wrote. Entries that snapshots hold go, so a source that is looked at several times a
second for ever leaves a bounded number of objects.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from beamrec.io.numbered import check_whole, damaged, numbers, read_on
from beamrec.io.snapshots import (
    SOURCE_FOLDER,
    newest_account,
    newest_account_name,
    source_entry_path,
    sources_of,
)
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError

__all__ = ["Part", "SourceLog", "parts_of", "read_parts"]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A contiguous piece (`after`, `position`] of one source.

    Attributes:
      records: how many events it holds.
      arrival_us: arrival time of all of them, microseconds since the epoch, UTC.
      tail: what the source needs to find or recognise the place, such as a hash of the part's last bytes;
        "" if it needs nothing.
    """

    source: str
    after: int
    position: int
    records: int
    arrival_us: int
    tail: str = ""


def read_parts(store: Store, first: int = 0) -> Iterator[list[Part]]:
    """The log's entries from number `first` on, in order.

    Raises:
      BeamrecError: an entry is damaged.
    """
    for path, data in read_on(store, source_entry_path, first):
        try:
            yield [Part(**part) for part in json.loads(data)]
        except (ValueError, TypeError) as error:
            raise damaged(path, error) from error


def parts_of(table: pa.Table) -> list[Part]:
    """The parts of a snapshot's table PARTS."""
    return [Part(**row) for row in table.to_pylist()]


def _holds(found: Part, wanted: Part | None) -> bool:
    """Whether a part that was found is another reader's look at the same place."""
    if wanted is None or found.after != wanted.after:
        return False
    # A part without records marks a place and leaves it to be read.
    return found.position > found.after or wanted.position == wanted.after


def _overtakes(found: Part, wanted: Part | None) -> bool:
    """Whether another reader has been where a part is to begin, or beyond it."""
    return wanted is not None and (_holds(found, wanted) or found.position > wanted.after)


class SourceLog:
    """Reads and extends the log of one output folder, beginning at the newest snapshot.

    The parts that a snapshot holds are, of every source, the last one and all that are not wholly fated.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0
        self._ends: dict[str, Part] = {}

    def read(self) -> list[Part]:
        """The parts that this object has not seen yet, those of a source in order.

        Raises:
          BeamrecError: an entry is damaged or missing, or parts of a source do not join.
        """
        new = self._begin() if self._next == 0 else []
        for parts in read_parts(self._store, self._next):
            self._next += 1
            for part in parts:
                self._add(part)
                new.append(part)
        return new

    def last(self, source: str) -> Part | None:
        """The last part of a source, as far as the log has been read."""
        return self._ends.get(source)

    def seal(self, parts: Sequence[Part]) -> list[Part]:
        """Records parts durably; returns the parts that hold, which may be another reader's.

        Args:
          parts: at most one a source, each beginning where the last one of its source ends.

        Raises:
          BeamrecError: another job has gone on with the folder, and this reader does not know how far.
        """
        wanted = {part.source: part for part in parts}
        held = {p.source: p for p in self.seal_on(parts) if _holds(p, wanted.get(p.source))}
        for part in parts:
            if part.source not in held:
                self._check_joins(part)
        return [held[part.source] for part in parts]

    def seal_on(self, parts: Sequence[Part]) -> list[Part]:
        """As `seal`, for a reader that goes on from whatever others have sealed, however much of a source.

        Returns:
          All parts that this object had not seen, those of a source in order, and last those given that hold.
          Of other sources too.

        Raises:
          BeamrecError: a part given does not begin where the last one of its source ended that was returned
            before, here or by `read`.
        """
        wanted = {part.source: part for part in parts}
        overtaken: set[str] = set()
        found: list[Part] = []
        while True:
            read = self.read()
            found += read
            overtaken |= {part.source for part in read if _overtakes(part, wanted.get(part.source))}
            new = [part for part in parts if part.source not in overtaken]
            if not new or self._append(new):
                return found + new

    def _append(self, new: Sequence[Part]) -> bool:
        """Writes an entry; False, and no change, if its number is another's."""
        for part in new:
            self._check_joins(part)
        path = source_entry_path(self._next)
        if not self._store.create(path, json.dumps([dataclasses.asdict(part) for part in new]).encode()):
            return False
        if sources_of(newest_account_name(self._store)) > self._next:
            # The name was free because the entry that had it went: nobody will ever read this one.
            self._store.discard(path)
            self._next = 0
            return False
        self._next += 1
        for part in new:
            self._add(part)
        return True

    def _begin(self) -> list[Part]:
        """At the newest snapshot; returns the parts beyond what is known."""
        snapshot = newest_account(self._store)
        self._next = snapshot.sources_next if snapshot else 0
        check_whole(numbers(self._store, SOURCE_FOLDER, ".json"), self._next, SOURCE_FOLDER)
        parts = parts_of(snapshot.parts) if snapshot else []
        known = {source: part.position for source, part in self._ends.items()}
        self._ends |= {part.source: part for part in parts}
        return [p for p in parts if p.source not in known or p.position > known[p.source]]

    def _add(self, part: Part) -> None:
        self._check_joins(part)
        self._ends[part.source] = part

    def _check_joins(self, part: Part) -> None:
        before = self._ends.get(part.source)
        if before and before.position != part.after:
            raise BeamrecError(
                f"the ledger has {part.source} up to {before.position} and then from {part.after} on: an "
                "entry of _ledger/sources is missing, or another job went on with this output folder; one "
                "job at a time can write. If there was none, restore the folder from a backup"
            )
