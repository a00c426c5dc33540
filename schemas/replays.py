"""Replays: how the ledger calls what is tried again, and what the sources of replays emit.

A dead letter that is replayed is a record of a source of its own, `replay:<fate>/<number>`, at the position
that it has in the selection of that number. The fate that it gets there takes the place of the one in the
source's name: such a record counts once as input, where it was first read, and has one final fate.
"""

import re

import pyarrow as pa

from beamrec.schemas.events import RAW_EVENTS, Fate

__all__ = ["REPLAYED", "replaced_fate", "replay_source"]

REPLAYED = pa.schema(
    [
        *RAW_EVENTS,
        pa.field("known_id", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("origin", pa.string()),
    ]
)
"""RAW_EVENTS that were read before: `known_id` is the id that the event had then, null if that is not known;
`attempt` is how often it has failed, and `origin` the `source` of its dead letter as JSON, null if it has
none."""

_SOURCE = re.compile(r"replay:([a-z_]+)/\d{12}")


def replay_source(replaced: Fate, number: int) -> str:
    """The source of those records of a selection that have the fate `replaced`."""
    return f"replay:{replaced}/{number:012d}"


def replaced_fate(source: str) -> Fate | None:
    """The fate that a fate from this source takes the place of; None for every other source."""
    match = _SOURCE.fullmatch(source)
    return Fate(match[1]) if match else None
