"""What a replay may change in the settings of an output folder, and what not.

The settings bind a folder to how its events map to ids, customers and times, so that what is there and what
comes fit together. A mapping that was wrong made dead letters; only a replay mends what it broke, so a replay
is where a folder takes another one. It may be anything that does not touch identity: an event that is visible
under one id must not come again under another, and no new event must be taken for one that is there.
"""

import dataclasses
import json
from typing import Any

from beamrec.io.ledger import Settings, put_settings, stored_settings
from beamrec.io.store import Store
from beamrec.schemas.errors import UsageError

__all__ = ["check_mapping", "mend_settings"]

# The id of an event, and whether it is one of a session or a whole one.
_IDENTITY = frozenset({"events.event_id", "events.shape"})
_NO_COLUMN = frozenset({"events.event_time"})


def check_mapping(store: Store, shop: str, event_mapping: str) -> tuple[Settings, tuple[str, ...]]:
    """Whether an output folder may go on with another mapping of its events.

    Args:
      shop: its name, which must be the folder's.
      event_mapping: as `Settings` has it.

    Returns:
      The settings with the mapping, and the names of what changes in it.

    Raises:
      UsageError: it may not, or the folder is not one of a stream.
    """
    stored = stored_settings(store)
    if shop != stored.shop:
        raise UsageError(f"--shop: the output folder is that of the shop {stored.shop!r}, got {shop!r}")
    before, after = _flat(stored.event_mapping), _flat(event_mapping)
    changed = sorted(name for name in after if before.get(name) != after[name])
    # The columns of Parquet files are the same in all files of a folder.
    fixed = [name for name in changed if name in _IDENTITY or _is_column(name, stored.format)]
    if fixed:
        why = "ids would change" if fixed[0] in _IDENTITY else "its Parquet files have columns of these names"
        raise UsageError(
            f"--shop: {fixed[0]} was {before.get(fixed[0])!r} and is {after[fixed[0]]!r}: {why}, so this "
            "output folder cannot take it; use the old value, or stream into another --output"
        )
    return dataclasses.replace(stored, event_mapping=event_mapping), tuple(changed)


def mend_settings(store: Store, shop: str, event_mapping: str) -> tuple[str, ...]:
    """Gives an output folder another mapping of its events; `stream` goes on with it from now on.

    To be called by who holds the folder's lease.

    Returns:
      The names of what changed.

    Raises:
      UsageError: as `check_mapping`.
    """
    settings, changed = check_mapping(store, shop, event_mapping)
    if changed:
        put_settings(store, settings)
    return changed


def _is_column(name: str, form: str) -> bool:
    return form == "parquet" and name not in _NO_COLUMN


def _flat(event_mapping: str) -> dict[str, Any]:
    """What a mapping says, by names as a shop's TOML has them."""
    events, customer_key, product_key = json.loads(event_mapping)
    named = {f"events.{name}": value for name, value in events.items()}
    return named | {"customers.key_type": customer_key, "products.key_type": product_key}
