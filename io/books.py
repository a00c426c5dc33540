"""The running account of an output folder: what was read, and which of it has which fate.

`Books` begins at the newest snapshot, reads what is new, and may write the next snapshot. Of each source it
keeps up to where everything has a fate, the parts and fated intervals beyond, and nothing else.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.entries import Entry, entry_folder, list_shards, read_entries
from beamrec.io.fated_positions import by_source
from beamrec.io.numbered import numbers
from beamrec.io.snapshots import (
    LOOSE,
    PARTS,
    SOURCE_FOLDER,
    SOURCES,
    AccountSnapshot,
    newest_account,
    newest_account_name,
    remove_behind,
    write_account,
)
from beamrec.io.source_log import Part, parts_of, read_parts
from beamrec.io.store import Store
from beamrec.schemas.events import Fate
from beamrec.schemas.replays import replaced_fate

__all__ = ["Books", "SourceState"]

# A snapshot holds a row or two of every source: with many of them it is written less often.
_SNAPSHOT_ENTRIES = 1024
_SOURCES_AN_ENTRY = 16
_SNAPSHOT_ROWS = 1_000_000

_Positions = npt.NDArray[np.int64]


def _none() -> _Positions:
    return np.empty(0, np.int64)


@dataclasses.dataclass(slots=True)
class SourceState:
    """Where one source stands.

    Attributes:
      begin: where it was begun; None as long as nothing of it was sealed.
      resume: everything up to here has a fate; None as long as nothing has.
      parts: the last part, and those before it that are not wholly fated.
      after, position: the fated intervals beyond `resume`, by ascending position.
    """

    begin: int | None = None
    resume: int | None = None
    parts: list[Part] = dataclasses.field(default_factory=list)
    after: _Positions = dataclasses.field(default_factory=_none)
    position: _Positions = dataclasses.field(default_factory=_none)

    @property
    def fated(self) -> bool:
        """Whether anything of it has a fate."""
        return self.resume is not None or len(self.position) > 0

    def has_fate(self, after: int, position: int) -> bool:
        """Whether everything in the interval (`after`, `position`] has one; it ends where a record does."""
        if self.resume is not None and self.resume >= position:
            return True
        first = int(np.searchsorted(self.position, after, "right"))
        last = int(np.searchsorted(self.position, position, "left"))
        if last >= len(self.position) or self.position[last] != position:
            return False
        begins, ends = self.after[first : last + 1], self.position[first : last + 1]
        reached = max(after, self.resume or after)
        return bool(begins[0] <= reached and (begins[1:] == ends[:-1]).all())

    def read(self, part: Part) -> None:
        """Takes note of a part."""
        self.begin = part.after if self.begin is None else self.begin
        self.parts.append(part)

    def fate(self, after: _Positions, position: _Positions) -> None:
        """Takes note of fated intervals."""
        positions = np.concatenate([self.position, position])
        order = np.argsort(positions, kind="stable")
        self.after, self.position = np.concatenate([self.after, after])[order], positions[order]

    def settle(self) -> None:
        """Moves `resume` on over what tiles the source without a gap, and lets go of what lies behind."""
        if self.begin is None:
            return
        self.resume, done = self.tiled()
        self.after, self.position = self.after[done:].copy(), self.position[done:].copy()
        first = next((i for i, part in enumerate(self.parts) if part.position > self.resume), len(self.parts))
        self.parts = self.parts[min(first, len(self.parts) - 1) :]

    def tiled(self) -> tuple[int, int]:
        """Up to where the intervals tile the source, and how many of them do."""
        origin = self.resume if self.resume is not None else self.begin or 0
        if not len(self.after) or self.after[0] != origin:
            return origin, 0
        breaks = np.flatnonzero(self.after[1:] != self.position[:-1])
        done = int(breaks[0]) + 1 if len(breaks) else len(self.after)
        return int(self.position[done - 1]), done


class Books:
    """The account of an output folder up to what was last read.

    Attributes:
      records: events that were read; what was replayed is not read again.
      fates: how many have which fate, those included that a replay has replaced since.
      replays: how many records a replay gave which fate in place of which, by `replaced/given`.

    Args:
      store: the output folder.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._load()

    def _load(self) -> None:
        snapshot = newest_account(self._store)
        self.records = snapshot.records if snapshot else 0
        self.fates = collections.Counter(snapshot.fates if snapshot else {})
        self.replays = collections.Counter(snapshot.replays if snapshot else {})
        self.sources: dict[str, SourceState] = collections.defaultdict(SourceState)
        self._sources_next = snapshot.sources_next if snapshot else 0
        self._shards = collections.Counter(snapshot.shards if snapshot else {})
        self._name = snapshot.name if snapshot else ""
        self._entries = self._rows = 0
        if snapshot:
            self._fill(snapshot)

    def _fill(self, snapshot: AccountSnapshot) -> None:
        for row in snapshot.sources.to_pylist():
            self.sources[row["source"]] = SourceState(row["begin"], row["resume"])
        for part in parts_of(snapshot.parts):
            self.sources[part.source].parts.append(part)
        self._fate(snapshot.loose)

    def check(self) -> list[str]:
        """What is missing of the logs, in words."""
        faults = []
        folders = {SOURCE_FOLDER: (".json", self._sources_next)}
        folders |= {entry_folder(s): (".arrow", self._shards[s]) for s in list_shards(self._store)}
        for folder, (suffix, read) in folders.items():
            found = numbers(self._store, folder, suffix)
            if found and found[-1] >= read:
                faults.append(f"an entry of {folder} is missing: {read} of {found[-1] + 1}")
        return faults

    def update(self) -> None:
        """Reads what is new; raises BeamrecError if an entry is damaged."""
        if newest_account_name(self._store) > self._name and self._overtaken():
            self._load()
        for parts in read_parts(self._store, self._sources_next):
            self._sources_next += 1
            self._entries += 1
            for part in parts:
                self.sources[part.source].read(part)
                self.records += part.records if replaced_fate(part.source) is None else 0
        touched: set[str] = set()
        for shard in list_shards(self._store):
            for entry in read_entries(self._store, shard, self._shards[shard]):
                touched |= self._enter(shard, entry)
        for source in touched:
            self.sources[source].settle()

    def _overtaken(self) -> bool:
        """Whether another writer's snapshot goes beyond this: what lies between may be gone."""
        snapshot = newest_account(self._store)
        self._name = newest_account_name(self._store)
        return snapshot is not None and (
            snapshot.sources_next > self._sources_next
            or any(number > self._shards[shard] for shard, number in snapshot.shards.items())
        )

    def _enter(self, shard: int, entry: Entry) -> set[str]:
        self._shards[shard] += 1
        self._entries += 1
        self._rows += entry.rows.num_rows
        for count in pc.value_counts(entry.rows["fate"].combine_chunks()).to_pylist():
            self.fates[count["values"]] += count["counts"]
        self.replays.update(_replays(entry.rows))
        return self._fate(entry.rows)

    def _fate(self, rows: pa.Table) -> set[str]:
        after, position = rows["after"].to_numpy(), rows["position"].to_numpy()
        touched = set()
        for source, index in by_source(rows["source"], position) if len(position) else ():
            self.sources[source].fate(after[index], position[index])
            touched.add(source)
        return touched

    def final(self, fate: Fate) -> int:
        """How many records have a fate that no replay has replaced."""
        replaced = (count for key, count in self.replays.items() if key.startswith(f"{fate}/"))
        return self.fates[fate] - sum(replaced)

    def save_if_due(self) -> bool:
        """Writes a snapshot where enough has come since the last, and removes what is behind two of them."""
        due = max(_SNAPSHOT_ENTRIES, len(self.sources) // _SOURCES_AN_ENTRY)
        if self._entries < due and self._rows < _SNAPSHOT_ROWS:
            return False
        self.save()
        remove_behind(self._store)
        return True

    def save(self) -> None:
        """Writes a snapshot of what was last read."""
        snapshot = self._snapshot()
        write_account(self._store, snapshot)
        self._name = snapshot.name
        self._entries = self._rows = 0

    def _snapshot(self) -> AccountSnapshot:
        states = list(self.sources.items())
        sources = [[s for s, _ in states], [t.begin for _, t in states], [t.resume for _, t in states]]
        parts = [dataclasses.asdict(part) for _, state in states for part in state.parts]
        return AccountSnapshot(
            sources_next=self._sources_next,
            shards={shard: number for shard, number in self._shards.items() if number},
            records=self.records,
            fates=dict(self.fates),
            replays=dict(self.replays),
            sources=pa.table(sources, schema=SOURCES),
            parts=pa.Table.from_pylist(parts, schema=PARTS),
            loose=pa.Table.from_batches(_loose(states), schema=LOOSE),
        )


def _replays(rows: pa.Table) -> collections.Counter[str]:
    """Rows of an entry by `replaced/given`; those that are no replays count nowhere."""
    sources, found = rows["source"].combine_chunks(), collections.Counter[str]()
    for code, name in enumerate(sources.dictionary.to_pylist()):
        replaced = replaced_fate(name)
        if replaced is not None:
            given = rows["fate"].filter(pc.equal(sources.indices, code)).combine_chunks()
            for count in pc.value_counts(given).to_pylist():
                found[f"{replaced}/{count['values']}"] += count["counts"]
    return found


def _loose(states: Iterable[tuple[str, SourceState]]) -> Iterator[pa.RecordBatch]:
    for source, state in states:
        if len(state.position):
            names = pa.repeat(source, len(state.position))
            columns = [names, pa.array(state.after), pa.array(state.position)]
            yield pa.RecordBatch.from_arrays(columns, schema=LOOSE)
