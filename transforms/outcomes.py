"""Outcome rows: what the sink writes for a record, whatever its fate."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import OUTCOMES, Fate
from beamrec.schemas.paths import hour_folder

__all__ = ["hour_of", "outcomes", "position_of"]


def position_of(row: dict[str, Any]) -> dict[str, Any]:
    """The `source` object of a dead letter, from a row of RAW_EVENTS, whose source is `system:name`."""
    system, _, name = row["source"].partition(":")
    return {"system": system, "name": name, "after": row["after"], "position": row["position"]}


def hour_of(time: datetime) -> datetime:
    """The hour that a time belongs to."""
    return time.replace(minute=0, second=0, microsecond=0)


def outcomes(rows: Sequence[tuple[dict[str, Any], str | None, DeadLetter]], fate: Fate) -> pa.RecordBatch:
    """Dead letters as OUTCOMES, in the hour of their arrival.

    Args:
      rows: row of RAW_EVENTS, event id if known, and the dead letter.
      fate: dead_letter or expired.
    """
    # A record without a known id is known by its position, which is all that its fate needs.
    return pa.RecordBatch.from_pylist(
        [
            {
                "source": row["source"],
                "after": row["after"],
                "position": row["position"],
                "event_id": event_id or f"{row['source']}@{row['position']}",
                "fate": str(fate),
                "folder": hour_folder(f"errors/{letter.stage}", row["arrival"]),
                "hour": hour_of(row["arrival"]),
                "line": letter.to_json(),
                "event_time": row.get("event_time"),
                "arrival": row["arrival"],
            }
            for row, event_id, letter in rows
        ],
        schema=OUTCOMES,
    )
