"""Retrieval of one release: neighbours by key, the catalogue, and search by the vector index.

Functions of a cursor, one statement a batch, each naming its release.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import psycopg2
from psycopg2 import sql

from beamrec.io.pgvector_releases import release
from beamrec.io.pgvector_schema import partition_name
from beamrec.schemas.errors import UsageError

__all__ = ["Catalogue", "Lookup", "catalogue", "lookup", "search"]

_MAX_EF_SEARCH = 1000  # pgvector's own limit

_LOOKUP = """
SELECT true, id, neighbour_ids, distances FROM beamrec.item_neighbours
WHERE release = %(release)s AND id = ANY(%(products)s)
UNION ALL
SELECT false, id, NULL, CASE WHEN %(with_vectors)s THEN embedding::real[] END FROM beamrec.user_embeddings
WHERE release = %(release)s AND id = ANY(%(customers)s)
"""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """What the store knows of a batch's products and customers.

    Attributes:
      neighbours: product id → [(item id, distance)] ascending; products unknown to the release are absent.
      known: ids of the customers that the release knows.
      user_vectors: their stored vectors [dim] float32, if asked for.
    """

    neighbours: dict[str, list[tuple[str, float]]]
    known: frozenset[str]
    user_vectors: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All items of a release: ids, vectors [items, dim] float32, and the ids by popularity."""

    ids: list[str]
    vectors: np.ndarray
    popular: list[str]


def lookup(
    cursor: psycopg2.extensions.cursor,
    release_id: str,
    product_ids: Sequence[str],
    customer_ids: Sequence[str],
    with_vectors: bool,
) -> Lookup:
    """Item neighbours and known customers of a whole batch, in one statement by primary key."""
    values = {
        "release": release_id,
        "products": sorted(set(product_ids)),
        "customers": sorted(set(customer_ids)),
        "with_vectors": with_vectors,
    }
    cursor.execute(_LOOKUP, values)
    neighbours, users = {}, {}
    for is_item, key, ids, figures in cursor.fetchall():
        if is_item:
            neighbours[key] = list(zip(ids, figures, strict=True))
        else:
            users[key] = figures
    vectors = {key: np.array(figures, np.float32) for key, figures in users.items()} if with_vectors else {}
    return Lookup(neighbours, frozenset(users), vectors)


def catalogue(cursor: psycopg2.extensions.cursor, release_id: str) -> Catalogue:
    """Every item of a release, most popular first.

    Raises:
      UsageError: no such release is loaded.
    """
    found = release(cursor, release_id)
    cursor.execute(
        "SELECT id, vector_send(embedding) FROM beamrec.item_embeddings "
        "WHERE release = %s ORDER BY popularity_rank, id",
        [release_id],
    )
    rows = cursor.fetchall()
    ids = [row[0] for row in rows]
    # vector_send: int16 dim, int16 unused, then big-endian float32.
    data = b"".join(bytes(row[1])[4:] for row in rows)
    vectors = np.frombuffer(data, ">f4").astype(np.float32).reshape(len(ids), found.dim)
    return Catalogue(ids, vectors, list(ids))


def search(
    cursor: psycopg2.extensions.cursor, release_id: str, vectors: np.ndarray, k: int, ef_search: int
) -> list[list[tuple[str, float]]]:
    """The k items of highest inner product for each vector, as [(id, score)] with scores descending.

    Vectors of length one rank alike by every operator, so the index of the release's own operator serves;
    other releases have an index for the inner product as well.

    Raises:
      UsageError: the release is not loaded, or has vectors of another dimension.
    """
    dim, operator = _index_of(cursor, release_id, vectors)
    cursor.execute(
        "SELECT set_config('hnsw.ef_search', %s, true)", [str(min(_MAX_EF_SEARCH, max(ef_search, k)))]
    )
    statement = sql.SQL(
        "SELECT u.n, i.id, -(i.embedding::{typed} <#> u.t::{typed}) AS score "
        "FROM unnest(%(vectors)s::text[]) WITH ORDINALITY AS u (t, n) "
        "CROSS JOIN LATERAL (SELECT id, embedding FROM beamrec.{partition} "
        "ORDER BY embedding::{typed} {operator} u.t::{typed} LIMIT %(k)s) AS i "
        "ORDER BY u.n, score DESC, i.id"
    ).format(
        typed=sql.SQL("vector({})").format(sql.Literal(dim)),
        operator=sql.SQL(operator),
        partition=sql.Identifier(partition_name("item_embeddings", release_id)),
    )
    texts = ["[" + ",".join(map(str, vector)) + "]" for vector in vectors.astype(np.float32).tolist()]
    cursor.execute(statement, {"vectors": texts, "k": k})
    found: list[list[tuple[str, float]]] = [[] for _ in texts]
    for number, item, score in cursor.fetchall():
        found[number - 1].append((item, score))
    return found


def _index_of(cursor: psycopg2.extensions.cursor, release_id: str, vectors: np.ndarray) -> tuple[int, str]:
    """Dimension and search operator of a release, once the vectors are known to fit it."""
    found = release(cursor, release_id)
    if vectors.ndim != 2 or vectors.shape[1] != found.dim:
        raise UsageError(
            f"search in release {release_id}: expected vectors [n, {found.dim}], got {list(vectors.shape)}"
        )
    cursor.execute(
        "SELECT (manifest->>'normalized')::boolean FROM beamrec.releases WHERE id = %s", [release_id]
    )
    return found.dim, found.operator if cursor.fetchone()[0] else "<#>"
