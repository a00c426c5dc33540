"""Loading a release: tables filled apart, indexed and checked step by step, then attached all at once.

Readers notice nothing: until the last transaction no table of the release is attached to a parent, and
attaching waits for no reader. A load that was killed goes on behind its last finished step; the server lets
go of a dead loader's lock, so two loaders of one release do its steps one after the other.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg2
from psycopg2 import sql
from psycopg2.extras import Json

from beamrec.io.pgvector_copy import Stored, copy_embeddings, copy_neighbours, stored_rows
from beamrec.io.pgvector_index import IndexOptions, create_index
from beamrec.io.pgvector_neighbours import (
    EXACT_ITEMS,
    NEIGHBOURS,
    fill_by_index,
    nearest_items,
    sampled_recall,
)
from beamrec.io.pgvector_partitions import attach, drop_tables, new_table
from beamrec.io.pgvector_releases import audit
from beamrec.io.pgvector_schema import PARTITIONED_TABLES, ensure_schema, partition_name
from beamrec.io.pgvector_session import Session, open_session
from beamrec.schemas.embeddings import MAX_LENGTH, search_operator
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest

__all__ = ["load_release", "search_operators"]

_CHECKED_ROWS = 8_192

Built = dict[str, Any]


def load_release(
    uri: str, contents: ReleaseContents, index: IndexOptions, status: Callable[[str], None]
) -> bool:
    """Loads a release; False if it is loaded already (then only its folder is noted).

    Args:
      uri: of the store, as `postgres.connect` takes it.
      status: told which step begins.

    Raises:
      BadDataError: the id is loaded with other content, or what was stored is not what was given.
      UnavailableError: the store is away, was lost on the way, is full, or refuses us; called again, the
        load goes on.
    """
    release_id = contents.manifest.id
    _check_given(contents)
    with open_session(uri, f"release load {release_id}") as session:
        session.lock(release_id)
        with session.step() as cursor:
            ensure_schema(cursor)
            if _is_loaded(cursor, contents):
                return False
        options = index.described(contents.manifest.items)
        done = _begin(session, contents, options)
        try:
            for step in (step for step in _STEPS if step.name not in done):
                status(f"{release_id}: {step.says(contents, index)}")
                _do(session, step, contents, index)
        except BadDataError:
            _give_up(session, release_id)
            raise
        with session.step() as cursor:
            _publish(cursor, contents)
    return True


def _check_given(contents: ReleaseContents) -> None:
    """Numbers that are finite, and no vector so long that the neighbours' float32 product overflows."""
    for side, vectors in (("item", contents.item_vectors), ("user", contents.user_vectors)):
        for start in range(0, len(vectors), _CHECKED_ROWS):
            with np.errstate(over="ignore"):  # infinite is too long as well
                lengths = np.linalg.norm(vectors[start : start + _CHECKED_ROWS], axis=1)
            if not (lengths <= MAX_LENGTH).all():
                raise BadDataError(
                    f"release {contents.manifest.id}: {side} vectors: expected finite numbers and a "
                    f"length of at most {MAX_LENGTH:g}, got {lengths[~(lengths <= MAX_LENGTH)][0]:.6g}"
                )


def _is_loaded(cursor: psycopg2.extensions.cursor, contents: ReleaseContents) -> bool:
    release_id = contents.manifest.id
    cursor.execute("SELECT checksum FROM beamrec.releases WHERE id = %s", [release_id])
    row = cursor.fetchone()
    if row is None:
        return False
    if row[0] != contents.checksum:
        raise BadDataError(
            f"release {release_id}: already loaded with another content (manifest checksum "
            f"{row[0][:12]}…, now {contents.checksum[:12]}…); releases are immutable: train a new one"
        )
    cursor.execute("UPDATE beamrec.releases SET uri = %s WHERE id = %s", [contents.uri, release_id])
    return True


def _begin(session: Session, contents: ReleaseContents, options: Built) -> list[str]:
    """Steps that an earlier load of the same content finished; whatever else is left over is dropped."""
    release_id = contents.manifest.id
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT done FROM beamrec.release_loads WHERE id = %s AND checksum = %s AND options = %s",
            [release_id, contents.checksum, Json(options)],
        )
        row = cursor.fetchone()
    if row is not None:
        return list(row[0])
    drop_tables(session, release_id)
    with session.cursor() as cursor:
        cursor.execute(
            "INSERT INTO beamrec.release_loads (id, checksum, options) VALUES (%s, %s, %s) "
            "ON CONFLICT (id) DO UPDATE SET checksum = excluded.checksum, options = excluded.options, "
            "built = '{}', done = '{}', touched_at = clock_timestamp()",
            [release_id, contents.checksum, Json(options)],
        )
    return []


def _give_up(session: Session, release_id: str) -> None:
    with session.cursor() as cursor:  # first: the next load must not go on behind tables that are dropped
        cursor.execute("DELETE FROM beamrec.release_loads WHERE id = %s", [release_id])
    drop_tables(session, release_id)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One transaction of a load.

    Attributes:
      does: fills, checks or indexes tables; returns what is to be known of it.
      says: what the user reads meanwhile.
    """

    name: str
    does: Callable[[psycopg2.extensions.cursor, ReleaseContents, IndexOptions], Built]
    says: Callable[[ReleaseContents, IndexOptions], str]


def _do(session: Session, step: _Step, contents: ReleaseContents, index: IndexOptions) -> None:
    began = time.monotonic()
    with session.step() as cursor:
        try:
            built = step.does(cursor, contents, index)
        except psycopg2.errors.UniqueViolation as error:
            twice = (error.diag.message_detail or str(error)).splitlines()[0]
            raise BadDataError(
                f"release {contents.manifest.id}: {step.name}: ids must differ: {twice}"
            ) from None
        built |= {f"{step.name}_seconds": round(time.monotonic() - began, 3)}
        cursor.execute(
            "UPDATE beamrec.release_loads SET done = done || %s, built = built || %s, "
            "touched_at = clock_timestamp() WHERE id = %s",
            [[step.name], Json(built), contents.manifest.id],
        )


def _load_items(cursor: psycopg2.extensions.cursor, contents: ReleaseContents, index: IndexOptions) -> Built:
    ranks = {item: rank for rank, item in enumerate(contents.popular)}
    column = np.fromiter((ranks.get(i, len(ranks)) for i in contents.item_ids), np.int32)
    stored = _fill(cursor, "item_embeddings", contents, contents.item_ids, contents.item_vectors, column)
    return {"items_checksum": f"{stored.checksum:016x}"}


def _load_users(cursor: psycopg2.extensions.cursor, contents: ReleaseContents, index: IndexOptions) -> Built:
    stored = _fill(cursor, "user_embeddings", contents, contents.user_ids, contents.user_vectors, None)
    return {"users_checksum": f"{stored.checksum:016x}"}


def _fill(
    cursor: psycopg2.extensions.cursor,
    parent: str,
    contents: ReleaseContents,
    ids: tuple[str, ...],
    vectors: np.ndarray,
    ranks: np.ndarray | None,
) -> Stored:
    """Fills one table of embeddings, reads back its checksum, and gives it its key."""
    release_id = contents.manifest.id
    table = new_table(cursor, parent, release_id)
    expected = copy_embeddings(cursor, table, release_id, ids, vectors, ranks)
    stored = stored_rows(cursor, table, ranks is not None)
    if stored != expected:
        raise BadDataError(
            f"{table}: what was stored is not what was sent: expected {expected.rows} rows of checksum "
            f"{expected.checksum:016x}, found {stored.rows} of {stored.checksum:016x}"
        )
    _finish_table(cursor, table)
    return stored


def _finish_table(cursor: psycopg2.extensions.cursor, table: str) -> None:
    name = sql.Identifier("beamrec", table)
    cursor.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(name))
    cursor.execute(sql.SQL("ANALYZE {}").format(name))


def search_operators(manifest: ReleaseManifest) -> frozenset[str]:
    """Operators that the items are indexed for: that of their distances, and that which finds by score."""
    return frozenset({manifest.distance, search_operator(manifest.distance, manifest.normalized)})


def _index_items(cursor: psycopg2.extensions.cursor, contents: ReleaseContents, index: IndexOptions) -> Built:
    manifest = contents.manifest
    table = partition_name("item_embeddings", manifest.id)
    create_index(cursor, table, manifest.items, manifest.dim, search_operators(manifest), index)
    return {"index": index.described(manifest.items)}


def _by_index(contents: ReleaseContents, index: IndexOptions) -> bool:
    """Whether neighbours come from the index: there is one, and the exact product would take longer."""
    return index.kind != "none" and contents.manifest.items > EXACT_ITEMS


def _load_neighbours(
    cursor: psycopg2.extensions.cursor, contents: ReleaseContents, index: IndexOptions
) -> Built:
    manifest, ids = contents.manifest, contents.item_ids
    table = new_table(cursor, "item_neighbours", manifest.id)
    built: Built = {"neighbours": "exact"}
    if _by_index(contents, index):
        lists = index.described(manifest.items).get("lists")
        items = partition_name("item_embeddings", manifest.id)
        fill_by_index(cursor, table, items, manifest.id, manifest.dim, manifest.distance, lists)
        recall = sampled_recall(cursor, table, ids, contents.item_vectors, manifest.distance)
        built = {"neighbours": index.kind, "neighbours_recall": round(recall, 4)}
    else:
        found = nearest_items(contents.item_vectors, manifest.distance, NEIGHBOURS)
        copy_neighbours(
            cursor, sql.Identifier("beamrec", table), manifest.id, ids, np.arange(len(ids)), *found
        )
    _finish_table(cursor, table)
    cursor.execute(sql.SQL("SELECT count(*) FROM beamrec.{}").format(sql.Identifier(table)))
    if (count := cursor.fetchone()[0]) != len(ids):
        raise BadDataError(f"{table}: expected the neighbours of {len(ids)} items, found {count}")
    return built


_STEPS = (
    _Step("items", _load_items, lambda c, i: f"copying {c.manifest.items:,} item vectors"),
    _Step("users", _load_users, lambda c, i: f"copying {c.manifest.users:,} user vectors"),
    _Step("index", _index_items, lambda c, i: f"building the index ({i.kind})"),
    _Step(
        "neighbours",
        _load_neighbours,
        lambda c, i: f"computing neighbours ({i.kind if _by_index(c, i) else 'exact'})",
    ),
)


def _publish(cursor: psycopg2.extensions.cursor, contents: ReleaseContents) -> None:
    """Attaches the tables, and the release is there: one short transaction."""
    manifest = contents.manifest
    for parent in PARTITIONED_TABLES:
        attach(cursor, parent, manifest.id)
    cursor.execute(
        "INSERT INTO beamrec.releases "
        "(id, uri, checksum, dim, operator, has_user_tower, items, users, manifest, built) "
        "SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, built FROM beamrec.release_loads WHERE id = %s",
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
            manifest.id,
        ],
    )
    cursor.execute("DELETE FROM beamrec.release_loads WHERE id = %s", [manifest.id])
    audit(cursor, "load", None, manifest.id, f"from {contents.uri}")
