"""The contract of the streaming side: raw events, parsed events, recommendations and outcomes.

A *position* is where an event ends in its source, `after` where it begins: the half-open interval
(`after`, `position`] of bytes, offsets or sequence numbers. The intervals of one source tile it, so a
gap or an overlap in the ledger shows without reading the source again. A source is named
`system:name`, for a file `file:path/below/the/folder`.
"""

import enum
from datetime import UTC, datetime

import pyarrow as pa

from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import Shop, Table

__all__ = [
    "CANDIDATES",
    "NEIGHBOURS",
    "OUTCOMES",
    "RAW_EVENTS",
    "RELEASE_CHECKSUM",
    "RELEASE_ID",
    "RELEASE_URI",
    "RESERVED_FIELDS",
    "SERVED",
    "SERVING",
    "SESSION",
    "SIMILAR",
    "STORED_VECTOR",
    "TIMESTAMP",
    "Fate",
    "event_schema",
    "key_type",
    "rfc3339",
]

TIMESTAMP = pa.timestamp("us", "UTC")

# Schema metadata that stamps a batch with its release.
RELEASE_ID, RELEASE_URI, RELEASE_CHECKSUM = b"release", b"release_uri", b"release_checksum"

# Fields that the recommendation record adds; an event's own fields of these names do not pass through.
RESERVED_FIELDS = (
    "recommended_items",
    "similar_items",
    "event_id",
    "event_time",
    "release",
    "served_by",
    "processed_at",
)


class Fate(enum.StrEnum):
    """What became of a record; every record has exactly one."""

    VISIBLE = "visible"
    DEAD_LETTER = "dead_letter"
    DUPLICATE = "duplicate"
    EXPIRED = "expired"


_POSITION_FIELDS = [
    pa.field("source", pa.string(), nullable=False),
    pa.field("after", pa.int64(), nullable=False),
    pa.field("position", pa.int64(), nullable=False),
    pa.field("arrival", TIMESTAMP, nullable=False),
]

RAW_EVENTS = pa.schema([*_POSITION_FIELDS, pa.field("payload", pa.binary(), nullable=False)])
"""What a source emits: position, stored arrival time and the exact bytes of each event."""

OUTCOMES = pa.schema(
    [
        *_POSITION_FIELDS[:3],
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("fate", pa.string(), nullable=False),
        pa.field("folder", pa.string(), nullable=False),
        pa.field("hour", TIMESTAMP, nullable=False),
        pa.field("line", pa.binary(), nullable=False),
        pa.field("event_time", TIMESTAMP),
        pa.field("arrival", TIMESTAMP),
    ]
)
"""What the sink takes: the line to write, its folder below the output and the hour that it belongs to.

The two times are for the metrics of latency, where they are known.
"""

SERVING = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_time", TIMESTAMP, nullable=False),
        pa.field("processed_at", TIMESTAMP, nullable=False),
        pa.field("release", pa.string(), nullable=False),
        pa.field("served_by", pa.string(), nullable=False),
        pa.field("recommended_items", pa.string(), nullable=False),
        pa.field("similar_items", pa.string(), nullable=False),
    ]
)
"""Rows of the serving table; the two lists as JSON text."""

SERVED = SERVING.append(pa.field("arrival", TIMESTAMP, nullable=False))
"""SERVING with when the event arrived, for the metrics of latency; the table does not hold it."""


CANDIDATES = pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64())]))
"""Items by descending score: inner products, or reciprocal ranks of the popularity list."""

NEIGHBOURS = pa.list_(pa.struct([("id", pa.string()), ("distance", pa.float64())]))
"""Items by ascending distance, by the release's operator."""

SIMILAR = pa.list_(pa.struct([("product", pa.string()), ("items", NEIGHBOURS)]))
"""Neighbours by ascending distance of each distinct product of the history that the release knows."""


STORED_VECTOR = "stored_vector"
"""Column fixed_size_list<float32>[dim] of a batch whose release has no user tower: the vector that the
release holds of the customer, null for a customer that it does not know."""

SESSION = "session"
"""Column string of the events of a shop whose events are single clicks; null where a click has none."""

_OUR_COLUMNS = {
    *RAW_EVENTS.names,
    *OUTCOMES.names,
    *SERVING.names,
    "fields",
    "history",
    "known",
    "similar",
    "user_vector",
    SESSION,
    STORED_VECTOR,
    "candidates",
}


def key_type(table: Table) -> pa.DataType:
    """Arrow type of a table's key on the streaming side."""
    return pa.int64() if table.key_type == "int" else pa.string()


def event_schema(shop: Shop) -> pa.Schema:
    """Parsed events: columns carry the shop's names, so both pipelines build features by one function.

    `fields` is the event's own JSON object without `RESERVED_FIELDS`; `history` keeps the order of the
    event, the same product possibly more than once.

    Raises:
      UsageError: a customer column has the name of a column of ours.
    """
    own = {shop.customers.key, *(f.column for f in shop.user_features)}
    taken = sorted(own & _OUR_COLUMNS)
    if taken:
        raise UsageError(
            f"shop {shop.name}: the customer column {taken[0]!r} has the name of a column that the stream "
            "adds; rename it in the source (a view will do)"
        )
    entry = pa.struct([("product", key_type(shop.products)), ("in_cart", pa.bool_())])
    user_columns = [
        pa.field(f.column, pa.float64() if f.kind == "number" else pa.string()) for f in shop.user_features
    ]
    return pa.schema(
        [
            *RAW_EVENTS,
            pa.field("event_id", pa.string(), nullable=False),
            pa.field("event_time", TIMESTAMP, nullable=False),
            pa.field("fields", pa.binary(), nullable=False),
            pa.field(shop.customers.key, key_type(shop.customers)),
            *([pa.field(SESSION, pa.string())] if shop.events.shape == "click" else []),
            *user_columns,
            pa.field("history", pa.list_(entry), nullable=False),
        ]
    )


def rfc3339(time: datetime) -> str:
    """An aware time in UTC with a `Z`, microseconds where it has any."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
