"""Copies the many small files of a closed hour into one file below `compacted/`.

One file, so that it is there whole or not at all on every store: an object store can show several objects
only one after another. What came late is added by the next run, which replaces the file as a whole; what it
holds says a record that is written before it. So a reader of `recommendations/` sees
no change at all, and a reader of `compacted/` each row once, at any moment.
"""

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from beamrec.io.join_files import join_files
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError
from beamrec.schemas.paths import RECOMMENDATIONS

__all__ = ["Compacted", "Hour", "compact_hour", "hours_of"]

_FOLDER = "compacted"
_RECORDS = "_ledger/compacted"
_STAGING = "_staging/compact"
_SEGMENT = re.compile(r"part-\d{4}-\d{10}(\.jsonl|\.jsonl\.gz|\.parquet)")
_HOUR = re.compile(
    r"(?:year=)?(\d{4})/(?:month=)?(\d\d)/(?:day=)?(\d\d)/(?:hour=)?(\d\d)",
)


@dataclasses.dataclass(frozen=True)
class Hour:
    """An hour of recommendations: its folder below the output, and when it begins (UTC)."""

    folder: str
    begin: datetime

    def closed(self, now: datetime, allowed_lateness: timedelta) -> bool:
        """Whether rows of it that come still have expired."""
        return self.begin + timedelta(hours=1) + allowed_lateness <= now


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What became of one hour.

    Attributes:
      path: of the file, below the output.
      segments, rows, bytes: what it holds now.
      added: how many rows of it are new.
    """

    path: str
    segments: int
    rows: int
    bytes: int
    added: int


@dataclasses.dataclass(frozen=True)
class _State:
    """What a compacted file of a certain size holds."""

    bytes: int
    rows: int
    sha256: str
    segments: tuple[str, ...]


_NOTHING = _State(0, 0, "", ())


def hours_of(store: Store) -> list[Hour]:
    """All hours that have recommendations, in order."""
    found = []
    for folder in _folders(store, RECOMMENDATIONS, 4):
        match = _HOUR.fullmatch(folder.removeprefix(f"{RECOMMENDATIONS}/"))
        if match:
            year, month, day, hour = map(int, match.groups())
            found.append(Hour(folder, datetime(year, month, day, hour, tzinfo=UTC)))
    return sorted(found, key=lambda hour: hour.begin)


def _folders(store: Store, folder: str, depth: int) -> Iterator[str]:
    if depth == 0:
        yield folder
        return
    for name in store.names(folder):
        yield from _folders(store, f"{folder}/{name}", depth - 1)


def compact_hour(store: Store, hour: Hour) -> Compacted | None:
    """Brings the compacted file of an hour up to date; one at a time may do so in an output folder.

    Returns:
      What it holds; None for an hour without files.

    Raises:
      BeamrecError: the compacted file is none that this function has written.
    """
    names = [name for name in store.names(hour.folder) if _SEGMENT.fullmatch(name)]
    if not names:
        return None
    path = f"{_FOLDER}/{hour.folder}/part-0000{_suffix(hour, names)}"
    before = _state(store, hour, path)
    known = set(before.segments)
    new = [name for name in names if name not in known]
    if not new:
        return Compacted(path, len(before.segments), before.rows, before.bytes, 0)
    after = _write(store, hour, path, before, new)
    return Compacted(path, len(after.segments), after.rows, after.bytes, after.rows - before.rows)


def _suffix(hour: Hour, names: Sequence[str]) -> str:
    suffixes = {name[name.index(".") :] for name in names}
    if len(suffixes) != 1:
        raise BeamrecError(
            f"{hour.folder} has files of several formats ({', '.join(sorted(suffixes))}), and an output "
            "folder has one: something else writes there"
        )
    return suffixes.pop()


def _write(store: Store, hour: Hour, path: str, before: _State, new: Sequence[str]) -> _State:
    """Puts what the file holds and what is new in its place, in one step."""
    # What a killed run has left would move into place together with this file.
    store.discard_tree(_STAGING)
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined"
        sources = [*([path] if before.segments else []), *(f"{hour.folder}/{name}" for name in new)]
        rows = join_files(store, sources, joined)
        if rows < before.rows:
            raise BeamrecError(f"{path} has lost rows: it held {before.rows}, with new ones there are {rows}")
        digest = _sha256(joined)
        after = _State(joined.stat().st_size, rows, digest, (*before.segments, *new))
        states = [dataclasses.asdict(state) for state in (before, after)]
        store.put_file(f"{_STAGING}/{path}", joined)
        store.flush()
        store.put(_record_path(hour), json.dumps(states).encode(), durable=True)
        store.move_all(_STAGING, [path])
    return after


def _state(store: Store, hour: Hour, path: str) -> _State:
    """Which of the recorded states the compacted file is in."""
    size = store.sizes_of([path]).get(path)
    if size is None:
        return _NOTHING
    states = [state for state in _recorded(store, hour, path) if state.bytes == size]
    if len(states) > 1:
        # Hardly ever: before and after have the same size.
        digest = hashlib.sha256(store.read(path)).hexdigest()
        states = [state for state in states if state.sha256 == digest]
    if not states:
        raise BeamrecError(f"{path} has {size} bytes and is not what compact wrote: {_mend(path)}")
    return states[0]


def _recorded(store: Store, hour: Hour, path: str) -> list[_State]:
    try:
        states = [_State(**state) for state in json.loads(store.read(_record_path(hour)))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise BeamrecError(f"{_record_path(hour)} is damaged ({error}): {_mend(path)}") from error
    return [dataclasses.replace(state, segments=tuple(state.segments)) for state in states]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mend(path: str) -> str:
    return f"remove {path} and run compact again, as long as the hour's own files are there"


def _record_path(hour: Hour) -> str:
    return f"{_RECORDS}/{hour.begin:%Y-%m-%dT%H}.json"
