"""Rows as they come to the sink, and what it does with them; a module of tests imports what it needs."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from beamrec.io.shard_log import ShardLog
from beamrec.io.store import Store
from beamrec.schemas.events import OUTCOMES

HOUR = datetime(2026, 11, 22, 7, tzinfo=UTC)


def outcomes(*rows: tuple[str, int, str], fate: str = "visible", hour: datetime = HOUR) -> pa.Table:
    """Rows of (source, position, event id)."""
    return pa.Table.from_pylist(
        [
            {
                "source": source,
                "after": position - 1,
                "position": position,
                "event_id": event_id,
                "fate": fate,
                "folder": f"recommendations/hour={hour:%H}",
                "hour": hour,
                "line": f"{event_id}@{position}".encode(),
            }
            for source, position, event_id in rows
        ],
        schema=OUTCOMES,
    )


def make_visible(store: Store, rows: Sequence[Mapping[str, Any]]) -> None:
    """Gives rows of RAW_EVENTS their fate, as the sink does."""
    table = [
        {
            **{name: row[name] for name in ("source", "after", "position")},
            "event_id": f"{row['source']}{row['position']}",
            "fate": "visible",
            "folder": "recommendations",
            "hour": row["arrival"],
            "line": row["payload"],
        }
        for row in rows
    ]
    ShardLog(store, 0, 24).commit(pa.Table.from_pylist(table, schema=OUTCOMES))
