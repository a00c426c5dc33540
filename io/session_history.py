"""The last clicks of a session, for shops whose events are single clicks: kept in the vector store.

A runner's state would be gone after a restart of Prism, and a replay would meet another state. So a click is
kept with the clicks before it when it is first seen, in one statement a batch, and whoever brings it again is
given the same ones. Of clicks that arrive out of order the later one knows the earlier if that was there
first; so it does across batches, readers and restarts.
"""

import dataclasses
import threading
import time
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import psycopg2
import pyarrow as pa
from apache_beam.utils import shared

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.pgvector_schema import ensure_schema
from beamrec.io.postgres import Database, Limits
from beamrec.schemas.errors import RefusedError
from beamrec.schemas.events import SESSION
from beamrec.transforms import metrics

__all__ = [
    "Click",
    "SessionHistory",
    "add_history",
    "check_clicks",
    "check_history",
    "keep_clicks",
    "remove_old_clicks",
]

# Two threads of a worker may ask at a time; others wait, and so does the source behind them.
_LIMITS = Limits(connections=2, statement_seconds=60, lock_seconds=30)
# Old clicks go twice as fast as new ones come, so the table holds no more than the time it is kept for.
_CLICKS_A_REMOVAL = 1_000
_REMOVE_SECONDS = 600.0

# What a batch may need of the table: of each of its sessions the clicks before the first of the batch, as
# many as a history holds, and those behind it, which late clicks have. A click that is there already keeps
# the clicks that it was given, which RETURNING shows; rows are locked in the order of their key.
_KEEP = """
WITH batch AS (
  SELECT * FROM unnest(%(sessions)s::text[], %(event_ids)s::text[], %(times)s::bigint[], %(products)s::text[],
                       %(in_carts)s::boolean[]) AS b (session, event_id, event_time_us, product, in_cart)),
firsts AS (
  SELECT DISTINCT ON (session) session, event_time_us, event_id FROM batch
  ORDER BY session, event_time_us, event_id),
known AS (
  SELECT k.* FROM firsts f CROSS JOIN LATERAL (
    (SELECT c.session, c.event_id, c.event_time_us, c.product, c.in_cart FROM beamrec.session_clicks c
     WHERE c.session = f.session AND (c.event_time_us, c.event_id) < (f.event_time_us, f.event_id)
     ORDER BY c.event_time_us DESC, c.event_id DESC LIMIT %(length)s)
    UNION ALL
    (SELECT c.session, c.event_id, c.event_time_us, c.product, c.in_cart FROM beamrec.session_clicks c
     WHERE c.session = f.session AND (c.event_time_us, c.event_id) >= (f.event_time_us, f.event_id))) k
  WHERE (k.session, k.event_id) NOT IN (SELECT session, event_id FROM batch)),
histories AS (
  SELECT *, array_agg(product) OVER earlier AS products, array_agg(in_cart) OVER earlier AS in_carts
  FROM (SELECT true AS new, * FROM batch UNION ALL SELECT false, * FROM known) clicks
  WINDOW earlier AS (PARTITION BY session ORDER BY event_time_us, event_id
                     ROWS BETWEEN %(length)s PRECEDING AND 1 PRECEDING))
INSERT INTO beamrec.session_clicks AS c
  (session, event_id, event_time_us, product, in_cart, products, in_carts)
SELECT session, event_id, event_time_us, product, in_cart, coalesce(products, '{}'), coalesce(in_carts, '{}')
FROM histories WHERE new ORDER BY session, event_id
ON CONFLICT (session, event_id) DO UPDATE SET seen_at = excluded.seen_at
RETURNING c.session, c.event_id, c.products, c.in_carts
"""

# Who removes never waits for who keeps, so they cannot wait for each other.
_REMOVE = """
DELETE FROM beamrec.session_clicks WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM beamrec.session_clicks WHERE seen_at < now() - %s * interval '1 hour'
  ORDER BY seen_at LIMIT %s FOR UPDATE SKIP LOCKED))
"""

_MISSING_RIGHTS = """
SELECT string_agg(name, ', '), quote_ident(current_user)
FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS name
WHERE NOT has_table_privilege('beamrec.session_clicks', name)
"""


@dataclasses.dataclass(frozen=True)
class Click:
    """One click of a session; `product` as text, time in microseconds since the epoch."""

    session: str
    event_id: str
    event_time_us: int
    product: str
    in_cart: bool


_History = list[tuple[str, bool]]


def check_clicks(cursor: psycopg2.extensions.cursor) -> None:
    """Makes the table where it is missing, and asks whether this user may use it.

    Raises:
      RefusedError: the table is missing and this user may not make it, or has no right to change it.
    """
    ensure_schema(cursor)
    cursor.execute(_MISSING_RIGHTS)
    missing, user = cursor.fetchone()
    if missing:
        raise RefusedError(
            f"--vector-db: user {user} may not use beamrec.session_clicks, where the clicks of sessions are "
            f"kept; its owner may say: GRANT {missing} ON beamrec.session_clicks TO {user}"
        )


def keep_clicks(
    cursor: psycopg2.extensions.cursor, clicks: list[Click], length: int
) -> dict[tuple[str, str], _History]:
    """Keeps clicks, and finds the last ones before each of them: one statement.

    Args:
      clicks: any; of several with the same session and event id the first counts.
      length: most clicks in a history.

    Returns:
      (session, event id) → (product, in cart) of at most `length` clicks of the session before it, by event
      time and event id, oldest first; the same at every call, whatever has arrived since.
    """
    distinct: dict[tuple[str, str], Click] = {}
    for click in clicks:
        distinct.setdefault((click.session, click.event_id), click)
    if not distinct:
        return {}
    rows = list(distinct.values())
    values = {
        "sessions": [click.session for click in rows],
        "event_ids": [click.event_id for click in rows],
        "times": [click.event_time_us for click in rows],
        "products": [click.product for click in rows],
        "in_carts": [click.in_cart for click in rows],
        "length": length,
    }
    cursor.execute(_KEEP, values)
    return {
        (session, event_id): list(zip(products, in_carts, strict=True))
        for session, event_id, products, in_carts in cursor.fetchall()
    }


def remove_old_clicks(cursor: psycopg2.extensions.cursor, hours: float, most: int) -> int:
    """Removes clicks that were seen last so many hours ago, `most` at a time; returns how many."""
    cursor.execute(_REMOVE, [hours, most])
    return int(cursor.rowcount)


def clicks_of(batch: pa.RecordBatch) -> list[Click]:
    """The clicks of a batch; an event without a session or a product is none."""
    columns = (batch.column(name) for name in (SESSION, "event_id"))
    times = batch.column("event_time").cast(pa.int64())
    rows = zip(*(c.to_pylist() for c in (*columns, times, batch.column("history"))), strict=True)
    return [
        Click(session, event_id, time_us, str(history[-1]["product"]), history[-1]["in_cart"])
        for session, event_id, time_us, history in rows
        if session is not None and history
    ]


def add_history(batch: pa.RecordBatch, before: dict[tuple[str, str], _History]) -> pa.RecordBatch:
    """The batch with the clicks of `before` put before each click in `history`.

    Args:
      batch: `event_schema` of a shop whose events are clicks.
      before: what `keep_clicks` returns.
    """
    kind = batch.schema.field("history").type
    keys = zip(batch.column(SESSION).to_pylist(), batch.column("event_id").to_pylist(), strict=True)
    own = batch.column("history")
    has_click = own.value_lengths().to_numpy(zero_copy_only=False) > 0
    found = [before.get(key, []) if click else [] for key, click in zip(keys, has_click, strict=True)]
    earlier = pa.StructArray.from_arrays(
        [
            pa.array([product for history in found for product, _ in history], pa.string()).cast(
                kind.value_type.field("product").type
            ),
            pa.array([in_cart for history in found for _, in_cart in history], pa.bool_()),
        ],
        fields=list(kind.value_type),
    )
    # Entries of both, then in the order of their rows: the earlier ones come first within a row.
    lengths = np.array([len(history) for history in found], np.int64)
    rows = np.concatenate([np.repeat(np.arange(len(found)), lengths), np.flatnonzero(has_click)])
    entries = pa.concat_arrays([earlier, own.flatten()]).take(pa.array(np.argsort(rows, kind="stable")))
    offsets = np.concatenate([[0], np.cumsum(lengths + has_click)]).astype(np.int32)
    column = pa.ListArray.from_arrays(offsets, entries, type=kind)
    return batch.set_column(batch.schema.get_field_index("history"), batch.schema.field("history"), column)


def check_history(vector_db: str) -> None:
    """Whether a job may keep clicks in that database, before it starts; makes the table if it may.

    Raises:
      RefusedError: as `check_clicks`.
      UnavailableError: the database is away.
    """
    Database(vector_db).transaction(check_clicks)


class _Clicks:
    """The table, as a worker process knows it: one pool of connections, however many threads it has."""

    def __init__(self, vector_db: str, keep_hours: float) -> None:
        self._database = Database(vector_db, patient=True, limits=_LIMITS)
        self._keep_hours = keep_hours
        self._lock = threading.Lock()
        self._kept, self._next_removal = 0, time.monotonic() + _REMOVE_SECONDS
        self._database.transaction(check_clicks)

    def keep(self, clicks: list[Click], length: int) -> dict[tuple[str, str], _History]:
        """`keep_clicks`, waiting out an outage; now and then old clicks are removed."""
        found = self._database.transaction(lambda cursor: keep_clicks(cursor, clicks, length))
        most = self._removal_due(len(clicks))
        if most:
            removed = self._database.transaction(lambda c: remove_old_clicks(c, self._keep_hours, most))
            metrics.count("clicks_removed", removed)
        return found

    def _removal_due(self, kept: int) -> int:
        """How many old clicks may go now; 0 if it is too early."""
        with self._lock:
            self._kept += kept
            if self._kept < _CLICKS_A_REMOVAL and time.monotonic() < self._next_removal:
                return 0
            most, self._kept = 2 * max(self._kept, _CLICKS_A_REMOVAL), 0
            self._next_removal = time.monotonic() + _REMOVE_SECONDS
            return most


class _HistoryDoFn(beam.DoFn):  # type: ignore[misc]
    _shared = shared.Shared()

    def __init__(self, options: "SessionHistory") -> None:
        self._vector_db, self._length = options.vector_db, options.length
        self._keep_hours = options.keep_hours

    def setup(self) -> None:
        self._clicks = self._shared.acquire(
            lambda: _Clicks(self._vector_db, self._keep_hours), tag=self._vector_db
        )

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield add_history(batch, self._clicks.keep(clicks_of(batch), self._length))


@dataclasses.dataclass(eq=False)
class SessionHistory(beam.PTransform):  # type: ignore[misc]
    """Gives each click the clicks of its session before it, as many as `length`.

    Attributes:
      vector_db: URI of the database that keeps them.
      length: most earlier clicks in a history.
      keep_hours: for how long a click is kept after it was seen last.
    """

    vector_db: str
    length: int = 10
    keep_hours: float = 48.0

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[event_schema of clicks] -> [the same, `history` beginning with the earlier clicks]."""
        return batches | "History" >> beam.ParDo(_HistoryDoFn(self)).with_output_types(pa.RecordBatch)
