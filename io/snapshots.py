"""Snapshots: what the entries of a log up to a number amount to, so that nobody has to read them again.

A snapshot is one write-once object that says up to where it goes; any writer may write one, and readers
begin at the newest. There are two kinds: of one shard's log (the ids and positions that it knows), and of
the account (what was read of each source and up to where all of it has a fate).

Entries behind the last two snapshots may go (`remove_behind`). A name that is free again must not be taken
for the end of a log: whoever has created an entry looks whether a snapshot goes beyond it, and if so the
entry is void (nobody ever reads it) and the writer begins again at that snapshot.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from beamrec.io.entries import entry_folder, entry_path, list_shards
from beamrec.io.numbered import damaged, numbers
from beamrec.io.store import Store

__all__ = [
    "AccountSnapshot",
    "ShardSnapshot",
    "newest_account",
    "newest_account_name",
    "newest_shard",
    "newest_shard_number",
    "remove_behind",
    "source_entry_path",
    "sources_of",
    "write_account",
    "write_shard",
]

SOURCE_FOLDER = "_ledger/sources"

_ACCOUNTS = "_ledger/snapshots/account"
_ACCOUNT = re.compile(r"(\d{12})-(\d{12})\.arrow")
_KEPT = 2

PARTS = pa.schema(
    [
        ("source", pa.string()),
        ("after", pa.int64()),
        ("position", pa.int64()),
        ("records", pa.int64()),
        ("arrival_us", pa.int64()),
        ("tail", pa.string()),
    ]
)
SOURCES = pa.schema([("source", pa.string()), ("begin", pa.int64()), ("resume", pa.int64())])
LOOSE = pa.schema([("source", pa.string()), ("after", pa.int64()), ("position", pa.int64())])


@dataclasses.dataclass(frozen=True)
class ShardSnapshot:
    """What a shard's log knows after its entries below `next`.

    Attributes:
      newest_hour: hours since the epoch, the newest of all rows.
      ids: `KeyRuns.to_table` of the visible ids.
      positions: `FatedPositions.to_table`; what is not there lies below the floors of `account`.
      account: name of the account's snapshot that the floors came from; "" for none.
    """

    next: int
    newest_hour: int
    ids: pa.Table
    positions: pa.Table
    account: str


@dataclasses.dataclass(frozen=True)
class AccountSnapshot:
    """In and fates after some entries of each log.

    Attributes:
      sources_next: the first entry of the source log that is not in it.
      shards: number of each shard → its first entry that is not in it.
      records: events that were read.
      fates: how many have which fate.
      sources: SOURCES; `begin` NULL where nothing was sealed, `resume` NULL where nothing has a fate.
      parts: PARTS; of each source the last one, and all that are not wholly fated.
      loose: LOOSE; fated intervals beyond `resume`.
      replays: how many records a replay gave which fate in place of which, as `Books` has it.
    """

    sources_next: int
    shards: Mapping[int, int]
    records: int
    fates: Mapping[str, int]
    sources: pa.Table
    parts: pa.Table
    loose: pa.Table
    replays: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names of one writer only grow."""
        return f"{self.sources_next:012d}-{sum(self.shards.values()):012d}.arrow"


def write_shard(store: Store, shard: int, snapshot: ShardSnapshot) -> None:
    """Writes a shard's snapshot, unless another writer has."""
    meta = {
        "next": snapshot.next,
        "newest_hour": snapshot.newest_hour,
        "account": snapshot.account,
    }
    data = _pack({"ids": snapshot.ids, "positions": snapshot.positions}, meta)
    store.create(f"{_shard_folder(shard)}/{snapshot.next:012d}.arrow", data)


def newest_shard_number(store: Store, shard: int) -> int:
    """Up to where the newest snapshot of a shard goes; 0 if there is none."""
    return max(numbers(store, _shard_folder(shard), ".arrow"), default=0)


def newest_shard(store: Store, shard: int) -> ShardSnapshot | None:
    """The newest snapshot of a shard, if there is one.

    Raises:
      BeamrecError: it is damaged, or the account's snapshot that it rests on is missing.
    """
    number = newest_shard_number(store, shard)
    if not number:
        return None
    path = f"{_shard_folder(shard)}/{number:012d}.arrow"
    tables, meta = _read(store, path)
    if meta["account"] > newest_account_name(store):
        raise damaged(path, ValueError(f"it rests on {_ACCOUNTS}/{meta['account']}, which is missing"))
    return ShardSnapshot(**meta, **tables)


def write_account(store: Store, snapshot: AccountSnapshot) -> None:
    """Writes a snapshot of the account, unless it is there."""
    tables = {"sources": snapshot.sources, "parts": snapshot.parts, "loose": snapshot.loose}
    meta = {
        "sources_next": snapshot.sources_next,
        "shards": {str(shard): number for shard, number in snapshot.shards.items()},
        "records": snapshot.records,
        "fates": dict(snapshot.fates),
        "replays": dict(snapshot.replays),
    }
    store.create(f"{_ACCOUNTS}/{snapshot.name}", _pack(tables, meta))


def newest_account_name(store: Store) -> str:
    """Name of the newest snapshot of the account; "" if there is none."""
    return max(_account_names(store), default="")


def newest_account(store: Store) -> AccountSnapshot | None:
    """The newest snapshot of the account, if there is one; raises BeamrecError if it is damaged."""
    name = newest_account_name(store)
    if not name:
        return None
    tables, meta = _read(store, f"{_ACCOUNTS}/{name}")
    shards = {int(shard): number for shard, number in meta.pop("shards").items()}
    return AccountSnapshot(**meta, shards=shards, **tables)


def sources_of(account_name: str) -> int:
    """Up to which entry of the source log a snapshot of the account goes, by its name."""
    return int(account_name[:12]) if account_name else 0


def source_entry_path(number: int) -> str:
    """The name of an entry of the source log."""
    return f"{SOURCE_FOLDER}/{number:012d}.json"


def remove_behind(store: Store) -> int:
    """Removes the snapshots before the last two of each kind, and the entries that both of those hold.

    All segments of an entry are visible before the next one is made, and a shard's snapshot is made after
    the segments of its last entry are: no entry that an unpublished segment needs is ever behind one.

    Returns:
      How many objects went.
    """
    accounts = sorted(_account_names(store))
    if len(accounts) < _KEPT:
        return 0
    kept = [_read(store, f"{_ACCOUNTS}/{name}")[1] for name in accounts[-_KEPT:]]
    gone = [source_entry_path(n) for n in _below(store, SOURCE_FOLDER, ".json", _least(kept, "sources_next"))]
    for shard in list_shards(store):
        own = numbers(store, _shard_folder(shard), ".arrow")
        if len(own) < _KEPT:
            continue
        held = min(own[-_KEPT], *(meta["shards"].get(str(shard), 0) for meta in kept))
        gone += [entry_path(shard, n) for n in _below(store, entry_folder(shard), ".arrow", held)]
        gone += [f"{_shard_folder(shard)}/{n:012d}.arrow" for n in own[:-_KEPT]]
    gone += [f"{_ACCOUNTS}/{name}" for name in accounts[:-_KEPT]]
    # The last of each log first: who still reads from further back stops there and looks for a snapshot.
    for path in {path.rpartition("/")[0]: path for path in gone}.values():
        store.discard(path)
    store.discard_all(gone)
    return len(gone)


def _below(store: Store, folder: str, suffix: str, end: int) -> list[int]:
    return [number for number in numbers(store, folder, suffix) if number < end]


def _least(metas: list[dict[str, Any]], name: str) -> int:
    return min(int(meta[name]) for meta in metas)


def _shard_folder(shard: int) -> str:
    return f"_ledger/snapshots/fates/{shard:04d}"


def _account_names(store: Store) -> list[str]:
    return [name for name in store.names(_ACCOUNTS) if _ACCOUNT.fullmatch(name)]


def _pack(tables: Mapping[str, pa.Table], meta: Mapping[str, Any]) -> bytes:
    """Several tables in one Arrow IPC file: a row with a column of bytes for each."""
    row = {name: pa.array([_to_ipc(table)], pa.large_binary()) for name, table in tables.items()}
    return _to_ipc(pa.table(row).replace_schema_metadata({"beamrec": json.dumps(meta)}))


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _read(store: Store, path: str) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    data = store.read(path)
    try:
        row = pa.ipc.open_file(data).read_all()
        meta: dict[str, Any] = json.loads(row.schema.metadata[b"beamrec"])
        tables = {n: pa.ipc.open_file(row[n].chunk(0)[0].as_buffer()).read_all() for n in row.column_names}
    except (pa.ArrowInvalid, ValueError, TypeError, KeyError) as error:
        raise damaged(path, error) from error
    return tables, meta
