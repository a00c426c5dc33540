"""Filling the partitions of one release: binary COPY, neighbours, index after data, checks.

Everything happens in one transaction, on tables that are attached to their parents at its end: a load
that is killed leaves nothing behind, and readers of the active release notice nothing, because ATTACH
PARTITION takes no lock that a reader waits for.
"""

import hashlib
import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg2
from psycopg2 import sql

from beamrec.io.pgvector_schema import create_index, partition_name
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.releases import ReleaseContents

__all__ = ["copy_binary", "load_release", "nearest_items"]

NEIGHBOURS = 20
_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_CHUNK_ROWS = 20_000
_BLOCK_ROWS = 1_024  # rows of the item × item product held at once


def load_release(cursor: psycopg2.extensions.cursor, contents: ReleaseContents) -> bool:
    """Loads a release; False if it is loaded already (then only its folder is noted).

    Raises:
      BadDataError: the id is loaded with other content, or what was stored is not what was given.
    """
    manifest = contents.manifest
    lock = int.from_bytes(hashlib.sha256(manifest.id.encode()).digest()[:8], "big", signed=True)
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [lock])
    cursor.execute("SELECT checksum FROM beamrec.releases WHERE id = %s", [manifest.id])
    row = cursor.fetchone()
    if row is not None:
        if row[0] != contents.checksum:
            raise BadDataError(
                f"release {manifest.id}: already loaded with another content (manifest checksum "
                f"{row[0][:12]}…, now {contents.checksum[:12]}…); releases are immutable: train a new one"
            )
        cursor.execute("UPDATE beamrec.releases SET uri = %s WHERE id = %s", [contents.uri, manifest.id])
        return False
    ranks = {item: rank for rank, item in enumerate(contents.popular)}
    rank_column = np.array([ranks.get(item, len(ranks)) for item in contents.item_ids], np.int32)
    _fill(cursor, "item_embeddings", contents, contents.item_ids, contents.item_vectors, rank_column)
    _fill(cursor, "user_embeddings", contents, contents.user_ids, contents.user_vectors, None)
    _fill_neighbours(cursor, contents)
    _register(cursor, contents)
    return True


def _register(cursor: psycopg2.extensions.cursor, contents: ReleaseContents) -> None:
    manifest = contents.manifest
    cursor.execute(
        "INSERT INTO beamrec.releases "
        "(id, uri, checksum, dim, operator, has_user_tower, items, users, manifest) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            manifest.id,
            contents.uri,
            contents.checksum,
            manifest.dim,
            manifest.distance,
            manifest.has_user_tower,
            manifest.items,
            manifest.users,
            manifest.to_json().decode("utf-8"),
        ],
    )


def copy_binary(
    release: str, ids: Sequence[str], vectors: np.ndarray, ranks: np.ndarray | None = None
) -> bytes:
    """Rows (release, id, embedding[, popularity_rank]) in PostgreSQL's binary COPY format.

    Rows whose ids are equally long have records of one width, so each such group is one NumPy array: an
    order of magnitude faster than rows. The rows come out grouped, not in the order given.

    Args:
      vectors: [rows, dim] float32.
      ranks: [rows] int32, or None for tables without that column.
    """
    name = release.encode("utf-8")
    encoded = [i.encode("utf-8") for i in ids]
    lengths = np.array([len(i) for i in encoded], np.int64)
    parts = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        records = np.zeros(
            len(rows), _record_type(len(name), int(length), vectors.shape[1], ranks is not None)
        )
        records["fields"] = 3 + (ranks is not None)
        records["release_length"], records["release"] = len(name), np.frombuffer(name, np.uint8)
        text = b"".join(encoded[row] for row in rows)
        records["id_length"], records["id"] = length, np.frombuffer(text, np.uint8).reshape(len(rows), length)
        records["vector_length"], records["dim"] = 4 + 4 * vectors.shape[1], vectors.shape[1]
        records["vector"] = vectors[rows]
        if ranks is not None:
            records["rank_length"], records["rank"] = 4, ranks[rows]
        parts.append(records.tobytes())
    return _HEADER + b"".join(parts) + _TRAILER


def _record_type(release_length: int, id_length: int, dim: int, has_rank: bool) -> np.dtype[Any]:
    """One row of `copy_binary`: a field count, then for each field its length and its big-endian bytes."""
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


def _fill(
    cursor: psycopg2.extensions.cursor,
    table: str,
    contents: ReleaseContents,
    ids: Sequence[str],
    vectors: np.ndarray,
    ranks: np.ndarray | None,
) -> None:
    manifest = contents.manifest
    partition = _new_partition(cursor, table, manifest.id)
    columns = "release, id, embedding" + (", popularity_rank" if ranks is not None else "")
    copy = sql.SQL("COPY beamrec.{} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(partition), sql.SQL(columns)
    )
    for start in range(0, len(ids), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        data = copy_binary(manifest.id, ids[rows], vectors[rows], None if ranks is None else ranks[rows])
        cursor.copy_expert(copy, io.BytesIO(data))
    _check_stored(cursor, partition, len(ids), manifest.dim)
    cursor.execute(sql.SQL("ALTER TABLE beamrec.{} ADD PRIMARY KEY (id)").format(sql.Identifier(partition)))
    if table == "item_embeddings":
        create_index(cursor, partition, manifest.dim, manifest.distance, manifest.normalized)
    _attach(cursor, table, partition, manifest.id)


def _new_partition(cursor: psycopg2.extensions.cursor, table: str, release: str) -> str:
    partition = partition_name(table, release)
    cursor.execute(
        sql.SQL("CREATE TABLE beamrec.{} (LIKE beamrec.{}, CHECK (release = {}))").format(
            sql.Identifier(partition), sql.Identifier(table), sql.Literal(release)
        )
    )
    return partition


def _attach(cursor: psycopg2.extensions.cursor, table: str, partition: str, release: str) -> None:
    cursor.execute(
        sql.SQL("ALTER TABLE beamrec.{} ATTACH PARTITION beamrec.{} FOR VALUES IN ({})").format(
            sql.Identifier(table), sql.Identifier(partition), sql.Literal(release)
        )
    )
    cursor.execute(sql.SQL("ANALYZE beamrec.{}").format(sql.Identifier(partition)))


def _check_stored(cursor: psycopg2.extensions.cursor, partition: str, rows: int, dim: int) -> None:
    """Reads back what COPY stored: rows, ids, dimensions, norms (pgvector itself refuses NaN)."""
    cursor.execute(
        sql.SQL(
            "SELECT count(*), count(DISTINCT id), coalesce(min(vector_dims(embedding)), {0}), "
            "coalesce(max(vector_dims(embedding)), {0}), "
            "count(*) FILTER (WHERE vector_norm(embedding) = 'Infinity') FROM beamrec.{1}"
        ).format(sql.Literal(dim), sql.Identifier(partition))
    )
    stored = cursor.fetchone()
    if stored != (rows, rows, dim, dim, 0):
        raise BadDataError(
            f"{partition}: expected {rows} rows with distinct ids, vectors of {dim} and finite norms; stored "
            f"{stored[0]} rows, {stored[1]} ids, vectors of {stored[2]} to {stored[3]}, {stored[4]} infinite"
        )


def nearest_items(vectors: np.ndarray, operator: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact k nearest other rows of each row.

    Candidates come from a float32 matrix product, a block of rows at a time; their distances are then
    computed again in float64, because ‖a‖² + ‖b‖² − 2ab loses what distinguishes near neighbours.

    Args:
      vectors: [items, dim] float32.
      operator: `<->` L2, `<=>` cosine or `<#>` negative inner product.

    Returns:
      Indices [items, k'] and distances [items, k'] ascending, with k' = min(k, items - 1).
    """
    count = len(vectors)
    k = min(k, count - 1)
    if k <= 0:
        return np.zeros((count, 0), np.int64), np.zeros((count, 0))
    based = _unit(vectors) if operator == "<=>" else vectors
    penalty = (based * based).sum(1) / 2 if operator == "<->" else np.zeros(count, np.float32)
    spare = min(count - 1, k + 4)
    indices, distances = np.empty((count, k), np.int64), np.empty((count, k))
    for start in range(0, count, _BLOCK_ROWS):
        block = slice(start, min(start + _BLOCK_ROWS, count))
        closeness = based[block] @ based.T - penalty
        closeness[np.arange(len(closeness)), np.arange(block.start, block.stop)] = -np.inf
        candidates = np.sort(np.argpartition(-closeness, spare - 1, axis=1)[:, :spare], axis=1)
        exact = _distances(based[block], based[candidates], operator)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        indices[block] = np.take_along_axis(candidates, order, 1)
        distances[block] = np.take_along_axis(exact, order, 1)
    return indices, distances


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _distances(rows: np.ndarray, candidates: np.ndarray, operator: str) -> np.ndarray:
    """Distances [rows, candidates] of rows [rows, dim] to candidates [rows, candidates, dim], in float64."""
    a, b = rows[:, None, :].astype(np.float64), candidates.astype(np.float64)
    if operator == "<->":
        return np.asarray(np.sqrt(((a - b) ** 2).sum(-1)))
    products = np.asarray((a * b).sum(-1))
    return 1 - products if operator == "<=>" else -products


def _fill_neighbours(cursor: psycopg2.extensions.cursor, contents: ReleaseContents) -> None:
    manifest = contents.manifest
    partition = _new_partition(cursor, "item_neighbours", manifest.id)
    indices, distances = nearest_items(contents.item_vectors, manifest.distance, NEIGHBOURS)
    copy = sql.SQL("COPY beamrec.{} (release, id, neighbour_ids, distances) FROM STDIN").format(
        sql.Identifier(partition)
    )
    quoted = [_array_element(item) for item in contents.item_ids]
    for start in range(0, len(quoted), _CHUNK_ROWS):
        lines = [
            "\t".join(
                (
                    manifest.id,
                    _copy_text(contents.item_ids[row]),
                    _copy_text("{" + ",".join(quoted[i] for i in indices[row]) + "}"),
                    "{" + ",".join(str(d) for d in distances[row].astype(np.float32).tolist()) + "}",
                )
            )
            for row in range(start, min(start + _CHUNK_ROWS, len(quoted)))
        ]
        cursor.copy_expert(copy, io.StringIO("\n".join(lines) + "\n"))
    cursor.execute(sql.SQL("ALTER TABLE beamrec.{} ADD PRIMARY KEY (id)").format(sql.Identifier(partition)))
    _attach(cursor, "item_neighbours", partition, manifest.id)


def _array_element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _copy_text(text: str) -> str:
    """Escapes one value of COPY's text format."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
