"""What has been read: parts of sources with their record counts and stored arrival times.

This is where *in* is counted (DESIGN 5): at the source, before anything else. It also keeps arrival times
for sources that do not keep them themselves (a file), or a replay would give other event times. The log
is a sequence of numbered entries, each with the parts that one look at the input found, so a thousand
small files cost one write. Of two readers that reach a place at the same time one wins, and the other
adopts what the winner wrote.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence

from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError

__all__ = ["Part", "SourceLog", "read_parts"]

_FOLDER = "_ledger/sources"
_NAME = re.compile(r"\d{12}\.json")


@dataclasses.dataclass(frozen=True)
class Part:
    """A contiguous piece (`after`, `position`] of one source.

    Attributes:
      records: how many events it holds.
      arrival_us: arrival time of all of them, microseconds since the epoch, UTC.
      tail: hash of the part's last bytes, by which a source that was replaced is recognised; "" if the
        source cannot be replaced.
    """

    source: str
    after: int
    position: int
    records: int
    arrival_us: int
    tail: str = ""


def _path(number: int) -> str:
    return f"{_FOLDER}/{number:012d}.json"


def read_parts(store: Store, first: int = 0) -> Iterator[list[Part]]:
    """The log's entries from number `first` on, in order.

    Raises:
      BeamrecError: an entry is damaged.
    """
    number = first
    while True:
        try:
            data = store.read(_path(number))
        except FileNotFoundError:
            return
        try:
            yield [Part(**part) for part in json.loads(data)]
        except (ValueError, TypeError) as error:
            raise BeamrecError(
                f"the ledger entry {_path(number)} is damaged ({error}): restore the _ledger folder together "
                "with the output from a backup, or start a new output folder"
            ) from error
        number += 1


class SourceLog:
    """Reads and extends the log of one output folder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0
        self._ends: dict[str, Part] = {}

    def read(self) -> list[Part]:
        """The parts that this object has not seen yet, in order.

        Raises:
          BeamrecError: an entry is damaged or missing, or parts of a source do not join.
        """
        new = []
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
        """
        held: dict[str, Part] = {}
        while True:
            wanted = {part.source: part.after for part in parts}
            held |= {p.source: p for p in self.read() if wanted.get(p.source) == p.after}
            new = [part for part in parts if part.source not in held]
            data = json.dumps([dataclasses.asdict(part) for part in new]).encode()
            if not new or self._store.create(_path(self._next), data):
                break
        if new:
            self._next += 1
            for part in new:
                self._add(part)
        return [held.get(part.source, part) for part in parts]

    def _add(self, part: Part) -> None:
        before = self._ends.get(part.source)
        if before and before.position != part.after:
            raise BeamrecError(
                f"the ledger has {part.source} up to {before.position} and then from {part.after} on: an "
                "entry of _ledger/sources is missing; restore the folder from a backup"
            )
        self._ends[part.source] = part


def has_gap(store: Store) -> bool:
    """Whether an entry in the middle is missing: what follows it would never be read."""
    names = [name for name in store.names(_FOLDER) if _NAME.fullmatch(name)]
    return bool(names) and names[-1] != f"{len(names) - 1:012d}.json"
