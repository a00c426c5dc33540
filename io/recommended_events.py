"""Events out of recommendations: what an output folder shows of an interval, to be scored once more."""

import collections
import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa

from beamrec.io.events import SourceOptions
from beamrec.io.ledger_source import LedgerSource
from beamrec.io.reader import LedgerReader
from beamrec.io.source_log import Part
from beamrec.io.store import open_store
from beamrec.io.visible_records import RecordFile, find_records, read_records
from beamrec.schemas.events import RESERVED_FIELDS
from beamrec.schemas.replays import REPLAYED

__all__ = ["RecommendedEvents"]

_SYSTEM = "recommendations:"
_OPTION = "--recommendations"


@dataclasses.dataclass(frozen=True)
class RecommendedEvents(LedgerSource):
    """The events of the visible records of an output folder, as batches of REPLAYED.

    An event arrives at its event time, so none is late, and keeps the id that it was visible with.

    Attributes:
      options: what the source needs to know of the job.
      recommendations: URI of the folder.
      begin, end: event times from `begin` on and before `end`.
    """

    options: SourceOptions
    recommendations: str
    begin: datetime
    end: datetime

    def make_reader(self) -> "_Reader":
        """A reader that resumes from the ledger."""
        return _Reader(self)


class _Reader(LedgerReader):
    def __init__(self, source: RecommendedEvents) -> None:
        super().__init__(source.options)
        self._source = source
        self._from = open_store(source.recommendations, _OPTION)
        self.log.read()
        files = find_records(self._from, source.begin, source.end)
        self._files = collections.deque(file for file in files if self._is_left(file))

    def _is_left(self, file: RecordFile) -> bool:
        part = self.log.last(_SYSTEM + file.path)
        return part is None or self.unfinished(part)

    def at_end(self) -> bool:
        """See LedgerReader."""
        return not self._files

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """See LedgerReader: one file, which was sealed before or is now."""
        if not seal_new:
            # A file that came late, of an hour before those that were read, does not hold a drain back.
            while self._files and self.log.last(_SYSTEM + self._files[0].path) is None:
                self._files.popleft()
        if not self._files:
            return None
        file = self._files.popleft()
        known = self.log.last(_SYSTEM + file.path)
        rows = list(read_records(self._from, file, self._source.begin, self._source.end))
        self.advance_watermark(file.hour.timestamp())
        if rows and not known:
            part = Part(_SYSTEM + file.path, 0, len(rows), len(rows), int(file.hour.timestamp() * 1e6))
            self.log.seal([part])
        return self._batches_of(_SYSTEM + file.path, rows)

    def _batches_of(
        self, source: str, records: list[tuple[datetime, dict[str, Any]]]
    ) -> Iterator[pa.RecordBatch]:
        rows = [
            _row(source, after, time, record)
            for after, (time, record) in enumerate(records)
            if not self.fated(source, after + 1)
        ]
        for first in range(0, len(rows), self.options.batch_rows):
            yield pa.RecordBatch.from_pylist(rows[first : first + self.options.batch_rows], schema=REPLAYED)


def _row(source: str, after: int, time: datetime, record: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in record.items() if name not in RESERVED_FIELDS}
    return {
        "source": source,
        "after": after,
        "position": after + 1,
        "arrival": time,
        "payload": orjson.dumps(own),
        "known_id": record["event_id"],
        "attempt": 0,
        "origin": None,
    }
