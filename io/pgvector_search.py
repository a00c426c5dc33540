"""Retrieval of one release: neighbours by key, the catalogue, and search by the vector index.

Functions of a cursor, one statement a batch, each naming its release. Answers are Arrow arrays.
"""

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql

from beamrec.io.binary_rows import BinaryRows
from beamrec.io.pgvector_releases import not_loaded, release
from beamrec.io.pgvector_schema import partition_name
from beamrec.io.vector_search import Operator, VectorSearch, nearest
from beamrec.schemas.embeddings import search_operator
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import CANDIDATES, NEIGHBOURS
from beamrec.schemas.serving import SearchSetting

__all__ = ["Catalogue", "Lookup", "catalogue", "lookup", "popular", "search", "user_vectors"]

_MAX_EF_SEARCH = 1000  # pgvector's own limit


@dataclasses.dataclass(frozen=True)
class Lookup:
    """What the store knows of a batch's products and customers.

    Attributes:
      products: string [n], the ids that the release knows, in no order.
      neighbours: NEIGHBOURS [n], of each of them, by ascending distance.
      customers: string [m], those that the release knows.
      vectors: list<float64> [m], the stored vector of each of them; None if they were not asked for.
    """

    products: pa.StringArray
    neighbours: pa.ListArray
    customers: pa.StringArray
    vectors: pa.ListArray | None = None


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All items of a release, most popular first: ids, string [items], and vectors [items, dim] float32."""

    ids: pa.StringArray
    vectors: npt.NDArray[np.float32]


def lookup(
    cursor: psycopg2.extensions.cursor,
    release_id: str,
    product_ids: pa.StringArray,
    customer_ids: pa.StringArray,
    with_vectors: bool = False,
) -> Lookup:
    """Item neighbours and known customers of a whole batch, in one statement by primary key."""
    statement = sql.SQL(
        "SELECT id, neighbour_ids, distances FROM beamrec.item_neighbours "
        "WHERE release = {release} AND id = ANY({products}::text[]) UNION ALL "
        "SELECT id, NULL, {vector} FROM beamrec.user_embeddings "
        "WHERE release = {release} AND id = ANY({customers}::text[])"
    ).format(
        vector=sql.SQL("embedding::real[]" if with_vectors else "NULL"),
        release=sql.Literal(release_id),
        products=sql.Literal(_text_array(product_ids)),
        customers=sql.Literal(_text_array(customer_ids)),
    )
    rows = BinaryRows.copied(cursor, statement.as_string(cursor), 3)
    customers = rows.is_null(1)
    ids, distances = rows.text_lists(1, ~customers), rows.float_lists(2, ~customers)
    entries = pa.StructArray.from_arrays([ids.values, distances.values], fields=list(NEIGHBOURS.value_type))
    return Lookup(
        rows.texts(0, ~customers),
        pa.ListArray.from_arrays(ids.offsets, entries, type=NEIGHBOURS),
        rows.texts(0, customers),
        rows.float_lists(2, customers) if with_vectors else None,
    )


def _text_array(ids: pa.StringArray) -> str:
    """An array of text as PostgreSQL writes it; no id of the store holds the character that it refuses."""
    texts = [text for text in ids.to_pylist() if "\0" not in text]
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return '{"' + '","'.join(quoted) + '"}' if texts else "{}"


def catalogue(cursor: psycopg2.extensions.cursor, release_id: str, limit: int | None = None) -> Catalogue:
    """Every item of a release, most popular first; with a limit the first of them.

    Raises:
      UsageError: no such release is loaded.
    """
    found = release(cursor, release_id)
    statement = sql.SQL("SELECT id, embedding FROM beamrec.{} ORDER BY popularity_rank, id LIMIT {}").format(
        sql.Identifier(partition_name("item_embeddings", release_id)), sql.Literal(limit)
    )
    rows = BinaryRows.copied(cursor, statement.as_string(cursor), 2)
    return Catalogue(rows.texts(0, np.ones(len(rows), bool)), rows.vectors(1, found.dim))


def user_vectors(
    cursor: psycopg2.extensions.cursor, release_id: str, count: int, seed: int
) -> npt.NDArray[np.float32]:
    """The vectors of some of a release's users, [count or fewer, dim]; one seed draws the same ones.

    Raises:
      UsageError: no such release is loaded.
    """
    found = release(cursor, release_id)
    statement = sql.SQL("SELECT embedding FROM beamrec.{} ORDER BY md5({} || id), id LIMIT {}").format(
        sql.Identifier(partition_name("user_embeddings", release_id)),
        sql.Literal(f"{seed}:"),
        sql.Literal(count),
    )
    return BinaryRows.copied(cursor, statement.as_string(cursor), 1).vectors(0, found.dim)


def popular(cursor: psycopg2.extensions.cursor, release_id: str, count: int) -> list[str]:
    """Ids of a release's most popular items, `count` of them if there are so many."""
    cursor.execute(
        "SELECT id FROM beamrec.item_embeddings WHERE release = %s ORDER BY popularity_rank, id LIMIT %s",
        [release_id, count],
    )
    return [row[0] for row in cursor.fetchall()]


def search(
    cursor: psycopg2.extensions.cursor,
    release_id: str,
    vectors: npt.NDArray[np.float32],
    k: int,
    setting: SearchSetting,
) -> pa.ListArray:
    """The k items of highest inner product for each vector, as CANDIDATES with scores descending.

    The setting `none` reads the whole table, whatever index the release has.

    Raises:
      UsageError: the release is not loaded, or has vectors of another dimension.
    """
    dim, operator = _index_of(cursor, release_id, vectors)
    wanted = VectorSearch(
        table=("beamrec", partition_name("item_embeddings", release_id)),
        k=k,
        operator=operator,
        dim=dim,
        reported="<#>",
        ef_search=min(_MAX_EF_SEARCH, max(setting.ef_search, k)),
        probes=setting.probes,
        exact=setting.index == "none",
    )
    found = nearest(cursor, wanted, vectors, NEIGHBOURS)
    ids, products = found.values.flatten()
    scored = pa.StructArray.from_arrays([ids, pc.negate(products)], fields=list(CANDIDATES.value_type))
    return pa.ListArray.from_arrays(found.offsets, scored, type=CANDIDATES)


def _index_of(
    cursor: psycopg2.extensions.cursor, release_id: str, vectors: npt.NDArray[np.float32]
) -> tuple[int, Operator]:
    """Dimension and search operator of a release, once the vectors are known to fit it."""
    cursor.execute(
        "SELECT dim, operator, (manifest->>'normalized')::boolean FROM beamrec.releases WHERE id = %s",
        [release_id],
    )
    row = cursor.fetchone()
    if row is None:
        raise not_loaded(release_id)
    dim, operator, normalized = row
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise UsageError(
            f"search in release {release_id}: expected vectors [n, {dim}], got {list(vectors.shape)}"
        )
    return dim, cast(Operator, search_operator(operator, normalized))
