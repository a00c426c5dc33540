"""Binary COPY of embeddings, built with NumPy, and checksums that both sides can compute.

Records are built, and their checksums added up, in a thread while the server takes in those before them.
"""

import dataclasses
import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import google_crc32c
import numpy as np
import psycopg2
from psycopg2 import sql

__all__ = ["Stored", "copy_embeddings", "copy_neighbours", "stored_rows"]

_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_CHUNK_ROWS = 10_000
_READ_BYTES = 2**20
_MODULUS = 2**64
_SERVER_WITH_CRC = 18_00_00


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a table of embeddings holds, whatever the order of its rows.

    Attributes:
      rows: how many.
      checksum: sum of the CRC-32C of each row, modulo 2⁶⁴, or before PostgreSQL 18, which lacks it, of the
        first 8 bytes of its SHA-256; a row is its id, vector and popularity rank as binary COPY sends them.
    """

    rows: int
    checksum: int

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(self.rows + other.rows, (self.checksum + other.checksum) % _MODULUS)


def copy_embeddings(
    cursor: psycopg2.extensions.cursor,
    table: str,
    release: str,
    ids: Sequence[str],
    vectors: np.ndarray,
    ranks: np.ndarray | None,
) -> Stored:
    """Copies (release, id, embedding[, popularity_rank]) into a table of `beamrec` made in this transaction.

    Args:
      vectors: [rows, dim] float32.
      ranks: [rows] int32, or None for tables without that column.

    Returns:
      What the table must hold now; `stored_rows` says what it does.
    """
    total, with_crc = Stored(0, 0), _has_crc(cursor)

    def chunks() -> Iterator[bytes]:
        nonlocal total
        yield _HEADER
        for records in _records(release, ids, vectors, ranks):
            data = records.tobytes()
            total += _checksum(data, records.dtype, with_crc)
            yield data
        yield _TRAILER

    columns = "release, id, embedding" + (", popularity_rank" if ranks is not None else "")
    # FREEZE spares the first readers, and vacuum, a second writing of every page.
    copy = sql.SQL("COPY beamrec.{} ({}) FROM STDIN (FORMAT binary, FREEZE)").format(
        sql.Identifier(table), sql.SQL(columns)
    )
    cursor.copy_expert(copy, _ReadAhead(chunks()), _READ_BYTES)
    return total


def stored_rows(cursor: psycopg2.extensions.cursor, table: str, with_ranks: bool) -> Stored:
    """Rows and checksum of a table of embeddings, computed by the server."""
    row = "textsend(id) || int4send(octet_length(vector_send(embedding))) || vector_send(embedding)" + (
        " || int4send(4) || int4send(popularity_rank)" if with_ranks else ""
    )
    # 200,000 rows of 64 numbers: 0.09 s against 0.28 s, of a load of 0.7 s.
    head = (
        "crc32c({})" if _has_crc(cursor) else "('x' || left(encode(sha256({}), 'hex'), 16))::bit(64)::bigint"
    )
    cursor.execute(
        sql.SQL("SELECT count(*), coalesce(sum({}), 0) FROM beamrec.{}").format(
            sql.SQL(head.format(row)), sql.Identifier(table)
        )
    )
    rows, checksum = cursor.fetchone()
    return Stored(rows, int(checksum) % _MODULUS)


def _records(
    release: str, ids: Sequence[str], vectors: np.ndarray, ranks: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Arrays of records, some thousand rows each.

    Rows whose ids are equally long have records of one width, so each such group of a chunk is one NumPy
    array: an order of magnitude faster than rows.
    """
    name = release.encode("utf-8")
    for start in range(0, len(ids), _CHUNK_ROWS):
        encoded = [i.encode("utf-8") for i in ids[start : start + _CHUNK_ROWS]]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            text = b"".join(encoded if len(rows) == len(encoded) else [encoded[row] for row in rows])
            letters = np.frombuffer(text, np.uint8).reshape(len(rows), length)
            rank = None if ranks is None else ranks[start + rows]
            yield _group(name, letters, vectors[start + rows], rank)


def _group(release: bytes, letters: np.ndarray, vectors: np.ndarray, ranks: np.ndarray | None) -> np.ndarray:
    """Records of rows with equally long ids, whose bytes are `letters` [rows, length]."""
    rows, dim = vectors.shape
    kind = _record_type(len(release), letters.shape[1], dim, ranks is not None)
    records = np.zeros(rows, kind)
    records["fields"] = 3 + (ranks is not None)
    records["release_length"], records["release"] = len(release), np.frombuffer(release, np.uint8)
    records["id_length"], records["id"] = letters.shape[1], letters
    records["vector_length"], records["dim"], records["vector"] = 4 + 4 * dim, dim, vectors
    if ranks is not None:
        records["rank_length"], records["rank"] = 4, ranks
    return records


def _record_type(release_length: int, id_length: int, dim: int, has_rank: bool) -> np.dtype[Any]:
    """One row of a binary COPY: a field count, then for each field its length and its big-endian bytes."""
    fields: list[tuple[Any, ...]] = [
        ("fields", ">i2"),
        ("release_length", ">i4"),
        ("release", "u1", (release_length,)),
        ("id_length", ">i4"),
        ("id", "u1", (id_length,)),
        ("vector_length", ">i4"),
        ("dim", ">i2"),
        ("unused", ">i2"),
        ("vector", ">f4", (dim,)),
    ]
    return np.dtype(fields + ([("rank_length", ">i4"), ("rank", ">i4")] if has_rank else []))


def _has_crc(cursor: psycopg2.extensions.cursor) -> bool:
    return bool(cursor.connection.server_version >= _SERVER_WITH_CRC)


def _checksum(data: bytes, kind: np.dtype[Any], with_crc: bool) -> Stored:
    """Of records of one width; what counts of each begins with its id."""
    begin = cast(Any, kind.fields)["id"][1]
    rows = [data[at + begin : at + kind.itemsize] for at in range(0, len(data), kind.itemsize)]
    if with_crc:
        return Stored(len(rows), sum(map(google_crc32c.value, rows)) % _MODULUS)
    heads = np.frombuffer(b"".join([hashlib.sha256(row).digest() for row in rows]), ">u8")[::4]
    return Stored(len(rows), int(heads.sum(dtype=np.uint64)))


class _ReadAhead(io.RawIOBase):
    """What COPY reads: chunks, each made in a thread while the one before it is sent."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = _made_ahead(lambda: next(chunks, b""))
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """The next bytes, `size` at most; b"" at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


def _made_ahead(make: Callable[[], bytes]) -> Iterator[bytes]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(make)
        while chunk := coming.result():
            coming = thread.submit(make)
            yield chunk


def copy_neighbours(
    cursor: psycopg2.extensions.cursor,
    table: sql.Identifier,
    release: str,
    ids: Sequence[str],
    rows: Sequence[int] | np.ndarray,
    indices: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Copies (release, id, neighbour_ids, distances) of some rows of a catalogue into a table.

    Args:
      ids: ids of the whole catalogue.
      rows: [n] positions in `ids` of those whose neighbours are given.
      indices: [n, k] positions of their neighbours.
      distances: [n, k] ascending.
    """
    copy = sql.SQL("COPY {} (release, id, neighbour_ids, distances) FROM STDIN").format(table)
    quoted = [_array_element(item) for item in ids]
    figures = distances.astype(np.float32)

    def lines(start: int) -> bytes:
        block = range(start, min(start + _CHUNK_ROWS, len(rows)))
        text = [
            f"{release}\t{_copy_text(ids[rows[row]])}\t"
            f"{_copy_text('{' + ','.join([quoted[i] for i in indices[row]]) + '}')}\t"
            f"{{{','.join(map(str, figures[row].tolist()))}}}\n"
            for row in block
        ]
        return "".join(text).encode("utf-8")

    chunks = (lines(start) for start in range(0, len(rows), _CHUNK_ROWS))
    cursor.copy_expert(copy, _ReadAhead(chunks), _READ_BYTES)


def _array_element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _copy_text(text: str) -> str:
    """Escapes one value of COPY's text format."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
