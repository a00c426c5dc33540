"""Parsing: every dirty case of the event format, and one bad record never harms its batch."""

import base64
import json
from datetime import UTC, datetime

import apache_beam as beam
import orjson
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.schemas.events import RAW_EVENTS, event_schema
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.parse import ParseEvents, parse_events

ARRIVAL = datetime(2026, 11, 22, 7, 30, tzinfo=UTC)
GOOD = {
    "session_id": "s1",
    "customer_number": 103,
    "city": "Nantes",
    "country": "France",
    "credit_limit": 21000,
    "browse_history": [{"product_code": "S10_1678", "quantity": "2", "in_shopping_cart": True}],
}


def raw(*payloads: bytes | dict) -> pa.RecordBatch:
    rows = []
    for i, payload in enumerate(payloads):
        data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        rows.append(
            {
                "source": "file:a.jsonl",
                "after": i * 10,
                "position": i * 10 + 10,
                "arrival": ARRIVAL,
                "payload": data,
            }
        )
    return pa.RecordBatch.from_pylist(rows, schema=RAW_EVENTS)


def parse_one(**changes: object) -> dict:
    events, dead = parse_events(raw({**GOOD, **changes}), CLASSICMODELS)
    assert dead.num_rows == 0, dead.to_pylist()
    return events.to_pylist()[0]


def reject_one(payload: bytes | dict) -> dict:
    events, dead = parse_events(raw(GOOD, payload, GOOD), CLASSICMODELS)
    assert (events.num_rows, dead.num_rows) == (2, 1)
    assert dead.column("fate").to_pylist() == ["dead_letter"]
    return json.loads(dead.column("line")[0].as_py())


def test_a_good_event_becomes_columns_with_the_names_of_the_shop():
    event = parse_one()
    assert event["customerNumber"] == 103
    assert (event["city"], event["country"], event["creditLimit"]) == ("Nantes", "France", 21000.0)
    assert event["history"] == [{"product": "S10_1678", "in_cart": True}]
    assert event["event_time"] == ARRIVAL


def test_the_events_own_fields_pass_through_and_reserved_ones_do_not():
    event = parse_one(extra={"a": [1, None]}, release="theirs", event_id="e1")
    assert orjson.loads(event["fields"]) == {**GOOD, "extra": {"a": [1, None]}}
    assert event["event_id"] == "e1"


@pytest.mark.parametrize("quantity", ["2", 2, "0", None])
def test_quantity_may_be_a_string_or_a_number(quantity):
    history = [{"product_code": "P", "quantity": quantity, "in_shopping_cart": False}]
    assert parse_one(browse_history=history)["history"] == [{"product": "P", "in_cart": False}]


def test_the_same_product_twice_and_empty_histories_are_kept_as_they_are():
    twice = [{"product_code": "P"}, {"product_code": "P", "in_shopping_cart": True}]
    assert [h["product"] for h in parse_one(browse_history=twice)["history"]] == ["P", "P"]
    assert parse_one(browse_history=[])["history"] == []
    assert parse_one(browse_history=None)["history"] == []


def test_negative_credit_limits_unseen_cities_and_missing_customers_are_events_like_others():
    event = parse_one(credit_limit=-512.25, city="Bräcke", customer_number=None, country="")
    assert (event["creditLimit"], event["city"]) == (-512.25, "Bräcke")
    assert (event["customerNumber"], event["country"]) == (None, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T07:29:00Z", datetime(2026, 11, 22, 7, 29, tzinfo=UTC)),
        ("2026-11-22T08:29:00.5+01:00", datetime(2026, 11, 22, 7, 29, 0, 500000, tzinfo=UTC)),
        ("2026-11-22t07:29:00.123456789z", datetime(2026, 11, 22, 7, 29, 0, 123456, tzinfo=UTC)),
    ],
)
def test_event_time_is_rfc_3339_in_utc(text, expected):
    assert parse_one(event_time=text)["event_time"] == expected


def test_identity_is_the_own_id_then_the_dedupe_key_then_payload_and_position():
    assert parse_one(event_id="mine")["event_id"] == "mine"
    assert parse_one(event_id=7)["event_id"] == "7"
    events, _ = parse_events(raw(GOOD, GOOD), CLASSICMODELS, dedupe_key="session_id")
    assert events.column("event_id").to_pylist() == ["s1", "s1"]
    first, second = parse_events(raw(GOOD, GOOD), CLASSICMODELS)[0].column("event_id").to_pylist()
    assert first != second
    assert first == parse_events(raw(GOOD, GOOD), CLASSICMODELS)[0].column("event_id")[0].as_py()


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (b"not json", "json_invalid"),
        (b'{"customer_number": 1', "json_invalid"),
        (b"[1, 2]", "json_invalid"),
        (b"null", "json_invalid"),
        (b'"text"', "json_invalid"),
        (b'{"city": "\xff\xfe"}', "json_invalid"),
        (b'{"city": "\\ud800"}', "json_invalid"),
        (b'{"credit_limit": NaN}', "json_invalid"),
        (b'{"credit_limit": 1e999}', None),
        (b"[" * 5000 + b"]" * 5000, "json_invalid"),
        ({**GOOD, "customer_number": "abc"}, "integer_invalid"),
        ({**GOOD, "customer_number": True}, "integer_invalid"),
        ({**GOOD, "customer_number": 1.5}, "integer_invalid"),
        (b'{"customer_number": 99999999999999999999999}', None),
        ({**GOOD, "city": ["a"]}, "string_invalid"),
        ({**GOOD, "credit_limit": "much"}, "number_invalid"),
        ({**GOOD, "credit_limit": {}}, "number_invalid"),
        ({**GOOD, "browse_history": "P"}, "history_invalid"),
        ({**GOOD, "browse_history": ["P"]}, "history_invalid"),
        ({**GOOD, "browse_history": [{"quantity": 1}]}, "history_invalid"),
        ({**GOOD, "browse_history": [{"product_code": ""}]}, "history_invalid"),
        ({**GOOD, "browse_history": [{"product_code": "P", "quantity": "two"}]}, "integer_invalid"),
        ({**GOOD, "browse_history": [{"product_code": "P", "in_shopping_cart": "x"}]}, "history_invalid"),
        ({**GOOD, "event_id": ""}, "event_id_invalid"),
        ({**GOOD, "event_id": ["a"]}, "event_id_invalid"),
        ({**GOOD, "event_id": "x" * 300}, "event_id_invalid"),
        ({**GOOD, "event_id": "x\0y"}, "event_id_invalid"),
        ({**GOOD, "browse_history": [{"product_code": "S10\0"}]}, "string_invalid"),
        ({**GOOD, "city": "a\0b"}, "string_invalid"),
        (b'{"customer_number": ' + b"[" * 900 + b"]" * 900 + b"}", "integer_invalid"),
        ({**GOOD, "credit_limit": 1e39}, "number_invalid"),
        ({**GOOD, "browse_history": [{"product_code": "P" * 257}]}, "string_invalid"),
        ({**GOOD, "browse_history": [{"product_code": "P"}] * 1001}, "history_invalid"),
        ({**GOOD, "event_time": "yesterday"}, "event_time_invalid"),
        ({**GOOD, "event_time": 1700000000}, "event_time_invalid"),
        ({**GOOD, "event_time": "2026-11-22T07:30:00"}, "event_time_invalid"),
        ({**GOOD, "event_time": "2026-13-40T07:30:00Z"}, "event_time_invalid"),
        ({**GOOD, "event_time": "0001-01-01T00:00:00+23:59"}, "event_time_invalid"),
        ({**GOOD, "event_time": "2099-01-01T00:00:00Z"}, "event_time_in_future"),
    ],
)
def test_a_bad_record_is_a_dead_letter_with_its_exact_bytes_and_its_neighbours_go_on(payload, rule):
    letter = reject_one(payload)
    exact = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    assert base64.b64decode(letter["payload"]) == exact
    assert letter["stage"] == "parse"
    assert letter["source"] == {"system": "file", "name": "a.jsonl", "after": 10, "position": 20}
    assert letter["first_seen"] == "2026-11-22T07:30:00Z"
    if rule:
        assert letter["error_type"] == rule


def test_parse_events_transform_has_a_good_and_a_dead_output():
    with TestPipeline() as pipeline:
        parsed = pipeline | beam.Create([raw(GOOD, b"x", GOOD)]) | ParseEvents(CLASSICMODELS)
        assert_that(parsed.events | beam.Map(lambda b: b.num_rows), equal_to([2]), "events")
        assert_that(parsed.dead | beam.Map(lambda b: b.num_rows), equal_to([1]), "dead")


def test_a_batch_without_good_rows_still_has_the_schema():
    events, dead = parse_events(raw(b"x"), CLASSICMODELS)
    assert events.schema == event_schema(CLASSICMODELS)
    assert (events.num_rows, dead.num_rows) == (0, 1)
