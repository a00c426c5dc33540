"""Partitions that many ranges contribute to: sorted runs per range, merged by partition.

An external merge sort. Every range leaves sorted runs in the staging folder, one per group of partitions;
only the runs' names are shuffled. A group's runs are then merged with one batch of each in memory. Rows of
a partition come out ascending by key, in whatever order and in however many ranges they were read, so that
the files and their names depend on nothing but the rows.
"""

import bisect
import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

__all__ = ["FILE_ROWS", "GROUPS", "encode_runs", "fill_files", "merge_runs", "read_run"]

# A merging worker holds one group's runs, compressed: a 64th of the data, and at least its largest partition.
# Rows of 300 bytes took 160, so 50 million rows are some 120 MB a group and a billion 2.5 GB. The number is
# fixed because how many rows there are is not known before the last of them is read, by when the runs are
# written; with 250 ranges of 200,000 rows they are 16,000 files already. Files do not depend on it.
GROUPS = 64
# Of each run one decoded batch is in memory; it may hold several folders.
_BATCH_ROWS = 2_048
# Some 10 MB of Parquet: what a reader likes, and what a worker can hold twice.
FILE_ROWS = 500_000

_FOLDERS = b"folders"
_Piece = tuple[str, pa.RecordBatch]
_Key = tuple[Any, ...]


def encode_runs(partitions: Iterable[_Piece]) -> Iterator[tuple[int, pa.Buffer]]:
    """The sorted runs of a range.

    Args:
      partitions: rows by folder, all of one schema, ascending within a folder.

    Yields:
      (group, run): an Arrow IPC stream of rows ascending by folder and key. Each batch says in its metadata
        which folders it holds, and how many rows of each.
    """
    groups: dict[int, list[_Piece]] = {}
    for folder, rows in partitions:
        groups.setdefault(_group(folder), []).append((folder, rows))
    for group, pieces in groups.items():
        yield group, _encode_run(sorted(pieces, key=lambda piece: piece[0]))


def read_run(run: bytes) -> Iterator[_Piece]:
    """The rows of a run in pieces of one folder; one batch is decoded at a time."""
    with pa.ipc.open_stream(run) as reader:
        for batch, metadata in reader.iter_batches_with_custom_metadata():
            start = 0
            for folder, rows in json.loads(metadata[_FOLDERS]):
                yield folder, batch.slice(start, rows)
                start += rows


def merge_runs(runs: Sequence[Iterator[_Piece]], order: Sequence[str]) -> Iterator[_Piece]:
    """The rows of all runs ascending by folder and key, in pieces of one folder.

    Takes from the run with the lowest row all that comes before any other run's next row: for ranges of
    customers that do not overlap these are whole batches.
    """
    heads: list[tuple[str, _Key, int]] = []
    batches: dict[int, pa.RecordBatch] = {}

    def advance(index: int) -> None:
        piece = next(runs[index], None)
        if piece is not None:
            push(index, *piece)

    def push(index: int, folder: str, batch: pa.RecordBatch) -> None:
        batches[index] = batch
        heapq.heappush(heads, (folder, _key(batch, 0, order), index))

    for index in range(len(runs)):
        advance(index)
    while heads:
        folder, _, index = heapq.heappop(heads)
        batch = batches.pop(index)
        rows = _rows_before(heads[0][:2], folder, batch, order) if heads else batch.num_rows
        yield folder, batch.slice(0, rows)
        if rows < batch.num_rows:
            push(index, folder, batch.slice(rows))
        else:
            advance(index)


def fill_files(pieces: Iterable[_Piece], file_rows: int = FILE_ROWS) -> Iterator[_Piece]:
    """Pieces put together to files of exactly `file_rows` rows; the last of a folder may have fewer."""
    kept: list[pa.RecordBatch] = []
    folder, rows = "", 0
    for piece_folder, batch in pieces:
        if kept and piece_folder != folder:
            yield folder, pa.concat_batches(kept)
            kept, rows = [], 0
        folder, rest = piece_folder, batch
        while rows + rest.num_rows >= file_rows:
            yield folder, pa.concat_batches([*kept, rest.slice(0, file_rows - rows)])
            rest, kept, rows = rest.slice(file_rows - rows), [], 0
        if rest.num_rows:
            kept.append(rest)
            rows += rest.num_rows
    if kept:
        yield folder, pa.concat_batches(kept)


def _encode_run(pieces: Sequence[_Piece]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, pieces[0][1].schema, options=options) as writer:
        for lot in _lots(pieces):
            folders = [(folder, rows.num_rows) for folder, rows in lot]
            metadata = {_FOLDERS: json.dumps(folders).encode()}
            writer.write_batch(pa.concat_batches([rows for _, rows in lot]), custom_metadata=metadata)
    return sink.getvalue()


def _lots(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces cut and put together to batches: one each for 5,000 folders took three times as long."""
    lot: list[_Piece] = []
    space = _BATCH_ROWS
    for folder, rows in pieces:
        rest = rows
        while rest.num_rows >= space:
            yield [*lot, (folder, rest.slice(0, space))]
            rest, lot, space = rest.slice(space), [], _BATCH_ROWS
        if rest.num_rows:
            lot.append((folder, rest))
            space -= rest.num_rows
    if lot:
        yield lot


def _group(folder: str) -> int:
    digest = hashlib.md5(folder.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4]) % GROUPS


def _key(batch: pa.RecordBatch, row: int, order: Sequence[str]) -> _Key:
    return tuple(batch.column(name)[row].as_py() for name in order)


def _rows_before(limit: tuple[str, _Key], folder: str, batch: pa.RecordBatch, order: Sequence[str]) -> int:
    """Rows at the head of a batch that come before a row of another run; at least one."""
    rows: int = batch.num_rows
    if (folder, _key(batch, rows - 1, order)) < limit:
        return rows
    return max(1, bisect.bisect_left(range(rows), limit[1], key=lambda row: _key(batch, row, order)))
