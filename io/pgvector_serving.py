"""The serving tables: the newest recommendations of each customer, and the log of all of them.

Functions of a cursor, one statement a batch; repeating a batch changes nothing.
"""

import dataclasses
from collections.abc import Sequence

import psycopg2
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extras import execute_values

from beamrec.io.vector_upsert import VectorUpsert, upsert
from beamrec.schemas.events import SERVING
from beamrec.schemas.serving import ServingRow

__all__ = ["append_log", "upsert_latest", "upsert_serving"]

_COLUMNS = tuple(field.name for field in dataclasses.fields(ServingRow))
_LATEST = VectorUpsert(
    "beamrec.recommendations_latest", ("customer_id",), ("event_time", "event_id", "processed_at")
)


def upsert_serving(cursor: psycopg2.extensions.cursor, rows: pa.RecordBatch) -> int:
    """Keeps of rows [SERVING] what is newer than the store's; returns how many rows changed."""
    return upsert(cursor, _LATEST, rows)


def upsert_latest(cursor: psycopg2.extensions.cursor, rows: Sequence[ServingRow]) -> int:
    """Keeps what is newer than the store's; returns how many rows changed."""
    return upsert_serving(cursor, pa.RecordBatch.from_pylist(list(map(vars, rows)), SERVING))


def append_log(cursor: psycopg2.extensions.cursor, rows: Sequence[ServingRow]) -> int:
    """Adds the events that the log does not hold yet; returns how many."""
    first = {row.event_id: row for row in sorted(rows, key=lambda row: row.precedence, reverse=True)}
    if not first:
        return 0
    statement = sql.SQL(
        "INSERT INTO beamrec.recommendations_log ({}) VALUES %s ON CONFLICT DO NOTHING"
    ).format(sql.SQL(", ").join(map(sql.Identifier, _COLUMNS)))
    values = [tuple(getattr(first[event], name) for name in _COLUMNS) for event in sorted(first)]
    execute_values(cursor, statement, values, page_size=len(values))
    return int(cursor.rowcount)
