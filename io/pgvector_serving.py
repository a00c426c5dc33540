"""The serving tables: the newest recommendations of each customer, and the log of all of them.

Functions of a cursor, one statement a batch; repeating a batch changes nothing.
"""

import dataclasses
from collections.abc import Sequence

import psycopg2
from psycopg2 import sql
from psycopg2.extras import execute_values

from beamrec.schemas.serving import ServingRow

__all__ = ["append_log", "newest_of_each_customer", "upsert_latest"]

_COLUMNS = tuple(field.name for field in dataclasses.fields(ServingRow))
_NEWER = """
ON CONFLICT (customer_id) DO UPDATE SET event_id = excluded.event_id, event_time = excluded.event_time,
  processed_at = excluded.processed_at, release = excluded.release, served_by = excluded.served_by,
  recommended_items = excluded.recommended_items, similar_items = excluded.similar_items
WHERE (excluded.event_time, excluded.event_id, excluded.processed_at)
  > (t.event_time, t.event_id, t.processed_at)
"""


def newest_of_each_customer(rows: Sequence[ServingRow]) -> list[ServingRow]:
    """One row a customer, sorted by customer.

    One statement must not touch a key twice, and two writers that lock keys in one order cannot deadlock.
    """
    newest = {row.customer_id: row for row in sorted(rows, key=lambda row: row.precedence)}
    return [newest[customer] for customer in sorted(newest)]


def upsert_latest(cursor: psycopg2.extensions.cursor, rows: Sequence[ServingRow]) -> int:
    """Keeps what is newer than the store's; returns how many rows changed."""
    return _insert(cursor, "recommendations_latest", newest_of_each_customer(rows), _NEWER)


def append_log(cursor: psycopg2.extensions.cursor, rows: Sequence[ServingRow]) -> int:
    """Adds the events that the log does not hold yet; returns how many."""
    first = {row.event_id: row for row in sorted(rows, key=lambda row: row.precedence, reverse=True)}
    ordered = [first[event] for event in sorted(first)]
    return _insert(cursor, "recommendations_log", ordered, "ON CONFLICT (event_id) DO NOTHING")


def _insert(
    cursor: psycopg2.extensions.cursor, table: str, rows: Sequence[ServingRow], on_conflict: str
) -> int:
    if not rows:
        return 0
    statement = sql.SQL("INSERT INTO beamrec.{} AS t ({}) VALUES %s {}").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, _COLUMNS)), sql.SQL(on_conflict)
    )
    values = [tuple(getattr(row, name) for name in _COLUMNS) for row in rows]
    execute_values(cursor, statement, values, page_size=len(values))
    return int(cursor.rowcount)
