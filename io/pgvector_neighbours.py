"""Each item's nearest other items: exact by a tiled product, or by the release's own index.

The product of a catalogue with itself grows with its square, the index's search hardly more than with its
size; `EXACT_ITEMS` is where they cross.
"""

from collections.abc import Sequence

import numpy as np
import psycopg2
from psycopg2 import sql

from beamrec.schemas.releases import DISTANCE_OPERATORS

__all__ = [
    "EXACT_ITEMS",
    "NEIGHBOURS",
    "fill_by_index",
    "nearest_items",
    "nearest_of",
    "product_distances",
    "sampled_recall",
]

NEIGHBOURS = 20

EXACT_ITEMS = 4_000_000
"""Items up to which neighbours come from the exact product.

Of a million items of 64 numbers it takes 1.5 ms an item, and grows with their number; a search of the HNSW
index takes 10 ms, misses some, and hardly grows (bench/README.md).
"""

_BLOCK_ROWS, _TILE_COLUMNS = 512, 8_192  # 16 MB of float32 a tile
_SPARE = 4  # candidates beyond k: float32 may order near equals wrongly
_EF_SEARCH = 200
_SAMPLE = 200  # items


def nearest_items(vectors: np.ndarray, operator: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact k nearest other rows of each row; as `nearest_of` of all rows."""
    return nearest_of(np.arange(len(vectors)), vectors, operator, k)


def nearest_of(rows: np.ndarray, vectors: np.ndarray, operator: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact k nearest other rows of some rows.

    Candidates come from a float32 matrix product, a tile at a time; their distances are then computed
    again in float64, because ‖a‖² + ‖b‖² − 2ab loses what distinguishes near neighbours.

    Args:
      rows: [n] positions in `vectors`.
      vectors: [items, dim] float32, of `MAX_LENGTH` at most.
      operator: `<->` L2, `<=>` cosine or `<#>` negative inner product.

    Returns:
      Indices [n, k'] and distances [n, k'] ascending, with k' = min(k, items - 1).

    Raises:
      ValueError: another operator.
    """
    _check_operator(operator)
    count, k = len(vectors), min(k, len(vectors) - 1)
    if k <= 0 or not len(rows):
        return np.zeros((len(rows), max(k, 0)), np.int64), np.zeros((len(rows), max(k, 0)))
    based = _unit(vectors) if operator == "<=>" else vectors
    penalty = (based * based).sum(1) / 2 if operator == "<->" else None
    spare = min(count - 1, k + _SPARE)
    indices, distances = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        candidates = np.sort(_closest(block, based, penalty, spare), axis=1)
        exact = _distances(based[block], based[candidates], operator)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        indices[start : start + len(block)] = np.take_along_axis(candidates, order, 1)
        distances[start : start + len(block)] = np.take_along_axis(exact, order, 1)
    return indices, distances


def _check_operator(operator: str) -> None:
    if operator not in DISTANCE_OPERATORS:
        raise ValueError(f"operator: expected one of {', '.join(DISTANCE_OPERATORS)}; got {operator!r}")


def _closest(block: np.ndarray, based: np.ndarray, penalty: np.ndarray | None, count: int) -> np.ndarray:
    """Positions [rows, count] of the closest other rows, in any order, by closeness in float32.

    After the first tile nearly every value of a tile is below what is held already: one comparison a
    value, where a partial sort of whole rows took longer than the product itself.
    """
    best = np.full((len(block), count), -np.inf, np.float32)
    found = np.zeros((len(block), count), np.int64)
    queries = based[block]
    for start in range(0, len(based), _TILE_COLUMNS):
        tile = queries @ based[start : start + _TILE_COLUMNS].T
        if penalty is not None:
            tile -= penalty[start : start + _TILE_COLUMNS]
        own = np.flatnonzero((block >= start) & (block < start + tile.shape[1]))
        tile[own, block[own] - start] = -np.inf
        if start == 0:
            first = min(count, tile.shape[1])
            found[:, :first] = np.argpartition(-tile, first - 1, axis=1)[:, :first]
            best[:, :first] = np.take_along_axis(tile, found[:, :first], 1)
        else:
            _merge(best, found, tile, start)
    return found


def _merge(best: np.ndarray, found: np.ndarray, tile: np.ndarray, start: int) -> None:
    """Replaces what is held [rows, count] by what is closer in a tile [rows, columns], in place."""
    row, column = np.nonzero(tile > best.min(axis=1)[:, None])
    if not len(row):
        return
    count = best.shape[1]
    touched = np.unique(row)
    rows = np.concatenate([np.repeat(touched, count), row])
    values = np.concatenate([best[touched].ravel(), tile[row, column]])
    places = np.concatenate([found[touched].ravel(), column + start])
    order = np.lexsort((-values, rows))
    firsts = np.searchsorted(rows[order], touched)
    kept = order[firsts[:, None] + np.arange(count)]
    best[touched], found[touched] = values[kept], places[kept]


def product_distances(vectors: np.ndarray, queries: np.ndarray, operator: str) -> np.ndarray:
    """Distances [items, queries] of all vectors to some, by a product in the precision that they have.

    Raises:
      ValueError: another operator than those of `nearest_of`.
    """
    _check_operator(operator)
    if operator == "<=>":
        return np.asarray(1 - _unit(vectors) @ _unit(queries).T)
    products = vectors @ queries.T
    if operator == "<#>":
        return np.asarray(-products)
    squares = (vectors * vectors).sum(1)[:, None] + (queries * queries).sum(1) - 2 * products
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))


def _distances(rows: np.ndarray, candidates: np.ndarray, operator: str) -> np.ndarray:
    """Distances [rows, candidates] of rows [rows, dim] to candidates [rows, candidates, dim], in float64."""
    a, b = rows[:, None, :].astype(np.float64), candidates.astype(np.float64)
    if operator == "<->":
        return np.asarray(np.sqrt(((a - b) ** 2).sum(-1)))
    products = np.asarray((a * b).sum(-1))
    return 1 - products if operator == "<=>" else -products


def fill_by_index(
    cursor: psycopg2.extensions.cursor,
    neighbours: str,
    items: str,
    release: str,
    dim: int,
    operator: str,
    lists: int | None,
) -> None:
    """Fills the table of neighbours by a wide search of the items' own index, inside the server.

    Args:
      neighbours, items: tables of `beamrec`.
      lists: number of lists of an IVFFlat index; None for HNSW.
    """
    # A session knows pgvector's settings once it has used a vector; that which goes on after a kill has not.
    cursor.execute("SELECT '[1]'::vector")
    probes = 1 if lists is None else max(1, lists // 20)
    for name, value in (("hnsw.ef_search", _EF_SEARCH), ("ivfflat.probes", probes)):
        cursor.execute("SELECT set_config(%s, %s, true)", [name, str(value)])
    # An item may be alone in its list: from pgvector 0.8 on the search goes on until it has enough.
    cursor.execute(
        "SELECT set_config(name, 'relaxed_order', true) FROM pg_settings "
        "WHERE name IN ('hnsw.iterative_scan', 'ivfflat.iterative_scan')"
    )
    cursor.execute(
        sql.SQL(
            "INSERT INTO beamrec.{neighbours} (release, id, neighbour_ids, distances) "
            "SELECT {release}, a.id, COALESCE(n.ids, '{{}}'), COALESCE(n.distances, '{{}}') "
            "FROM beamrec.{items} a CROSS JOIN LATERAL ("
            'SELECT array_agg(id COLLATE "default" ORDER BY d, id) AS ids, '
            "array_agg(d::real ORDER BY d, id) AS distances FROM ("
            "SELECT id, d FROM (SELECT id, embedding::{typed} {operator} a.embedding::{typed} AS d "
            "FROM beamrec.{items} ORDER BY embedding::{typed} {operator} a.embedding::{typed} "
            "LIMIT {one_more}) found WHERE id <> a.id ORDER BY d, id LIMIT {count}) others) n"
        ).format(
            neighbours=sql.Identifier(neighbours),
            items=sql.Identifier(items),
            release=sql.Literal(release),
            typed=sql.SQL("vector({})").format(sql.Literal(dim)),
            operator=sql.SQL(operator),
            one_more=sql.Literal(NEIGHBOURS + 1),
            count=sql.Literal(NEIGHBOURS),
        )
    )


def sampled_recall(
    cursor: psycopg2.extensions.cursor,
    neighbours: str,
    ids: Sequence[str],
    vectors: np.ndarray,
    operator: str,
) -> float:
    """The share of the true neighbours that a filled table has, of some items spread over the catalogue.

    Args:
      neighbours: table of `beamrec`.
      ids, vectors: the whole catalogue, [items, dim] float32.
    """
    rows = np.unique(np.linspace(0, len(ids) - 1, _SAMPLE).astype(np.int64))
    indices, _ = nearest_of(rows, vectors, operator, NEIGHBOURS)
    cursor.execute(
        sql.SQL("SELECT id, neighbour_ids FROM beamrec.{} WHERE id = ANY(%s)").format(
            sql.Identifier(neighbours)
        ),
        [[ids[row] for row in rows]],
    )
    stored = dict(cursor.fetchall())
    hits = sum(
        len({ids[i] for i in found} & set(stored.get(ids[row], ())))
        for row, found in zip(rows, indices, strict=True)
    )
    return hits / max(1, indices.size)
