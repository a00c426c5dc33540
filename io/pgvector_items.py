"""Items upserted into a loaded release: found by the next search, and neighbours like every other item.

Functions of a cursor; the caller owns the transaction.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import psycopg2
from psycopg2 import sql
from psycopg2.extras import execute_values

from beamrec.io.pgvector_copy import copy_neighbours
from beamrec.io.pgvector_neighbours import NEIGHBOURS, nearest_of, product_distances
from beamrec.io.pgvector_releases import audit, release
from beamrec.io.pgvector_schema import partition_name
from beamrec.io.pgvector_session import lock_key
from beamrec.schemas.embeddings import expected_length, wrong_id, wrong_lengths
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.releases import ActiveRelease

__all__ = ["UpsertedItems", "unknown_items", "upsert_items"]

_BLOCK_DISTANCES = 2**23  # held at once
_MARGIN = 1e-6  # lists hold float32: those within it are computed again, which is never wrong
_NAMED_IN_AUDIT = 10


@dataclasses.dataclass(frozen=True)
class UpsertedItems:
    """What an upsert did.

    Attributes:
      added, changed: items that the release did not know, and those whose vector was replaced.
      lists: neighbour lists that were computed again: theirs, and those that they entered or left.
      items_version: of the release, afterwards.
    """

    release: str
    added: int
    changed: int
    lists: int
    items_version: int


def unknown_items(cursor: psycopg2.extensions.cursor, release_id: str, ids: Sequence[str]) -> list[str]:
    """Those ids that a release does not know, in their order.

    Raises:
      UsageError: no such release is loaded.
    """
    release(cursor, release_id)
    cursor.execute(
        sql.SQL("SELECT id FROM beamrec.{} WHERE id = ANY(%s)").format(
            sql.Identifier(partition_name("item_embeddings", release_id))
        ),
        [[i for i in ids if "\0" not in i]],
    )
    known = {row[0] for row in cursor.fetchall()}
    return [i for i in ids if i not in known]


def upsert_items(
    cursor: psycopg2.extensions.cursor, release_id: str, ids: Sequence[str], vectors: np.ndarray, why: str
) -> UpsertedItems:
    """Adds items to a release, or replaces their vectors; neighbours, index and audit table follow.

    Args:
      ids: distinct.
      vectors: [len(ids), dim] float32.

    Raises:
      UsageError: no such release is loaded.
      BadDataError: a vector or an id is not one that the release could hold.
    """
    # Whoever loads, drops or upserts into the release waits its turn here; readers do not.
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [lock_key(release_id)])
    found = release(cursor, release_id)
    _check(cursor, found, ids, vectors)
    old_ids, old_vectors = _catalogue(cursor, found)
    known = set(old_ids)
    new = [item for item in ids if item not in known]
    changed = [item for item in ids if item in known]
    _write_vectors(cursor, release_id, ids, vectors)
    places = {item: place for place, item in enumerate((*old_ids, *new))}
    upserted = np.array([places[item] for item in ids], np.int64)
    all_vectors = np.concatenate([old_vectors, np.zeros((len(new), found.dim), np.float32)])
    all_vectors[upserted] = vectors
    rows = np.union1d(upserted, _touched(cursor, found, places, all_vectors, upserted, changed))
    _write_neighbours(cursor, found, list(places), all_vectors, rows)
    cursor.execute(
        "UPDATE beamrec.releases SET items = %s, items_version = items_version + 1 WHERE id = %s "
        "RETURNING items_version",
        [len(places), release_id],
    )
    version = cursor.fetchone()[0]
    audit(cursor, "upsert", None, release_id, f"{why}: {_summary(new, changed, ids)}")
    return UpsertedItems(release_id, len(new), len(changed), len(rows), version)


def _check(
    cursor: psycopg2.extensions.cursor, found: ActiveRelease, ids: Sequence[str], vectors: np.ndarray
) -> None:
    where = f"upsert into release {found.id}"
    if vectors.shape != (len(ids), found.dim):
        raise BadDataError(f"{where}: expected vectors [{len(ids)}, {found.dim}], got {list(vectors.shape)}")
    if len(set(ids)) != len(ids):
        raise BadDataError(f"{where}: ids must differ")
    cursor.execute(
        "SELECT manifest->>'item_key_type', (manifest->>'normalized')::boolean FROM beamrec.releases "
        "WHERE id = %s",
        [found.id],
    )
    key_type, normalized = cursor.fetchone()
    for item in ids:
        if expected := wrong_id(item, key_type):
            raise BadDataError(f"{where}: expected {expected}, got {item[:80]!r}")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = wrong_lengths(lengths, normalized, found.operator)
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = expected_length(normalized, found.operator)
        raise BadDataError(
            f"{where}: item {ids[row]!r}: expected {expected}, as the release's have it, "
            f"got {lengths[row]:.6g}"
        )


def _catalogue(cursor: psycopg2.extensions.cursor, found: ActiveRelease) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [items, dim] float32 of a release as it is now."""
    cursor.execute(
        sql.SQL("SELECT id, vector_send(embedding) FROM beamrec.{} ORDER BY id").format(
            sql.Identifier(partition_name("item_embeddings", found.id))
        )
    )
    rows = cursor.fetchall()
    # vector_send: int16 dim, int16 unused, then big-endian float32.
    data = b"".join(bytes(row[1])[4:] for row in rows)
    return [row[0] for row in rows], np.frombuffer(data, ">f4").astype(np.float32).reshape(-1, found.dim)


def _write_vectors(
    cursor: psycopg2.extensions.cursor, release_id: str, ids: Sequence[str], vectors: np.ndarray
) -> None:
    """Upserts vectors; a new item is the least popular one."""
    table = sql.Identifier("beamrec", partition_name("item_embeddings", release_id))
    cursor.execute(sql.SQL("SELECT coalesce(max(popularity_rank) + 1, 0) FROM {}").format(table))
    rank = cursor.fetchone()[0]
    statement = sql.SQL(
        "INSERT INTO {} (release, id, embedding, popularity_rank) VALUES %s "
        "ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding"
    ).format(table)
    figures = vectors.astype(np.float32).tolist()
    values = [(release_id, item, str(vector), rank) for item, vector in zip(ids, figures, strict=True)]
    execute_values(cursor, statement, values, template="(%s, %s, %s::vector, %s)")


def _touched(
    cursor: psycopg2.extensions.cursor,
    found: ActiveRelease,
    places: dict[str, int],
    vectors: np.ndarray,
    upserted: np.ndarray,
    changed: Sequence[str],
) -> np.ndarray:
    """Positions of the items whose lists the upserted items enter, or may have left.

    Args:
      places: id → position in `vectors`, of the whole catalogue.
      upserted: positions of the upserted items.
    """
    cursor.execute(
        sql.SQL(
            "SELECT id, distances[cardinality(distances)], "
            "cardinality(distances) < %s OR neighbour_ids && %s::text[] FROM beamrec.{}"
        ).format(sql.Identifier(partition_name("item_neighbours", found.id))),
        [min(NEIGHBOURS, len(vectors) - 1), list(changed)],
    )
    lists = cursor.fetchall()
    farthest = np.full(len(vectors), np.finfo(np.float64).min)
    affected = np.zeros(len(vectors), bool)
    for item, distance, again in lists:
        affected[places[item]] = again
        if distance is not None:
            farthest[places[item]] = distance
    bound = farthest + _MARGIN * (np.abs(farthest) + 1)
    queries, step = vectors[upserted].astype(np.float64), max(1, _BLOCK_DISTANCES // len(upserted))
    for start in range(0, len(vectors), step):
        block = slice(start, start + step)
        distances = product_distances(vectors[block].astype(np.float64), queries, found.operator)
        affected[block] |= (distances <= bound[block, None]).any(axis=1)
    return np.flatnonzero(affected)


def _write_neighbours(
    cursor: psycopg2.extensions.cursor,
    found: ActiveRelease,
    ids: Sequence[str],
    vectors: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Computes the lists of some items again, exactly, and upserts them."""
    indices, distances = nearest_of(rows, vectors, found.operator, NEIGHBOURS)
    cursor.execute("CREATE TEMPORARY TABLE upserted_neighbours (LIKE beamrec.item_neighbours) ON COMMIT DROP")
    copy_neighbours(cursor, sql.Identifier("upserted_neighbours"), found.id, ids, rows, indices, distances)
    cursor.execute(
        sql.SQL(
            "INSERT INTO {} SELECT * FROM upserted_neighbours ON CONFLICT (id) DO UPDATE "
            "SET neighbour_ids = excluded.neighbour_ids, distances = excluded.distances"
        ).format(sql.Identifier("beamrec", partition_name("item_neighbours", found.id)))
    )


def _summary(new: Sequence[str], changed: Sequence[str], ids: Sequence[str]) -> str:
    named = ", ".join(ids[:_NAMED_IN_AUDIT]) + (", …" if len(ids) > _NAMED_IN_AUDIT else "")
    return f"{len(new)} new and {len(changed)} changed items: {named}"
