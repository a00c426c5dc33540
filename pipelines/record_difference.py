"""What two output folders recommend for the same events, hour by hour."""

from datetime import datetime

from beamrec.io.store import Store
from beamrec.io.visible_records import RecordFile, find_records, read_records
from beamrec.transforms.list_difference import Difference, Served

__all__ = ["difference"]


def difference(old: Store, new: Store, begin: datetime, end: datetime, items: int) -> Difference:
    """Compares the recommendations of events between two times; holds those of one hour at a time.

    Args:
      begin, end: event times from `begin` on and before `end`.
      items: how many items of each list count.

    Raises:
      UsageError: records do not say which event they are of.
      BeamrecError: a file is damaged.
    """
    found = Difference(items)
    files = {name: find_records(store, begin, end) for name, store in (("old", old), ("new", new))}
    for hour in sorted({file.hour for each in files.values() for file in each}):
        before, after = (
            _served(store, [file for file in files[name] if file.hour == hour], begin, end)
            for name, store in (("old", old), ("new", new))
        )
        for event_id in sorted(before.keys() & after.keys()):
            found.add(event_id, before[event_id], after[event_id])
        found.only_old += len(before.keys() - after.keys())
        found.only_new += len(after.keys() - before.keys())
    return found


def _served(store: Store, files: list[RecordFile], begin: datetime, end: datetime) -> dict[str, Served]:
    return {
        record["event_id"]: Served(
            tuple(item["id"] for item in record["recommended_items"]),
            record["served_by"],
            record["release"],
        )
        for file in files
        for _, record in read_records(store, file, begin, end)
    }
