"""Which dead letters each replay has chosen: numbered, immutable objects in the ledger.

A letter is chosen once, whatever becomes of it: a replay that was killed goes on with what it has chosen,
and one that is started twice finds nothing. What dies again has a letter of its own, which the next one may
choose.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator

from beamrec.io.dead_letters import LetterFile, Wanted, find_files, read_files
from beamrec.io.ledger import Progress
from beamrec.io.numbered import check_whole, damaged, numbers, read_on
from beamrec.io.store import Store
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import Fate
from beamrec.schemas.replays import replay_source

__all__ = ["Chosen", "Selection", "choose", "keep", "selections", "unfinished"]

_FOLDER = "_ledger/replays"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Letters of one file, by the numbers of their lines, ascending from 0."""

    file: LetterFile
    lines: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What one replay has chosen, by ascending hour.

    Those of the same fate are one source of the ledger, whose positions count them from 1 on.
    """

    number: int
    chosen: tuple[Chosen, ...]

    @property
    def sources(self) -> dict[str, int]:
        """Source → how many letters it has."""
        counts: collections.Counter[Fate] = collections.Counter()
        for each in self.chosen:
            counts[each.file.fate] += len(each.lines)
        return {replay_source(fate, self.number): count for fate, count in counts.items()}

    def placed(self) -> Iterator[tuple[str, int, Chosen]]:
        """(source, position before its first letter, letters) of each file."""
        ends: collections.Counter[str] = collections.Counter()
        for each in self.chosen:
            source = replay_source(each.file.fate, self.number)
            yield source, ends[source], each
            ends[source] += len(each.lines)


def choose(store: Store, wanted: Wanted) -> Iterator[tuple[LetterFile, list[tuple[int, DeadLetter]]]]:
    """Letters that are meant and were never chosen, with their lines, file by file.

    Raises:
      BeamrecError: a file of dead letters, or a selection, is damaged.
    """
    before: dict[str, set[int]] = collections.defaultdict(set)
    for selection in selections(store):
        for each in selection.chosen:
            before[each.file.path].update(each.lines)
    files = find_files(store, wanted)
    for file, letters in zip(files, read_files(store, [f.path for f in files]), strict=True):
        known = before.get(file.path, set())
        found = [
            (line, letter) for line, letter in enumerate(letters) if line not in known and wanted.has(letter)
        ]
        if found:
            yield file, found


def keep(store: Store, chosen: Iterable[Chosen]) -> Selection | None:
    """Writes a new selection; None if nothing was chosen. To be called by who holds the folder's lease."""
    found = tuple(chosen)
    if not found:
        return None
    number = len(numbers(store, _FOLDER, ".json"))
    data = [[each.file.path, _ranges(each.lines)] for each in found]
    store.create(_path(number), json.dumps(data, separators=(",", ":")).encode())
    return Selection(number, found)


def selections(store: Store) -> list[Selection]:
    """All that were ever chosen, in order; raises BeamrecError if one is missing or damaged."""
    check_whole(numbers(store, _FOLDER, ".json"), 0, _FOLDER)
    found: list[Selection] = []
    for path, data in read_on(store, _path, 0):
        try:
            chosen = [Chosen(LetterFile.of(name), _lines(ranges)) for name, ranges in json.loads(data)]
        except (ValueError, TypeError) as error:
            raise damaged(path, error) from error
        found.append(Selection(len(found), tuple(chosen)))
    return found


def unfinished(store: Store) -> list[Selection]:
    """Selections of which some letters have not got another fate yet."""
    progress = Progress.load(store)

    def done(source: str, count: int) -> bool:
        return source in progress and progress[source].resume >= count

    return [s for s in selections(store) if not all(done(*each) for each in s.sources.items())]


def _path(number: int) -> str:
    return f"{_FOLDER}/{number:012d}.json"


def _ranges(lines: tuple[int, ...]) -> list[list[int]]:
    """Most files are chosen as a whole, which is one range (first, behind the last)."""
    found: list[list[int]] = []
    for line in lines:
        if found and found[-1][1] == line:
            found[-1][1] += 1
        else:
            found.append([line, line + 1])
    return found


def _lines(ranges: list[list[int]]) -> tuple[int, ...]:
    return tuple(line for first, end in ranges for line in range(first, end))
