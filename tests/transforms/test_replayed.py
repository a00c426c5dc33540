"""What is parsed again keeps its id, its first position and what is known of its attempts."""

import json
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from beamrec.pipelines.job_metrics import read_metrics
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.events import RAW_EVENTS, event_schema
from beamrec.schemas.replays import REPLAYED
from beamrec.schemas.shop import CLASSICMODELS as SHOP
from beamrec.transforms.parse import parse_events
from beamrec.transforms.replayed import ParseReplayed, parse_replayed

ARRIVAL = datetime(2026, 11, 22, 7, 30, tzinfo=UTC)
SOURCE = {"system": "file", "name": "a:b.jsonl", "after": 40, "position": 77}


def row(position: int, payload: bytes, **more: Any) -> dict[str, Any]:
    base = {
        "source": "replay:dead_letter/000000000000", "after": position - 1, "position": position,
        "arrival": ARRIVAL, "payload": payload, "known_id": None, "attempt": 1,
        "origin": json.dumps(SOURCE),
    }  # fmt: skip
    return base | more


def parse(*rows: dict[str, Any]) -> tuple[pa.RecordBatch, list[DeadLetter]]:
    events, dead = parse_replayed(pa.RecordBatch.from_pylist(rows, schema=REPLAYED), SHOP, "session_id")
    assert events.schema == event_schema(SHOP)
    return events, [DeadLetter.from_json(line) for line in dead.column("line").to_pylist()]


def test_an_event_without_an_id_has_the_one_of_its_first_position() -> None:
    payload = b'{"city": "Nantes"}'
    first = {"source": "file:a:b.jsonl", "after": 40, "position": 77, "arrival": ARRIVAL, "payload": payload}
    once, _ = parse_events(pa.RecordBatch.from_pylist([first], schema=RAW_EVENTS), SHOP)
    again, _ = parse(row(3, payload))
    assert again.column("event_id") == once.column("event_id")
    assert again.column("position").to_pylist() == [3]
    assert again.column("event_time").to_pylist() == [ARRIVAL]


@pytest.mark.parametrize(
    ("payload", "more", "event_id"),
    [
        (b'{"event_id": "own"}', {}, "own"),
        (b'{"event_id": "own"}', {"known_id": "old"}, "own"),
        (b'{"session_id": "s"}', {"known_id": "old"}, "s"),
        (b"{}", {"known_id": "old"}, "old"),
        # A visible record has no event_id among its own fields: it is known what it was.
        (b'{"session_id": "s"}', {"known_id": "own", "origin": None, "attempt": 0}, "own"),
    ],
)
def test_whose_id_counts(payload: bytes, more: dict[str, Any], event_id: str) -> None:
    events, dead = parse(row(1, payload, **more))
    assert (events.column("event_id").to_pylist(), dead) == ([event_id], [])


def test_what_is_still_bad_has_one_attempt_more_and_its_first_source() -> None:
    events, dead = parse(
        row(1, b"{}"), row(2, b"\xff", attempt=4, known_id="x"), row(3, b"[]"), row(4, b'{"event_id": "e"}')
    )
    assert events.column("position").to_pylist() == [1, 4]
    assert [(letter.payload, letter.attempt, letter.event_id) for letter in dead] == [
        (b"\xff", 5, "x"),
        (b"[]", 2, None),
    ]
    assert all(letter.source == SOURCE for letter in dead)
    assert all(letter.first_seen == "2026-11-22T07:30:00Z" for letter in dead)


def test_a_dead_letter_of_an_event_that_was_never_one_is_an_ordinary_one() -> None:
    _, (letter,) = parse(row(6, b"[]", origin=None, attempt=0))
    assert letter.attempt == 1
    assert letter.source["position"] == 6


def test_what_is_parsed_again_is_counted_as_what_is_parsed_first() -> None:
    rows = [row(1, b"{}"), row(2, b"[]"), row(3, b"{}")]
    with beam.Pipeline(FnApiRunner()) as pipeline:
        batches = pipeline | beam.Create([pa.RecordBatch.from_pylist(rows, schema=REPLAYED)])
        _ = batches | ParseReplayed(SHOP)
    found = read_metrics(pipeline.result).counters
    assert (found["parsed"], found["parse_dead_letters"]) == ({"": 2}, {"": 1})
