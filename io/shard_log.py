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
import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError
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

_SHARD = re.compile(r"\d{4}")
_ENTRY = re.compile(r"\d{12}\.arrow")
_HOUR_US = 3_600_000_000

_ENTRY_SCHEMA = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("after", pa.int64()),
        ("position", pa.int64()),
        ("event_id", pa.string()),
        ("fate", pa.dictionary(pa.int8(), pa.string())),
        ("hour", pa.timestamp("us", "UTC")),
    ]
)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One data file: where it is visible, where it was staged, and what it holds."""

    path: str
    staged: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One committed entry: `rows` has the columns source, after, position, event_id, fate and hour."""

    number: int
    segments: tuple[Segment, ...]
    rows: pa.Table

    def encode(self) -> bytes:
        """An Arrow IPC file, segments in its schema metadata."""
        meta = {"number": self.number, "segments": [dataclasses.asdict(s) for s in self.segments]}
        table = self.rows.cast(_ENTRY_SCHEMA).replace_schema_metadata({"beamrec": json.dumps(meta)})
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def decode(cls, data: bytes) -> "Entry":
        """The inverse of `encode`; raises ValueError, TypeError or KeyError for anything else."""
        with pa.ipc.open_file(data) as reader:
            table = reader.read_all()
        meta = json.loads(table.schema.metadata[b"beamrec"])
        return cls(meta["number"], tuple(Segment(**s) for s in meta["segments"]), table)


@dataclasses.dataclass(frozen=True)
class CommitResult:
    """What became of the rows of one commit; `replays` were already accounted for and count nowhere."""

    visible: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    expired: int = 0
    replays: int = 0


def _folder(shard: int) -> str:
    return f"_ledger/fates/{shard:04d}"


def _path(shard: int, number: int) -> str:
    return f"{_folder(shard)}/{number:012d}.arrow"


def list_shards(store: Store) -> list[int]:
    """Numbers of the shards that have a log."""
    return [int(name) for name in store.names("_ledger/fates") if _SHARD.fullmatch(name)]


def read_entries(store: Store, shard: int, first: int = 0) -> Iterator[Entry]:
    """The committed entries of a shard from number `first` on, in order.

    Raises:
      BeamrecError: an entry is damaged.
    """
    number = first
    while True:
        path = _path(shard, number)
        try:
            data = store.read(path)
        except FileNotFoundError:
            return
        try:
            yield Entry.decode(data)
        except (pa.ArrowInvalid, ValueError, TypeError, KeyError) as error:
            raise BeamrecError(
                f"the ledger entry {path} is damaged ({error}): restore the _ledger folder together with the "
                "output from a backup, or start a new output folder"
            ) from error
        number += 1


def publish(store: Store, entry: Entry) -> None:
    """Makes the segments of an entry visible; doing it again changes nothing.

    Raises:
      BeamrecError: other content stands under a segment's name: the ledger is older than the output.
    """
    for segment in entry.segments:
        try:
            created = store.publish(segment.staged, segment.path)
        except FileNotFoundError:
            # A staged object goes only after it was visible: this was published, and perhaps removed since.
            continue
        if not created and hashlib.sha256(store.read(segment.path)).hexdigest() != segment.sha256:
            raise _other_content(segment.path)


def _other_content(path: str) -> BeamrecError:
    return BeamrecError(
        f"{path} is there with other content than the ledger says: _ledger and output are not of the same "
        "time; restore both together, or start a new output folder"
    )


def finish_publications(store: Store) -> None:
    """Publishes what a killed writer has committed and not made visible yet: the last entry of each shard."""
    for entry in _last_entries(store):
        publish(store, entry)


def unpublished(store: Store) -> list[str]:
    """Segments that are committed and staged but not visible yet."""
    return [
        segment.path
        for entry in _last_entries(store)
        for segment in entry.segments
        if store.exists(segment.staged) and not store.exists(segment.path)
    ]


def _last_entries(store: Store) -> Iterator[Entry]:
    for shard in list_shards(store):
        names = [name for name in store.names(_folder(shard)) if _ENTRY.fullmatch(name)]
        if names:
            yield from read_entries(store, shard, int(names[-1].partition(".")[0]))


class ShardLog:
    """Reads and extends the log of one shard; one instance a process, used by one thread at a time.

    Args:
      store: the output folder.
      shard: the shard's number.
      horizon_hours: ids of hours further back than this from the newest hour are forgotten, which
        bounds memory; a duplicate that comes later still is visible twice.
    """

    def __init__(self, store: Store, shard: int, horizon_hours: int) -> None:
        self._store = store
        self._shard = shard
        self._horizon_us = horizon_hours * _HOUR_US
        self._next = 0
        self._newest_hour = 0
        self._visible: dict[str, int] = {}
        self._fated: dict[tuple[str, int], int] = {}
        # Committed, and perhaps not visible yet: publishing may fail (a full disk) and is then tried again.
        self._unpublished: Entry | None = None

    def refresh(self) -> None:
        """Reads what other writers have committed and finishes the publication of the last entry.

        Raises:
          BeamrecError: an entry is missing or damaged.
        """
        if self._next == 0:
            names = [name for name in self._store.names(_folder(self._shard)) if _ENTRY.fullmatch(name)]
            if names and names[-1] != f"{len(names) - 1:012d}.arrow":
                raise BeamrecError(
                    f"the ledger of shard {self._shard} has {len(names)} entries although its last is "
                    f"{names[-1]}: one is missing; restore the _ledger folder from a backup, or start a new "
                    "output folder"
                )
        for entry in read_entries(self._store, self._shard, self._next):
            self._apply(entry)
            self._unpublished = entry
        if self._unpublished is not None:
            publish(self._store, self._unpublished)
            self._unpublished = None

    def commit(self, outcomes: pa.Table) -> CommitResult:
        """Gives each row of `outcomes` (schema OUTCOMES) its fate, exactly once.

        Rows whose position already has a fate are left out (a replay); visible rows whose id is already
        visible become duplicates. Repeats with fresh knowledge when another writer was faster.
        """
        outcomes = outcomes.sort_by([("source", "ascending"), ("position", "ascending")])
        while True:
            self.refresh()
            rows = self._assign(outcomes)
            if rows.num_rows:
                entry = self._stage(rows)
                self._check_free(entry)
                if not self._store.create(_path(self._shard, self._next), entry.encode()):
                    for segment in entry.segments:
                        self._store.discard(segment.staged)
                    continue
                self._apply(entry)
                self._unpublished = entry
                publish(self._store, entry)
                self._unpublished = None
            return _result(rows, outcomes.num_rows - rows.num_rows)

    def _assign(self, outcomes: pa.Table) -> pa.Table:
        """Drops replays and turns repeated ids into duplicates."""
        fates = outcomes["fate"].to_pylist()
        ids = outcomes["event_id"].to_pylist()
        positions = zip(outcomes["source"].to_pylist(), outcomes["position"].to_pylist(), strict=True)
        keep = np.ones(len(ids), dtype=bool)
        new_ids: set[str] = set()
        new_positions: set[tuple[str, int]] = set()
        for i, (event_id, position) in enumerate(zip(ids, positions, strict=True)):
            if position in self._fated or position in new_positions:
                keep[i] = False
                continue
            new_positions.add(position)
            if fates[i] == Fate.VISIBLE:
                if event_id in self._visible or event_id in new_ids:
                    fates[i] = Fate.DUPLICATE
                new_ids.add(event_id)
        column = pa.array([str(f) for f in fates], pa.string())
        index = outcomes.schema.get_field_index("fate")
        return outcomes.set_column(index, "fate", column).filter(pa.array(keep))

    def _stage(self, rows: pa.Table) -> Entry:
        segments = [
            self._stage_segment(path, lines) for path, lines in sorted(_segments(rows, self._part()).items())
        ]
        return Entry(self._next, tuple(segments), rows.select(_ENTRY_SCHEMA.names))

    def _check_free(self, entry: Entry) -> None:
        """A name that is taken although nobody has committed this number: the ledger is too old."""
        for segment in entry.segments:
            if self._store.exists(segment.path) and not self._store.exists(_path(self._shard, self._next)):
                raise _other_content(segment.path)

    def _part(self) -> str:
        return f"part-{self._shard:04d}-{self._next:010d}.jsonl"

    def _stage_segment(self, path: str, lines: list[bytes]) -> Segment:
        data = b"".join(line + b"\n" for line in lines)
        staged = self._store.stage(data)
        return Segment(path, staged, len(lines), len(data), hashlib.sha256(data).hexdigest())

    def _apply(self, entry: Entry) -> None:
        columns = entry.rows.select(["source", "position", "event_id", "fate", "hour"])
        hours = columns["hour"].cast(pa.int64()).to_pylist()
        for source, position, event_id, fate, hour in zip(
            *(columns[name].to_pylist() for name in ("source", "position", "event_id", "fate")),
            hours,
            strict=True,
        ):
            self._fated[(source, position)] = hour
            if fate == Fate.VISIBLE:
                self._visible[event_id] = hour
        self._next = entry.number + 1
        newest = max(hours, default=0)
        if newest > self._newest_hour:
            self._newest_hour = newest
            self._forget(newest - self._horizon_us)

    def _forget(self, oldest_hour: int) -> None:
        self._visible = {k: hour for k, hour in self._visible.items() if hour >= oldest_hour}
        self._fated = {k: hour for k, hour in self._fated.items() if hour >= oldest_hour}


def _segments(rows: pa.Table, part: str) -> dict[str, list[bytes]]:
    """Lines by segment path; a duplicate has a fate but no line."""
    segments: dict[str, list[bytes]] = {}
    columns = (rows[name].to_pylist() for name in ("fate", "folder", "line"))
    for fate, folder, line in zip(*columns, strict=True):
        if fate != Fate.DUPLICATE:
            segments.setdefault(f"{folder}/{part}", []).append(line)
    return segments


def _result(rows: pa.Table, replays: int) -> CommitResult:
    fates = rows["fate"].to_pylist()
    return CommitResult(
        visible=fates.count(Fate.VISIBLE),
        dead_letters=fates.count(Fate.DEAD_LETTER),
        duplicates=fates.count(Fate.DUPLICATE),
        expired=fates.count(Fate.EXPIRED),
        replays=replays,
    )
