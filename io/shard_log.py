"""The log of one output shard: which records have which fate, in one total order.

A shard's log is a sequence of numbered, immutable entries. Creating entry `n` with no overwrite is the
commit point: the entry holds the source position and fate of each of its rows and names the staged
segments that make them visible. Whoever sees an entry finishes its publication before going on, so a
writer that dies between the two steps leaves nothing half done, and all entries but the last are known
to be published.

The number is the shard's and not the hour's: the same `event_id` may come again from another position
with another event time, and two writers in two hours would otherwise both find it new.
"""

import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.entries import (
    ENTRY_SCHEMA,
    Entry,
    Segment,
    entry_folder,
    entry_path,
    finish_publications,
    list_shards,
    other_content,
    publish,
    read_entries,
    unpublished,
)
from beamrec.io.fated_positions import FatedPositions
from beamrec.io.floors import Floors
from beamrec.io.key_runs import KeyRuns, Keys, first_of_each, hash_keys
from beamrec.io.numbered import check_whole, numbers
from beamrec.io.segment_files import SegmentFormat, write_segment
from beamrec.io.snapshots import ShardSnapshot, newest_shard, newest_shard_number, write_shard
from beamrec.io.store import Store
from beamrec.schemas.events import Fate

__all__ = [
    "CommitResult",
    "Entry",
    "Segment",
    "ShardLog",
    "finish_publications",
    "list_shards",
    "publish",
    "read_entries",
    "unpublished",
]

_HOUR_US = 3_600_000_000
_SNAPSHOT_ENTRIES = 256
_MANY_POSITIONS = 250_000


@dataclasses.dataclass(frozen=True)
class CommitResult:
    """What became of the rows of one commit; `replays` were already accounted for and count nowhere."""

    visible: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    expired: int = 0
    replays: int = 0


class ShardLog:
    """Reads and extends the log of one shard; one instance a process, used by one thread at a time.

    Holds 20 bytes for each id inside the horizon and 8 for each position beyond the floors.

    Args:
      store: the output folder.
      shard: the shard's number.
      horizon_hours: an id is forgotten once the newest hour of the shard is further than this from what
        it was when the id became visible, which bounds memory; a duplicate that comes later still is
        visible twice.
      form: how segments of recommendations are written; it is the output folder's.
      floors: up to where each source is done; shared by the logs of a process.
      snapshot_entries: how many entries there are to a snapshot.
    """

    def __init__(
        self,
        store: Store,
        shard: int,
        horizon_hours: int,
        form: SegmentFormat | None = None,
        floors: Floors | None = None,
        snapshot_entries: int = _SNAPSHOT_ENTRIES,
    ) -> None:
        self._store = store
        self._shard = shard
        self._horizon_hours = horizon_hours
        self._form = form or SegmentFormat()
        self._floors = floors or Floors(store)
        self._snapshot_entries = snapshot_entries
        self._forget()

    def _forget(self) -> None:
        """Knows nothing any more, so that everything is read again."""
        self._next = 0
        self._newest_hour = 0
        self._visible = KeyRuns()
        self._fated = FatedPositions()
        self._trim_at = _MANY_POSITIONS
        # Committed, and perhaps not visible yet: publishing may fail (a full disk) and is then tried again.
        self._unpublished: Entry | None = None

    def refresh(self) -> None:
        """Reads what other writers have committed and finishes the publication of the last entry.

        Raises:
          BeamrecError: an entry is missing or damaged.
        """
        if self._next == 0:
            self._begin()
        read = 0
        for entry in read_entries(self._store, self._shard, self._next):
            self._apply(entry, _visible_keys(entry.rows))
            self._unpublished = entry
            read += 1
        if read and self._overtaken():
            self._forget()
            self.refresh()
        self._publish_last()

    def _begin(self) -> None:
        """At the newest snapshot, or at the first entry."""
        snapshot = newest_shard(self._store, self._shard)
        folder = entry_folder(self._shard)
        first = snapshot.next if snapshot else 0
        check_whole(numbers(self._store, folder, ".arrow"), first, folder)
        self._floors.refresh()
        if snapshot:
            self._next, self._newest_hour = snapshot.next, snapshot.newest_hour
            self._visible = KeyRuns.from_table(snapshot.ids)
            self._fated.fill(snapshot.positions)
        self._fated.raise_floors(self._floors.by_source)

    def _overtaken(self) -> bool:
        """Whether a snapshot goes beyond what was read: entries before it may be gone, their names free."""
        return newest_shard_number(self._store, self._shard) > self._next

    def commit(self, outcomes: pa.Table) -> CommitResult:
        """Gives each row of `outcomes` (schema OUTCOMES) its fate, exactly once.

        Rows whose position already has a fate are left out (a replay); visible rows whose id is already
        visible become duplicates. Repeats with fresh knowledge when another writer was faster.
        """
        return self.commit_rows(outcomes)[0]

    def commit_rows(self, outcomes: pa.Table) -> tuple[CommitResult, pa.Table]:
        """`commit`, with the rows that have got their fate by it."""
        keys = hash_keys(outcomes["event_id"].combine_chunks())
        while True:
            self.refresh()
            rows, visible = self._assign(outcomes, keys)
            if not rows.num_rows or self._append(rows, visible):
                return _result(rows, outcomes.num_rows - rows.num_rows), rows

    def _append(self, rows: pa.Table, visible: Keys) -> bool:
        """Commits and publishes an entry; False, and no change, if its number is another's."""
        entry = self._stage(rows)
        path = entry_path(self._shard, entry.number)
        if not (self._is_free(entry) and self._store.create(path, entry.encode())):
            return self._withdraw(entry)
        if self._overtaken_at(entry):
            self._store.discard(path)
            self._forget()
            return self._withdraw(entry)
        self._apply(entry, visible)
        self._unpublished = entry
        self._publish_last()
        self._keep_small()
        return True

    def _withdraw(self, entry: Entry) -> bool:
        for segment in entry.segments:
            self._store.discard(segment.staged)
        return False

    def _overtaken_at(self, entry: Entry) -> bool:
        return newest_shard_number(self._store, self._shard) > entry.number

    def _publish_last(self) -> None:
        if self._unpublished is not None:
            publish(self._store, self._unpublished)
            self._unpublished = None

    def _assign(self, outcomes: pa.Table, keys: Keys) -> tuple[pa.Table, Keys]:
        """Drops replays and turns repeated ids into duplicates; with the keys of the visible rows."""
        order = pc.sort_indices(
            outcomes.select(["source", "position"]),
            sort_keys=[("source", "ascending"), ("position", "ascending")],
        )
        positions = outcomes.select(["source", "position"]).take(order)
        new = ~self._fated.known(positions["source"], positions["position"].to_numpy())
        if not new.any():
            return outcomes.slice(0, 0), keys[:0]
        rows, keys = outcomes.take(order.filter(pa.array(new))), keys[order.to_numpy()[new]]
        wanted = np.flatnonzero(pc.equal(rows["fate"], Fate.VISIBLE.value).to_numpy())
        own = keys[wanted]
        fresh = first_of_each(own) & (self._visible.find(own) < self._oldest_hour)
        index = rows.schema.get_field_index("fate")
        return rows.set_column(index, "fate", _with_duplicates(rows["fate"], wanted[~fresh])), own[fresh]

    @property
    def _oldest_hour(self) -> int:
        return max(self._newest_hour - self._horizon_hours, 0)

    def _stage(self, rows: pa.Table) -> Entry:
        segments = [self._stage_segment(folder, lines) for folder, lines in _segments(rows)]
        return Entry(self._next, tuple(segments), rows.select(ENTRY_SCHEMA.names))

    def _stage_segment(self, folder: str, lines: pa.Array) -> Segment:
        data, suffix = write_segment(self._form, folder, lines)
        path = f"{folder}/part-{self._shard:04d}-{self._next:010d}{suffix}"
        return Segment(path, self._store.stage(data), len(lines), len(data), hashlib.sha256(data).hexdigest())

    def _is_free(self, entry: Entry) -> bool:
        """Whether nobody has taken the names of an entry's segments.

        Raises:
          BeamrecError: one is taken although nobody has committed this number: the ledger is too old.
        """
        taken = next((s.path for s in entry.segments if self._store.exists(s.path)), None)
        if taken is None:
            return True
        if self._overtaken_at(entry):
            self._forget()
        elif not self._store.exists(entry_path(self._shard, entry.number)):
            raise other_content(taken)
        return False

    def _apply(self, entry: Entry, visible: Keys) -> None:
        """Takes note of an entry; `visible` are the keys of its visible rows."""
        newest = pc.max(entry.rows["hour"].cast(pa.int64())).as_py() or 0
        self._newest_hour = max(self._newest_hour, newest // _HOUR_US)
        # Not the row's own hour: of a late row or a backfill the id is remembered as long as of any other.
        hours = np.full(len(visible), self._newest_hour, np.int32)
        self._visible.add(visible, hours, self._oldest_hour)
        self._fated.add(entry.rows["source"], entry.rows["position"].to_numpy())
        self._next = entry.number + 1

    def _keep_small(self) -> None:
        """Trims what is held, and writes a snapshot where one is due."""
        if len(self._fated) >= self._trim_at:
            self._floors.refresh()
            self._fated.raise_floors(self._floors.by_source)
            self._trim_at = max(_MANY_POSITIONS, 2 * len(self._fated))
        # Shards take turns, or all of them would be late with the same window.
        turn = self._shard * 31 % self._snapshot_entries
        if (self._next + turn) % self._snapshot_entries == 0:
            self._fated.raise_floors(self._floors.by_source)
            ids, positions = self._visible.to_table(self._oldest_hour), self._fated.to_table()
            snapshot = ShardSnapshot(self._next, self._newest_hour, ids, positions, self._floors.name)
            write_shard(self._store, self._shard, snapshot)


def _visible_keys(rows: pa.Table) -> Keys:
    return hash_keys(rows.filter(pc.equal(rows["fate"], Fate.VISIBLE.value))["event_id"].combine_chunks())


def _with_duplicates(fates: pa.ChunkedArray, repeated: npt.NDArray[np.intp]) -> pa.ChunkedArray:
    mask = np.zeros(len(fates), bool)
    mask[repeated] = True
    return pc.if_else(pa.array(mask), Fate.DUPLICATE.value, fates)


def _segments(rows: pa.Table) -> list[tuple[str, pa.Array]]:
    """Lines by folder, folders in order; a duplicate has a fate but no line."""
    has_line = pc.not_equal(rows["fate"], Fate.DUPLICATE.value)
    # The lines are most of the data, and as a rule all of them are written.
    written = rows if pc.all(has_line).as_py() else rows.filter(has_line)
    folders = written["folder"].combine_chunks().dictionary_encode()
    codes, lines = folders.indices.to_numpy(), written["line"].combine_chunks()
    names = folders.dictionary.to_pylist()
    pieces = ((name, lines.take(pa.array(np.flatnonzero(codes == i)))) for i, name in enumerate(names))
    return [(names[0], lines)] if len(names) == 1 else sorted(pieces, key=lambda piece: piece[0])


def _result(rows: pa.Table, replays: int) -> CommitResult:
    counted = pc.value_counts(rows["fate"].combine_chunks())
    fates = {str(entry["values"]): int(entry["counts"]) for entry in counted.to_pylist()}
    return CommitResult(
        visible=fates.get(Fate.VISIBLE, 0),
        dead_letters=fates.get(Fate.DEAD_LETTER, 0),
        duplicates=fates.get(Fate.DUPLICATE, 0),
        expired=fates.get(Fate.EXPIRED, 0),
        replays=replays,
    )
