"""What a shard's log is made of: numbered entries, the segments that they name, and their publication."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator

import pyarrow as pa

from beamrec.io.numbered import damaged, numbers, read_on
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError

__all__ = [
    "ENTRY_SCHEMA",
    "Entry",
    "Segment",
    "entry_folder",
    "entry_path",
    "finish_publications",
    "list_shards",
    "other_content",
    "publish",
    "read_entries",
    "unpublished",
]

_SHARD = re.compile(r"\d{4}")

ENTRY_SCHEMA = pa.schema(
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
        table = self.rows.cast(ENTRY_SCHEMA).replace_schema_metadata({"beamrec": json.dumps(meta)})
        sink = pa.BufferOutputStream()
        # Entries go when snapshots hold them: LZ4 takes a tenth of Zstandard's time for twice the size.
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
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


def entry_folder(shard: int) -> str:
    """Where the entries of a shard lie."""
    return f"_ledger/fates/{shard:04d}"


def entry_path(shard: int, number: int) -> str:
    """The name of an entry."""
    return f"{entry_folder(shard)}/{number:012d}.arrow"


def list_shards(store: Store) -> list[int]:
    """Numbers of the shards that have a log."""
    return [int(name) for name in store.names("_ledger/fates") if _SHARD.fullmatch(name)]


def read_entries(store: Store, shard: int, first: int = 0) -> Iterator[Entry]:
    """The committed entries of a shard from number `first` on, in order.

    Raises:
      BeamrecError: an entry is damaged.
    """
    for path, data in read_on(store, lambda number: entry_path(shard, number), first):
        try:
            yield Entry.decode(data)
        except (pa.ArrowInvalid, ValueError, TypeError, KeyError) as error:
            raise damaged(path, error) from error


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
            raise other_content(segment.path)


def other_content(path: str) -> BeamrecError:
    """The error for a name that is taken by something that the ledger does not know."""
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
        found = numbers(store, entry_folder(shard), ".arrow")
        if found:
            yield from read_entries(store, shard, found[-1])
