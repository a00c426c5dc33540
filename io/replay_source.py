"""Dead letters as a bounded source: what a replay has chosen, from where the ledger says that it stands."""

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from beamrec.io.dead_letters import read_files
from beamrec.io.events import SourceOptions
from beamrec.io.ledger_source import LedgerSource
from beamrec.io.reader import LedgerReader
from beamrec.io.replays import Chosen, selections
from beamrec.io.source_log import Part
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.replays import REPLAYED

__all__ = ["DeadLetters", "replayed_batch"]

_GROUP_FILES = 64


@dataclasses.dataclass(frozen=True)
class DeadLetters(LedgerSource):
    """The selections of those numbers, as batches of REPLAYED; ends behind the last letter.

    Attributes:
      options: what the source needs to know of the job.
      numbers: of selections that stand in the ledger of the output folder, which holds the letters too.
    """

    options: SourceOptions
    numbers: tuple[int, ...]
    split_index: int = 0

    def make_reader(self) -> "_Reader":
        """A reader that resumes from the ledger."""
        return _Reader(self)


@dataclasses.dataclass(frozen=True)
class _File:
    """Letters of a file, and the position before the first of them in their source."""

    source: str
    after: int
    chosen: Chosen


def replayed_batch(source: str, letters: Sequence[DeadLetter]) -> pa.RecordBatch:
    """Letters as REPLAYED, at the positions from 1 on."""
    rows = [_row(source, after, letter) for after, letter in enumerate(letters)]
    return pa.RecordBatch.from_pylist(rows, schema=REPLAYED)


class _Reader(LedgerReader):
    def __init__(self, source: DeadLetters) -> None:
        super().__init__(source.options)
        meant = [s for s in selections(self._store) if s.number in source.numbers]
        self._ends = {name: count for selection in meant for name, count in selection.sources.items()}
        files = [_File(*placed) for selection in meant for placed in selection.placed()]
        # By the hour of their arrival over all selections: the watermark follows it.
        files.sort(key=lambda file: file.chosen.file.hour)
        left = (f for f in files if self._is_left(f))
        self._files = collections.deque(left)
        self._sealed = False

    def _is_left(self, file: _File) -> bool:
        return any(not self.fated(file.source, file.after + n + 1) for n in range(len(file.chosen.lines)))

    def at_end(self) -> bool:
        """See LedgerReader."""
        return not self._files

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """See LedgerReader; a drain may end anywhere: what is left keeps the fate that it has."""
        if not self._files or not seal_new:
            return None
        self._seal()
        hour = self._files[0].chosen.file.hour
        self.advance_watermark(hour.timestamp())
        group: list[_File] = []
        while self._files and self._files[0].chosen.file.hour == hour and len(group) < _GROUP_FILES:
            group.append(self._files.popleft())
        return self._batches_of(group)

    def _seal(self) -> None:
        if self._sealed:
            return
        self.log.read()
        new = [
            Part(name, 0, count, count, 0) for name, count in self._ends.items() if not self.log.last(name)
        ]
        if new:
            self.log.seal(new)
        self._sealed = True

    def _batches_of(self, group: list[_File]) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = []
        for file, letters in zip(
            group, read_files(self._store, [f.chosen.file.path for f in group]), strict=True
        ):
            for number, line in enumerate(file.chosen.lines):
                after = file.after + number
                if not self.fated(file.source, after + 1):
                    rows.append(_row(file.source, after, letters[line]))
                if len(rows) == self.options.batch_rows:
                    yield pa.RecordBatch.from_pylist(rows, schema=REPLAYED)
                    rows = []
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=REPLAYED)


def _row(source: str, after: int, letter: DeadLetter) -> dict[str, Any]:
    """A row of REPLAYED; what was first seen then arrives then, so that its event time stays the same."""
    return {
        "source": source,
        "after": after,
        "position": after + 1,
        "arrival": datetime.fromisoformat(letter.first_seen),
        "payload": letter.payload,
        "known_id": letter.event_id,
        "attempt": letter.attempt,
        "origin": json.dumps(letter.source),
    }
