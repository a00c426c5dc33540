"""10,000 records of over forty kinds: none stops the stream, each has one fate, good ones are untouched."""

import base64
import collections
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beamrec.schemas.events import CANDIDATES, NEIGHBOURS, RAW_EVENTS, RELEASE_ID, SIMILAR
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.parse import parse_events
from beamrec.transforms.recommend import format_records, recommend
from beamrec.transforms.serving import serving_rows
from beamrec.transforms.windows import split_windows

NOW = datetime(2026, 11, 22, 7, 30, tzinfo=UTC)
RECORDS, BATCH = 10_000, 1_000


def raw(records: list[Any], first: int = 0) -> pa.RecordBatch:
    rows = [
        {
            "source": "kinesis:s/0",
            "after": first + i,
            "position": first + i + 1,
            "arrival": NOW,
            "payload": record.payload,
        }
        for i, record in enumerate(records)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RAW_EVENTS)


def scored(events: pa.RecordBatch) -> pa.RecordBatch:
    """The batch as the look-up, the tower and the search leave it, every product being known."""
    rows = events.num_rows
    neighbours = pa.scalar([{"id": f"P{i}", "distance": i / 8} for i in range(8)], NEIGHBOURS).as_py()
    similar = [
        [{"product": str(p), "items": neighbours} for p in dict.fromkeys(e["product"] for e in history)]
        for history in events.column("history").to_pylist()
    ]
    columns = {
        "known": pa.array([True] * rows),
        "similar": pa.array(similar, SIMILAR),
        "user_vector": pa.array([[0.5, 0.5]] * rows, pa.list_(pa.float32(), 2)),
        "candidates": pa.array([[{"id": f"P{i}", "score": 1 - i / 8} for i in range(8)]] * rows, CANDIDATES),
    }
    for name, column in columns.items():
        events = events.append_column(name, column)
    return events.replace_schema_metadata({RELEASE_ID: "r1"})


def fates(batch: pa.RecordBatch) -> dict[int, str]:
    """Position → fate through every stage that touches nothing outside."""
    events, dead = parse_events(batch, CLASSICMODELS)
    found = [(position, "dead") for position in dead.column("position").to_pylist()]
    pieces, expired = split_windows(events, 60, 3600, 2)
    found += [(position, "expired") for position in expired.column("position").to_pylist()]
    for _, piece in pieces:
        ranked = recommend(scored(piece), 5)
        records = format_records(ranked)
        for position, line in zip(
            records.column("position").to_pylist(), records.column("line").to_pylist(), strict=True
        ):
            assert b"\n" not in line
            assert len(json.loads(line)["recommended_items"]) == 5
            found.append((position, "visible"))
        customers = ranked.column("customerNumber")
        assert serving_rows(ranked, CLASSICMODELS).num_rows == len(customers) - customers.null_count
    assert len(dict(found)) == len(found), "a record has two fates"
    return dict(found)


@pytest.fixture(scope="module")
def records(hostile_events: Callable[..., Any]) -> list[Any]:
    return list(hostile_events(RECORDS, now=NOW))


def test_every_record_has_the_one_fate_of_its_kind(records: list[Any]) -> None:
    kinds, sizes = collections.Counter(record.kind for record in records), [len(r.payload) for r in records]
    assert len(kinds) > 40
    assert min(kinds.values()) > 80
    assert max(sizes) >= 10 << 20
    wrong = collections.Counter()
    for first in range(0, RECORDS, BATCH):
        part = records[first : first + BATCH]
        found = fates(raw(part, first))
        assert found.keys() == set(range(first + 1, first + 1 + len(part)))
        for i, record in enumerate(part):
            fate = found[first + i + 1]
            wrong[record.kind, fate] += record.expected not in (fate, "any")
    assert not +wrong, +wrong


def test_good_records_are_the_same_without_their_neighbours(records: list[Any]) -> None:
    part = records[:BATCH]
    plain = [i for i, record in enumerate(part) if record.kind == "plain"]
    together, dead = parse_events(raw(part), CLASSICMODELS)
    alone, none_dead = parse_events(raw(part).take(pa.array(plain)), CLASSICMODELS)
    assert (alone.num_rows, none_dead.num_rows) == (BATCH // 2, 0)
    mask = np.array([str(i).startswith("plain-") for i in together.column("event_id").to_pylist()])
    assert together.filter(pa.array(mask)).equals(alone)
    for line, position in zip(
        dead.column("line").to_pylist(), dead.column("position").to_pylist(), strict=True
    ):
        assert base64.b64decode(json.loads(line)["payload"]) == part[position - 1].payload
