"""What the sources of event files share, on a disk or in an object store: listing, sealing, reading again.

A file's path below the folder is the source's name; positions are offsets into its text, which is that of
the unpacked file where it is compressed with gzip. Sub-folders are read too; names that begin with `.` or
`_`, or end in `.tmp` or `.part`, are not.
"""

import abc
import collections
import dataclasses
import logging
import math
import time
import zlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from beamrec.io.event_text import GROUP_BYTES, Record
from beamrec.io.events import SourceOptions
from beamrec.io.ledger_source import LedgerSource
from beamrec.io.reader import LedgerReader, Row, raw_events
from beamrec.io.source_log import Part

__all__ = ["FolderReader", "FolderSource"]

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FolderSource(LedgerSource):
    """A folder of event files, read from where the ledger of the output says that it stands.

    Attributes:
      folder: where it is, in the terms of its system.
      options: what the source needs to know of the job.
      split_index: this is one of `options.splits` readers; files are dealt by their names.
    """

    folder: str
    options: SourceOptions
    split_index: int = 0

    def owns(self, name: str) -> bool:
        """Whether this split reads the file."""
        return zlib.crc32(name.encode()) % self.options.splits == self.split_index


class FolderReader(LedgerReader):
    """Reads files in the order of their arrival, some at a time, and seals what it reads.

    Args:
      source: the folder.
      system: what the names of its sources begin with, such as `file:`.
      list_seconds: least time between two listings.
    """

    def __init__(self, source: FolderSource, system: str, list_seconds: float) -> None:
        super().__init__(source.options)
        self.source = source
        self._system, self._list_seconds = system, list_seconds
        self._pending: collections.deque[tuple[float, str]] = collections.deque()
        self._next_listing = 0.0
        self._complaints: set[str] = set()
        self._replays = collections.deque(self._sealed())

    @abc.abstractmethod
    def know(self, name: str, part: Part) -> None:
        """Remembers the last sealed part of a file."""

    @abc.abstractmethod
    def scan(self) -> list[tuple[float, str]] | None:
        """(arrival in seconds, name) of the files of this split that have more than what is sealed.

        None if that cannot be told now.
        """

    @abc.abstractmethod
    def look(self, name: str) -> tuple[Part, list[Record]] | None:
        """What a file has more, as a part that is not sealed yet; None if it is nothing, or nothing now."""

    @abc.abstractmethod
    def reread(self, name: str, part: Part) -> list[Record]:
        """What a sealed part holds; raises BeamrecError if it is not there any more."""

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """See LedgerReader."""
        if self._replays:
            return self._replay()
        if not seal_new:
            return None
        if not self._pending:
            self._list()
        return self._seal()

    def source_name(self, name: str) -> str:
        """How the ledger calls a file."""
        return self._system + name

    def complain(self, name: str, message: str, *values: object) -> None:
        """Logs what is wrong with a file, once: it is looked at again and again. It holds nothing back."""
        if name not in self._complaints:
            self._complaints.add(name)
            _LOGGER.error("%s " + message, name, *values)

    def _sealed(self) -> list[Part]:
        """Sealed parts that have to be read again, in order of arrival."""
        again = []
        for part in self.log.read():
            if self._is_mine(part):
                self.know(part.source.removeprefix(self._system), part)
                if self.unfinished(part):
                    again.append(part)
        return sorted(again, key=lambda part: part.arrival_us)

    def _replay(self) -> Iterator[pa.RecordBatch]:
        group, size = [], 0
        while self._replays and size < GROUP_BYTES:
            part = self._replays.popleft()
            group.append((part, self.reread(part.source.removeprefix(self._system), part)))
            size += part.position - part.after
        self.advance_watermark(group[0][0].arrival_us / 1e6)
        return self._to_batches(group)

    def _list(self) -> None:
        if time.monotonic() < self._next_listing:
            return
        began, now = time.monotonic(), time.time()
        found = self.scan()
        if found is not None:
            found = [each for each in found if self._is_wanted(each[0])]
            self._pending.extend(sorted(found))
            # With nothing pending, whatever comes next was modified after this listing began. A line whose
            # end is still missing holds nothing back (it arrives when its end is written), nor does a file
            # that cannot be read.
            held = (arrival for arrival, name in found if name not in self._complaints)
            self.advance_watermark(min(held, default=now))
        # Never more than a fifth of the time: a large folder is listed less often.
        self._next_listing = began + max(self._list_seconds, 5 * (time.monotonic() - began))

    def _is_wanted(self, written: float) -> bool:
        begin, end = self.options.written_us or (0, math.inf)
        return begin <= round(written * 1e6) < end

    def _seal(self) -> Iterator[pa.RecordBatch] | None:
        """Reads and seals pending files up to the size of a group."""
        found: list[tuple[Part, list[Record]]] = []
        size = 0
        while self._pending and size < GROUP_BYTES:
            arrival, name = self._pending.popleft()
            read = self.look(name)
            if read:
                found.append(read)
                length = read[0].position - read[0].after
                size += length
                if length >= GROUP_BYTES // 2:
                    # A long file: the rest of it follows at once, and keeps its place in line.
                    self._pending.appendleft((arrival, name))
                    break
        if not found:
            return None
        mine = [part for part in self.log.seal_on([part for part, _ in found]) if self._is_mine(part)]
        for part in mine:
            self.know(part.source.removeprefix(self._system), part)
        if mine != [part for part, _ in found]:
            # Another reader was here first, and may have gone on: what it sealed is read as it is sealed.
            self._replays.extend(sorted(mine, key=lambda part: part.arrival_us))
            return iter(())
        self.advance_watermark(min(part.arrival_us for part in mine) / 1e6)
        return self._to_batches(found)

    def _is_mine(self, part: Part) -> bool:
        name = part.source.removeprefix(self._system)
        return part.source.startswith(self._system) and self.source.owns(name)

    def _to_batches(self, group: Sequence[tuple[Part, list[Record]]]) -> Iterator[pa.RecordBatch]:
        """Batches of RAW_EVENTS over several parts, without the events that already have a fate."""
        rows: list[Row] = []
        for part, records in group:
            after = part.after
            for offset, payload in records:
                position = part.after + offset
                if not self.fated(part.source, position):
                    rows.append((part.source, after, position, part.arrival_us, payload))
                after = position
                if len(rows) == self.options.batch_rows:
                    yield raw_events(rows)
                    rows = []
        if rows:
            yield raw_events(rows)
