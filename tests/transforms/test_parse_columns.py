"""Many records at once: what the columns take, and that record by record the answer is the same."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings

from beamrec.schemas.events import RAW_EVENTS, event_schema
from beamrec.schemas.shop import CLASSICMODELS, Shop
from beamrec.transforms.parse import parse_events
from beamrec.transforms.parse_columns import parse_columns
from beamrec.transforms.parse_record import InvalidError, RecordParser

ARRIVAL = datetime(2026, 11, 22, 7, 30, tzinfo=UTC)
TOLERANCE = timedelta(seconds=300)
CLICKS = dataclasses.replace(
    CLASSICMODELS,
    products=dataclasses.replace(CLASSICMODELS.products, key_type="int"),
    customers=dataclasses.replace(CLASSICMODELS.customers, key_type="string"),
    events=dataclasses.replace(CLASSICMODELS.events, shape="click"),
)


def raw(payloads: list[bytes]) -> pa.RecordBatch:
    rows = [
        {"source": "file:a", "after": i, "position": i + 1, "arrival": ARRIVAL, "payload": payload}
        for i, payload in enumerate(payloads)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RAW_EVENTS)


def one_by_one(batch: pa.RecordBatch, shop: Shop, dedupe_key: str | None) -> tuple[pa.RecordBatch, list[str]]:
    """What `parse_events` must answer: the events, and the rules that the others break."""
    parser = RecordParser(shop, dedupe_key, TOLERANCE)
    good, rules = [], []
    for row in batch.to_pylist():
        try:
            good.append(row | parser.parse(row))
        except InvalidError as error:
            rules.append(error.rule)
    return pa.RecordBatch.from_pylist(good, schema=event_schema(shop)), rules


odd = st.sampled_from(
    [
        None, True, False, 0, -1, 1.5, -0.0, 1e300, 3.5e38, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63),
        "", "5", " 5", "+5", "-5", "٣", "1_0", "1e3", "12.50", "-7", "007", "1.",
        "inf", "nan", "x" * 256, "x" * 257, "é" * 256, "a\0b",
        "😀", "\\u0000", [], [1], {}, {"a": 1},
    ]
)  # fmt: skip
times = st.sampled_from(
    [
        "2026-11-22T07:29:00Z", "2026-11-22T08:29:00.5+01:00", "2026-11-22t07:29:00.123456789z",
        "2026-11-22T07:35:00Z", "2026-11-22T07:35:00.000001Z", "2026-02-30T00:00:00Z", "2099-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-11-22T23:59:60Z",
        "1000-01-01T00:00:00Z", "2026-11-22T07:29:00", "2026-11-22", "2026-11-22T07:29:00+24:00",
        "2026-11-22T07:29:00 Z",
    ]
)  # fmt: skip
entries = st.fixed_dictionaries(
    {},
    optional={
        "product_code": st.sampled_from(["P1", "P2"]) | odd,
        "quantity": st.sampled_from(["2", 3]) | odd,
        "in_shopping_cart": st.booleans() | odd,
    },
)
events = st.fixed_dictionaries(
    {},
    optional={
        "event_id": st.text(min_size=1, max_size=5) | odd,
        "session_id": st.text(min_size=1, max_size=5) | odd,
        "event_time": times | odd,
        "customer_number": st.integers(1, 500) | st.sampled_from(["a", "b"]) | odd,
        "city": st.text(max_size=5) | odd,
        "credit_limit": st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | odd,
        "browse_history": st.lists(entries | odd, max_size=4) | odd,
        "product_code": st.integers(1, 9) | odd,
        "quantity": odd,
        "in_shopping_cart": odd,
        "release": odd,
        "extra": odd,
    },
)
texts = st.builds(orjson.dumps, events) | st.sampled_from(
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'{"a":1',
        b'{"city":"\xff"}',
        b'{"city":"\\ud800"}',
        b'{"a":1e999}',
        b"[" * 400,
    ]
)


@settings(max_examples=300)
@given(
    st.lists(texts, max_size=12),
    st.sampled_from([CLASSICMODELS, CLICKS]),
    st.sampled_from([None, "session_id"]),
)
def test_together_they_are_as_one_by_one(payloads: list[bytes], shop: Shop, dedupe_key: str | None) -> None:
    batch = raw(payloads)
    found, dead = parse_events(batch, shop, dedupe_key, TOLERANCE.total_seconds())
    expected, rules = one_by_one(batch, shop, dedupe_key)
    found.validate(full=True)
    assert found.equals(expected)
    assert [orjson.loads(line)["error_type"] for line in dead.column("line").to_pylist()] == rules


def test_what_is_plainly_good_needs_no_second_look() -> None:
    def event(**changes: Any) -> bytes:
        history = [{"product_code": "P", "quantity": "2", "in_shopping_cart": True}, {"product_code": 7}]
        good = {"customer_number": 1, "city": None, "credit_limit": 2.5, "browse_history": history}
        return orjson.dumps({**good, **changes})

    times = ["2026-11-22T07:29:00Z", "2026-11-22T08:29:00.123456+01:00", None]
    plain = [event(event_time=time, event_id=i, release="theirs") for i, time in enumerate(times)]
    batch = raw(
        [
            *plain,
            b"not json",
            event(credit_limit="1e2"),
            event(credit_limit="-1.25", customer_number="7"),
            event(browse_history=None),
        ]
    )
    places, found = parse_columns(batch, CLASSICMODELS, None, 0)
    assert places.tolist() == [0, 1, 2, 5, 6]
    assert found.num_rows == 5


@pytest.mark.parametrize("length", [1000, 1001])
def test_a_history_may_be_so_long_and_no_longer(length: int) -> None:
    long = orjson.dumps({"browse_history": [{"product_code": "P"}] * length})
    found, dead = parse_events(raw([b"{}", long, b"{}"]), CLASSICMODELS)
    assert (found.num_rows, dead.num_rows) == ((3, 0) if length == 1000 else (2, 1))
