"""The recommendations of an output folder, read again file by file, in whichever format they are."""

import dataclasses
import gzip
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from beamrec.io.compact import hours_of
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.records import OTHER_FIELDS

__all__ = ["RecordFile", "find_records", "read_records"]

_NAME = re.compile(r"part-\d{4}-\d{10}(\.jsonl|\.jsonl\.gz|\.parquet)")
_NEEDED = ("event_id", "event_time", "recommended_items", "served_by", "release")


@dataclasses.dataclass(frozen=True, order=True)
class RecordFile:
    """A file of recommendations, in the order of their event-time hours."""

    hour: datetime
    path: str


def find_records(store: Store, begin: datetime, end: datetime) -> list[RecordFile]:
    """The files with recommendations of events between two times, by ascending hour."""
    return sorted(
        RecordFile(hour.begin, f"{hour.folder}/{name}")
        for hour in hours_of(store)
        if begin - timedelta(hours=1) < hour.begin < end
        for name in store.names(hour.folder)
        if _NAME.fullmatch(name)
    )


def read_records(
    store: Store, file: RecordFile, begin: datetime, end: datetime
) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """(event time, record) of the events from `begin` on and before `end`, in the order of the file.

    Raises:
      BeamrecError: the file is damaged or gone.
      UsageError: its records do not say which event they are of.
    """
    try:
        records = _read(store, file.path)
    except (FileNotFoundError, OSError, EOFError, ValueError) as error:
        raise BeamrecError(f"{file.path} of {store.uri} cannot be read: {error}") from error
    for record in records:
        missing = [name for name in _NEEDED if name not in record]
        if missing:
            raise UsageError(
                f"--recommendations {store.uri}: its records have no {missing[0]}; expected those of "
                "--output-shape=full (the course's do not say which event they are of)"
            )
        time = record["event_time"]
        time = time if isinstance(time, datetime) else datetime.fromisoformat(time)
        if begin <= time < end:
            yield time, record


def _read(store: Store, path: str) -> list[dict[str, Any]]:
    data = store.read(path)
    if path.endswith(".parquet"):
        return [_record(row) for row in pq.read_table(pa.BufferReader(data)).to_pylist()]
    lines = gzip.decompress(data) if path.endswith(".gz") else data
    return [orjson.loads(line) for line in lines.splitlines()]


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as the record that it was made of; a field that was null is not there."""
    other = row.pop(OTHER_FIELDS, None)
    rest: dict[str, Any] = orjson.loads(other or "{}")
    return {name: value for name, value in row.items() if value is not None} | rest
