"""Events out of recommendations: what was sealed is read to its end, also when the job drains."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io.events import SourceOptions
from beamrec.io.ledger import account, request_drain
from beamrec.io.recommended_events import RecommendedEvents
from beamrec.io.shard_log import ShardLog
from beamrec.io.store import LocalStore
from beamrec.schemas.events import OUTCOMES
from beamrec.schemas.paths import RECOMMENDATIONS, hour_folder

BEGIN = datetime(2026, 11, 22, 7, tzinfo=UTC)


@pytest.fixture
def source(tmp_path: Path) -> RecommendedEvents:
    """Of three hours; what is scored again is written beside them."""
    (tmp_path / "new").mkdir()
    options = SourceOptions(str(tmp_path / "new"), "run")
    return RecommendedEvents(options, str(tmp_path / "old"), BEGIN, BEGIN + timedelta(hours=3))


def write(source: RecommendedEvents, hour: int, shard: int, events: int = 5) -> None:
    """A file of recommendations."""
    time = BEGIN + timedelta(hours=hour)
    records = (
        {"event_id": f"{hour}-{shard}-{n}", "event_time": (time + timedelta(seconds=n)).isoformat()}
        | {"recommended_items": [], "served_by": "popular", "release": "r1"}
        for n in range(events)
    )
    path = f"{hour_folder(RECOMMENDATIONS, time)}/part-{shard:04d}-0000000000.jsonl"
    LocalStore(Path(source.recommendations)).create(
        path, b"".join(json.dumps(r).encode() + b"\n" for r in records)
    )


def read_all(reader: Any) -> list[pa.RecordBatch]:
    """What a reader has for now."""
    found = []
    while reader.advance():
        found.append(reader.get_current())
    return found


def fate(store: LocalStore, batches: list[pa.RecordBatch]) -> None:
    """What the sink does with them."""
    rows = [
        {name: row[name] for name in ("source", "after", "position")}
        | {"event_id": row["known_id"], "fate": "visible", "folder": "recommendations"}
        | {"hour": BEGIN, "line": b"{}"}
        for batch in batches
        for row in batch.to_pylist()
    ]
    ShardLog(store, 0, 24).commit(pa.Table.from_pylist(rows, schema=OUTCOMES))


def test_a_drain_reads_what_was_sealed_although_an_earlier_hour_has_a_new_file(
    source: RecommendedEvents,
) -> None:
    store = LocalStore(Path(source.options.output))
    for hour in (1, 2):
        write(source, hour, 0)
    sealed = read_all(source.create_reader(None, None))
    assert [batch.num_rows for batch in sealed] == [5, 5]
    # It was killed before anything was written; meanwhile late events came.
    write(source, 0, 0)
    write(source, 1, 1)
    request_drain(store, source.options.run)
    drained = source.create_reader(None, None)
    again = read_all(drained)
    assert [batch["known_id"].to_pylist() for batch in again] == [b["known_id"].to_pylist() for b in sealed]
    fate(store, again)
    found = account(store)
    assert found.reconciled, found
    assert found.counts.out == 10


def test_late_files_are_read_where_nothing_drains(source: RecommendedEvents) -> None:
    write(source, 1, 0)
    read_all(source.create_reader(None, None))
    write(source, 0, 0)
    read = read_all(source.create_reader(None, None))
    assert [batch["known_id"][0].as_py() for batch in read] == ["0-0-0", "1-0-0"]
