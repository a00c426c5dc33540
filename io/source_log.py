"""What has been read: the parts of each source with their record counts and stored arrival times.

A source that does not keep arrival times itself (a file) needs them kept, or a replay would give other
event times. The log is also where *in* is counted (DESIGN 5): at the source, before anything else.
A part is named by where it begins, so of two readers that reach a place at the same time one wins and
the other adopts what the winner wrote.
"""

import dataclasses
import itertools
import json
from urllib.parse import quote, unquote

from beamrec.io.store import Store

__all__ = ["Part", "SourceLog"]

_FOLDER = "_ledger/sources"


@dataclasses.dataclass(frozen=True)
class Part:
    """A contiguous piece (`after`, `position`] of one source.

    Attributes:
      records: how many events it holds.
      arrival_us: arrival time of all of them, microseconds since the epoch, UTC.
    """

    source: str
    after: int
    position: int
    records: int
    arrival_us: int


class SourceLog:
    """The parts of every source of one output folder, durable and in order."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def sources(self) -> list[str]:
        """Names of all sources that anything was read from."""
        return [unquote(name) for name in self._store.names(_FOLDER)]

    def parts(self, source: str, first: int = 0) -> list[Part]:
        """The parts of a source from the `first` on, in order; raises ValueError if they do not join."""
        folder = f"{_FOLDER}/{quote(source, safe='')}"
        names = self._store.names(folder)[first:]
        parts = [Part(**json.loads(self._store.read(f"{folder}/{name}"))) for name in names]
        for before, part in itertools.pairwise(parts):
            if before.position != part.after:
                raise ValueError(
                    f"source log of {source}: a part ends at {before.position} and the next begins at "
                    f"{part.after}; restore the _ledger folder from a backup"
                )
        return parts

    def seal(self, part: Part) -> Part:
        """Records a part durably; returns the part that holds, which may be another reader's."""
        path = f"{_FOLDER}/{quote(part.source, safe='')}/{part.after:020d}.json"
        if self._store.create(path, json.dumps(dataclasses.asdict(part)).encode()):
            return part
        return Part(**json.loads(self._store.read(path)))
