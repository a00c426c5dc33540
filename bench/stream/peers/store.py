"""The statements of the vector and serving store, on psycopg 3."""

import dataclasses
import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psycopg
from records import Neighbours, Served

__all__ = ["Catalogue", "Release", "active_release", "catalogue", "connect", "lookup", "release_of", "write"]

_ACTIVE = """
    SELECT r.id, r.uri, r.dim, r.operator, (r.manifest->>'normalized')::boolean
    FROM beamrec.active_release a JOIN beamrec.releases r ON r.id = a.release
"""
_LOOKUP = """
    SELECT id, neighbour_ids[1:%(most)s], distances[1:%(most)s] FROM beamrec.item_neighbours
    WHERE release = %(release)s AND id = ANY(%(products)s)
    UNION ALL
    SELECT id, NULL, NULL FROM beamrec.user_embeddings
    WHERE release = %(release)s AND id = ANY(%(customers)s)
"""
_CATALOGUE = """
    SELECT id, embedding::real[] FROM beamrec.item_embeddings WHERE release = %s ORDER BY popularity_rank, id
"""
_COLUMNS = (
    "customer_id, event_id, event_time, processed_at, release, served_by, recommended_items, similar_items"
)
# One parameter of JSON: psycopg quotes each text of an array by a regular expression, and these are long.
_ROWS = f"""
    SELECT {_COLUMNS} FROM jsonb_to_recordset(%s::jsonb) AS new (customer_id text, event_id text,
      event_time timestamptz, processed_at timestamptz, release text, served_by text,
      recommended_items jsonb, similar_items jsonb)
"""  # noqa: S608  (constants)
_UPSERT = f"""
    INSERT INTO beamrec.recommendations_latest AS old ({_COLUMNS}) {_ROWS}
    ON CONFLICT (customer_id) DO UPDATE SET event_id = excluded.event_id, event_time = excluded.event_time,
      processed_at = excluded.processed_at, release = excluded.release, served_by = excluded.served_by,
      recommended_items = excluded.recommended_items, similar_items = excluded.similar_items
    WHERE (excluded.event_time, excluded.event_id, excluded.processed_at)
      > (old.event_time, old.event_id, old.processed_at)
"""
_LOG = f"INSERT INTO beamrec.recommendations_log ({_COLUMNS}) {_ROWS} ON CONFLICT DO NOTHING"


@dataclasses.dataclass(frozen=True)
class Release:
    """The active release; `operator` is that of its index."""

    id: str
    folder: Path
    dim: int
    operator: str


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A release's items, most popular first: ids, and vectors [items, dim] float32."""

    ids: list[str]
    vectors: np.ndarray


def connect(uri: str, **options: Any) -> psycopg.Connection[Any]:
    """A connection on which every statement is a transaction of its own."""
    password = os.environ.get("BEAMREC_VECTOR_DB_PASSWORD")
    return psycopg.connect(uri, password=password, autocommit=True, **options)


def release_of(row: Sequence[Any]) -> Release:
    """What the first five columns of `_ACTIVE` say."""
    release, uri, dim, operator, normalized = row[:5]
    # Vectors of length one rank alike by every operator, so there is one index, by the release's own.
    return Release(release, Path(uri.removeprefix("file://")), dim, operator if normalized else "<#>")


def active_release(connection: psycopg.Connection[Any]) -> Release:
    """The release that is active now."""
    row = connection.execute(_ACTIVE).fetchone()
    if row is None:
        raise SystemExit("no release is active")
    return release_of(row)


def lookup(
    connection: psycopg.Connection[Any],
    release: str,
    products: list[str],
    customers: list[str],
    most: int,
) -> tuple[Neighbours, set[str]]:
    """The nearest items of products, `most` of each, and those of the customers that the release knows."""
    values = {"release": release, "products": products, "customers": customers, "most": most}
    near, known = {}, set()
    with connection.cursor(binary=True) as cursor:
        for key, ids, distances in cursor.execute(_LOOKUP, values, prepare=True):
            if ids is None:
                known.add(key)
            else:
                near[key] = ids, distances
    return near, known


def catalogue(connection: psycopg.Connection[Any], release: str) -> Catalogue:
    """Every item of a release."""
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(_CATALOGUE, [release]).fetchall()
    return Catalogue([row[0] for row in rows], np.array([row[1] for row in rows], np.float32))


def write(connection: psycopg.Connection[Any], served: Sequence[Served], log: bool) -> None:
    """Keeps of each customer the newest recommendations; `log` adds each event's to the log.

    Rows go in the order of their keys, so that two writers never wait for each other in a circle.
    """
    newest: dict[str, Served] = {}
    for row in sorted(served, key=_precedence):
        if row.event.customer is not None:
            newest[row.event.customer] = row
    if newest:
        rows = [newest[customer] for customer in sorted(newest)]
        connection.execute(_UPSERT, [_json(rows)], prepare=True)
    if log:
        connection.execute(_LOG, [_json(served)], prepare=True)


def _precedence(row: Served) -> tuple[dt.datetime, bytes, dt.datetime]:
    return row.event.event_time, row.event.event_id.encode(), row.processed_at


def _json(rows: Sequence[Served]) -> str:
    objects = [
        {
            "customer_id": row.event.customer,
            "event_id": row.event.event_id,
            "event_time": row.event.event_time,
            "processed_at": row.processed_at,
            "release": row.release,
            "served_by": row.served_by,
            "recommended_items": row.recommended_items,
            "similar_items": row.similar_items,
        }
        for row in rows
    ]
    return orjson.dumps(objects).decode()
