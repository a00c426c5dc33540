"""Fills a store for the bench: a release with its index, and neighbours of every item.

Not by `release load`: it computes the true neighbours of each item, an hour for a million of them, and what a
look-up costs does not depend on who they are.
"""

import hashlib
import io
import sys
import time

import numpy as np
import psycopg2
from psycopg2 import sql
from psycopg2.extras import Json
from vectors import Catalogue

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_copy import copy_embeddings
from beamrec.io.pgvector_index import IndexOptions, create_index
from beamrec.io.pgvector_partitions import attach, new_table
from beamrec.io.pgvector_schema import partition_name
from beamrec.io.pgvector_session import open_session

__all__ = ["NEIGHBOURS", "fill", "item_ids", "release_id"]

NEIGHBOURS = 20
_OPERATOR = "<->"
_BLOCK = 50_000


def release_id(items: int, dim: int, kind: str) -> str:
    """Name of the release of a catalogue."""
    return f"bench-{kind}-{items}-{dim}"


def item_ids(items: int) -> list[str]:
    """Ids as a shop has them."""
    return [f"S{number % 97:02d}_{number:07d}" for number in range(items)]


def fill(uri: str, name: str, catalogue: Catalogue, lists: bool) -> None:
    """Loads a release if it is not there yet; its marks are written last.

    Args:
      lists: whether the items get neighbours too.
    """
    ReleaseStore(uri).ensure_schema()
    with open_session(uri, "bench") as session:
        with session.cursor() as cursor:
            cursor.execute("SELECT 1 FROM beamrec.releases WHERE id = %s", [name])
            if cursor.fetchone():
                return
        began = time.monotonic()
        print(f"{name}: loading and indexing …", end=" ", file=sys.stderr, flush=True)
        with session.step() as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            _fill_items(cursor, name, catalogue)
            if lists:
                _fill_neighbours(cursor, name, len(catalogue.items))
            _register(cursor, name, catalogue)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


def _fill_items(cursor: psycopg2.extensions.cursor, name: str, catalogue: Catalogue) -> None:
    count, dim = catalogue.items.shape
    ranks = np.arange(count, dtype=np.int32)
    table = new_table(cursor, "item_embeddings", name)
    copy_embeddings(cursor, table, name, item_ids(count), catalogue.items, ranks)
    _finish(cursor, "item_embeddings", name)
    create_index(cursor, table, count, dim, frozenset({_OPERATOR}), IndexOptions())
    users = new_table(cursor, "user_embeddings", name)
    copy_embeddings(cursor, users, name, list(map(str, range(len(catalogue.users)))), catalogue.users, None)
    _finish(cursor, "user_embeddings", name)


def _fill_neighbours(cursor: psycopg2.extensions.cursor, name: str, count: int) -> None:
    draw, ids = np.random.default_rng(7), np.array(item_ids(count))
    table = new_table(cursor, "item_neighbours", name)
    copy = sql.SQL("COPY {} FROM STDIN").format(sql.Identifier("beamrec", table))
    for start in range(0, count, _BLOCK):
        rows = ids[start : start + _BLOCK]
        others = ids[draw.integers(0, count, (len(rows), NEIGHBOURS))]
        distances = np.sort(draw.random((len(rows), NEIGHBOURS), np.float32), axis=1)
        lines = [
            f"{name}\t{item}\t{{{','.join(near)}}}\t{{{','.join(map(str, far))}}}"
            for item, near, far in zip(rows, others, distances.tolist(), strict=True)
        ]
        cursor.copy_expert(copy, io.StringIO("\n".join(lines) + "\n"))
    _finish(cursor, "item_neighbours", name)


def _finish(cursor: psycopg2.extensions.cursor, parent: str, name: str) -> None:
    table = sql.Identifier("beamrec", partition_name(parent, name))
    cursor.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(table))
    cursor.execute(sql.SQL("ANALYZE {}").format(table))
    attach(cursor, parent, name)


def _register(cursor: psycopg2.extensions.cursor, name: str, catalogue: Catalogue) -> None:
    count, dim = catalogue.items.shape
    cursor.execute(
        "INSERT INTO beamrec.releases "
        "(id, uri, checksum, dim, operator, has_user_tower, items, users, manifest) "
        "VALUES (%s, %s, %s, %s, %s, true, %s, %s, %s)",
        [name, "/bench", hashlib.sha256(name.encode()).hexdigest(), dim, _OPERATOR, count,
         len(catalogue.users), Json({"normalized": True})],
    )  # fmt: skip
