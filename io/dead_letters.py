"""Dead letters of an output folder, to be read again: which there are, and what they hold."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from beamrec.io.registry import scheme_of
from beamrec.io.store import Store
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import Fate

__all__ = ["LetterFile", "Wanted", "find_files", "parse_place", "read_files"]

EXPIRED = "expired"
"""The stage whose letters have a fate of their own; they are read only where they are asked for."""

_ERRORS = "errors"
_NAME = re.compile(r"part-\d{4}-\d{10}\.jsonl")
_PLACE = re.compile(
    r"(?P<output>.*?)(?:/errors(?:/(?P<stage>[^/=]+)(?P<hour>(?:/(?:year|month|day|hour)=\d+)*))?)?/*"
)
_PARTS = re.compile(r"(year|month|day|hour)=(\d+)")
_READS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which dead letters are meant.

    Attributes:
      stages: folders below `errors/`; empty means all but `expired`.
      begin, end: those first seen from `begin` on and before `end`.
      error_types: empty means all.
    """

    stages: frozenset[str] = frozenset()
    begin: datetime | None = None
    end: datetime | None = None
    error_types: frozenset[str] = frozenset()

    def has_stage(self, stage: str) -> bool:
        """Whether letters of a stage are meant."""
        return stage in self.stages if self.stages else stage != EXPIRED

    def has_hour(self, hour: datetime) -> bool:
        """Whether letters first seen in the hour that begins then may be meant."""
        before = self.end is not None and hour >= self.end
        return not before and (self.begin is None or hour + timedelta(hours=1) > self.begin)

    def has(self, letter: DeadLetter) -> bool:
        """Whether a letter of such a stage is meant."""
        seen = datetime.fromisoformat(letter.first_seen)
        if (self.begin and seen < self.begin) or (self.end and seen >= self.end):
            return False
        return not self.error_types or letter.error_type in self.error_types


@dataclasses.dataclass(frozen=True, order=True)
class LetterFile:
    """A file of dead letters; ordered by the hour in which they were first seen."""

    hour: datetime
    path: str

    @property
    def fate(self) -> Fate:
        """What became of its records."""
        return Fate.EXPIRED if self.path.startswith(f"{_ERRORS}/{EXPIRED}/") else Fate.DEAD_LETTER

    @classmethod
    def of(cls, path: str) -> "LetterFile":
        """By its path below the output folder; raises ValueError if its folder is no hour."""
        parts = {name: int(value) for name, value in _PARTS.findall(path)}
        if len(parts) < 4:
            raise ValueError(path)
        return cls(datetime(**parts, tzinfo=UTC), path)


def parse_place(uri: str) -> tuple[str, Wanted]:
    """Takes `OUTPUT[/errors[/stage[/year=…/month=…/day=…/hour=…]]]` apart.

    Returns:
      (URI of the output folder, what its rest says).

    Raises:
      UsageError: it is empty, or names no time.
    """
    place, mark, options = uri.partition("?") if scheme_of(uri) in ("s3", "gs") else (uri, "", "")
    match = _PLACE.fullmatch(place)
    if match is None or not match["output"]:
        raise UsageError(
            f"--errors {uri}: expected an output folder of stream, or its errors/ or a part of it"
        )
    stages = frozenset({match["stage"]}) if match["stage"] else frozenset[str]()
    begin, end = _span(uri, [int(value) for _, value in _PARTS.findall(match["hour"] or "")])
    return match["output"] + mark + options, Wanted(stages, begin, end)


def _span(uri: str, parts: Sequence[int]) -> tuple[datetime | None, datetime | None]:
    """From when to when a folder of a year, a month, a day or an hour goes."""
    if not parts:
        return None, None
    try:
        begin = datetime(*(*parts, 1, 1)[: max(len(parts), 3)], tzinfo=UTC)  # type: ignore[misc,arg-type]
        if len(parts) == 1:
            return begin, begin.replace(year=begin.year + 1)
        if len(parts) == 2:
            return begin, (begin + timedelta(days=31)).replace(day=1)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--errors {uri}: {error}") from None
    return begin, begin + (timedelta(days=1) if len(parts) == 3 else timedelta(hours=1))


def find_files(store: Store, wanted: Wanted) -> list[LetterFile]:
    """The files that may hold letters that are meant, by ascending hour."""
    found = []
    for stage in store.names(_ERRORS):
        if wanted.has_stage(stage):
            for path in _paths(store, f"{_ERRORS}/{stage}", 4):
                try:
                    file = LetterFile.of(path)
                except ValueError:
                    continue  # a folder of somebody else
                if wanted.has_hour(file.hour):
                    found.append(file)
    return sorted(found)


def _paths(store: Store, folder: str, depth: int) -> Iterator[str]:
    for name in store.names(folder):
        if depth:
            yield from _paths(store, f"{folder}/{name}", depth - 1)
        elif _NAME.fullmatch(name):
            yield f"{folder}/{name}"


def read_files(store: Store, paths: Sequence[str]) -> Iterator[list[DeadLetter]]:
    """The letters of each file, in order; a few files are read ahead, since most are small.

    Raises:
      BeamrecError: a file is gone, or holds something else.
    """
    waiting: collections.deque[Future[list[DeadLetter]]] = collections.deque()
    with ThreadPoolExecutor(_READS_AT_ONCE, "letters") as pool:
        for path in paths:
            waiting.append(pool.submit(_read, store, path))
            if len(waiting) >= _READS_AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(store: Store, path: str) -> list[DeadLetter]:
    try:
        lines = store.read(path).splitlines()
    except FileNotFoundError:
        raise BeamrecError(
            f"{path} of {store.uri} is gone, and letters of it were chosen for a replay: put it back"
        ) from None
    try:
        return [DeadLetter.from_json(line) for line in lines]
    except ValueError as error:
        raise BeamrecError(f"{path} of {store.uri} is damaged ({error}); restore it from a backup") from None
