"""The serving tables: the newest recommendations of each customer, and the log of all of them.

Functions of a cursor, one statement a batch; repeating a batch changes nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import psycopg2
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extras import execute_values

from beamrec.io.vector_upsert import newest_rows
from beamrec.schemas.events import SERVING
from beamrec.schemas.serving import ServingRow

__all__ = ["append_log", "upsert_latest", "upsert_serving"]

_COLUMNS = tuple(field.name for field in dataclasses.fields(ServingRow))
_KEY, _NEWER = ("customer_id",), ("event_time", "event_id", "processed_at")
_LISTS = ("recommended_items", "similar_items")


# All rows are one parameter: psycopg2 takes 20 µs to write a row's eight values into a statement, and the
# server less to read JSON than to read them there.
_UPSERT = """
INSERT INTO beamrec.recommendations_latest AS t
SELECT * FROM jsonb_to_recordset(%s::jsonb) AS r (
  customer_id text, event_id text, event_time timestamptz, processed_at timestamptz, release text,
  served_by text, recommended_items jsonb, similar_items jsonb)
ON CONFLICT (customer_id) DO UPDATE SET event_id = excluded.event_id, event_time = excluded.event_time,
  processed_at = excluded.processed_at, release = excluded.release, served_by = excluded.served_by,
  recommended_items = excluded.recommended_items, similar_items = excluded.similar_items
WHERE (excluded.event_time, excluded.event_id, excluded.processed_at)
  > (t.event_time, t.event_id, t.processed_at)
"""


def upsert_serving(cursor: psycopg2.extensions.cursor, rows: pa.RecordBatch) -> int:
    """Keeps of rows [SERVING] what is newer than the store's; returns how many rows changed.

    Raises:
      BadDataError: a customer is NULL.
      psycopg2.DataError: a text holds NUL.
    """
    newest = newest_rows(rows.select(_COLUMNS), _KEY, _NEWER)
    if not newest.num_rows:
        return 0
    columns = [_plain(name, newest.column(name)) for name in _COLUMNS]
    objects = [dict(zip(_COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]
    cursor.execute(_UPSERT, [orjson.dumps(objects).decode()])
    return int(cursor.rowcount)


def _plain(name: str, column: pa.Array) -> list[Any]:
    """A column as orjson takes it: a list that is JSON already as it is, a time as text."""
    if pa.types.is_timestamp(column.type):
        micros = np.asarray(column.cast(pa.int64())).astype("datetime64[us]")
        return [f"{text}Z" for text in np.datetime_as_string(micros).tolist()]
    values = column.to_pylist()
    return [orjson.Fragment(text) for text in values] if name in _LISTS else values


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
