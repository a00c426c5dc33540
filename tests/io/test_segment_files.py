"""Segments as JSONL, gzip and Parquet: the same rows each time, and nothing lost on the way to columns."""

import gzip
import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beamrec.io.record_columns import to_columns
from beamrec.io.segment_files import SegmentFormat, write_segment
from beamrec.schemas.errors import UsageError
from beamrec.schemas.records import OTHER_FIELDS, record_schema
from beamrec.schemas.shop import CLASSICMODELS

SCHEMA = record_schema(CLASSICMODELS)
FOLDER = "recommendations/year=2026/month=11/day=22/hour=07"
RECORD: dict[str, Any] = {
    "session_id": "6f1c",
    "customer_number": 103,
    "city": "Nantes",
    "country": "France",
    "credit_limit": 21000,
    "browse_history": [{"product_code": "S10_1678", "quantity": "2", "in_shopping_cart": True}],
    "recommended_items": [{"id": "S12_1108", "score": 0.8}],
    "similar_items": [{"product_code": "S10_1678", "similar_items": [{"id": "S18_2238", "distance": 0.71}]}],
    "event_id": "e1",
    "event_time": "2026-11-22T07:00:00.000001Z",
    "release": "r1",
    "served_by": "known_customer",
    "processed_at": "2026-11-22T07:00:01Z",
}


def columns(*records: Any) -> list[dict[str, Any]]:
    return to_columns([json.dumps(record).encode() for record in records], SCHEMA).to_pylist()


def lines(*records: Any) -> pa.Array:
    """As a slice of something larger, as it comes from a shuffle."""
    data = [b"other", *(json.dumps(record).encode() for record in records), b"other"]
    return pa.array(data, pa.binary()).slice(1, len(records))


def test_a_record_fills_its_columns_and_nothing_is_left_over():
    (row,) = columns(RECORD)
    assert row[OTHER_FIELDS] is None
    assert row["event_time"] == datetime(2026, 11, 22, 7, 0, 0, 1, tzinfo=UTC)
    assert row["browse_history"] == [{"product_code": "S10_1678", "quantity": 2, "in_shopping_cart": True}]
    same = [name for name in RECORD if name not in ("browse_history", "event_time", "processed_at")]
    assert {name: row[name] for name in same} == {name: RECORD[name] for name in same}


@pytest.mark.parametrize(
    ("field", "value", "held"),
    [
        ("utm", {"source": "mail"}, None),
        ("customer_number", 1 << 63, None),
        ("customer_number", True, None),
        ("customer_number", 103.5, None),
        ("city", 7, None),
        ("credit_limit", "many", None),
        ("credit_limit", (1 << 53) + 1, None),
        ("browse_history", "none", None),
        ("browse_history", [{"product_code": "a", "color": "red"}], [{"product_code": "a"}]),
        ("browse_history", [{"product_code": "a", "quantity": "two"}], [{"product_code": "a"}]),
        ("browse_history", [7], [None]),
        (OTHER_FIELDS, "mine", None),
    ],
)
def test_what_a_column_cannot_hold_stands_beside_it(field, value, held):
    (row,) = columns({**RECORD, field: value})
    assert json.loads(row[OTHER_FIELDS]) == {field: value}
    if held is not None:
        wanted = [entry and {"quantity": None, "in_shopping_cart": None, **entry} for entry in held]
        assert row[field] == wanted
    elif field not in (OTHER_FIELDS, "utm"):
        assert row[field] is None


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.from_regex(r"[+-]?[0-9]{1,20}", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*RECORD, "x", OTHER_FIELDS]), _VALUES, max_size=6))
def test_any_record_can_be_put_together_again_from_its_row(record):
    (row,) = to_columns([orjson.dumps(record)], SCHEMA).to_pylist()
    kept = orjson.loads(row.pop(OTHER_FIELDS) or "{}")
    assert kept.items() <= record.items()
    assert all(same(value, row.get(name)) for name, value in record.items() if name not in kept)


def same(value: Any, held: Any) -> bool:
    """Whether a column's value is the record's: a field that is not there is null, text may be a number."""
    if isinstance(value, dict):
        return value.keys() <= held.keys() and all(same(value.get(name), held[name]) for name in held)
    if isinstance(value, list):
        return len(value) == len(held) and all(map(same, value, held))
    if isinstance(held, datetime):
        return datetime.fromisoformat(value) == held
    number = isinstance(value, str) and isinstance(held, int)
    return (int(value) if number else value) == held and isinstance(value, bool) == isinstance(held, bool)


def test_files_hold_the_same_rows_and_repeat_their_bytes():
    rows = lines(RECORD, {**RECORD, "event_id": "e2"})
    plain, suffix = write_segment(SegmentFormat(), FOLDER, rows)
    assert suffix == ".jsonl"
    assert plain == b"".join(line + b"\n" for line in rows.to_pylist())
    zipped, suffix = write_segment(SegmentFormat("jsonl.gz"), FOLDER, rows)
    assert suffix == ".jsonl.gz"
    assert gzip.decompress(zipped) == plain
    parquet, suffix = write_segment(SegmentFormat("parquet", SCHEMA), FOLDER, rows)
    assert suffix == ".parquet"
    table = pq.read_table(pa.BufferReader(parquet))
    assert table["event_id"].to_pylist() == ["e1", "e2"]
    assert table.schema.names == SCHEMA.names
    assert write_segment(SegmentFormat("parquet", SCHEMA), FOLDER, rows)[0] == parquet
    assert write_segment(SegmentFormat("jsonl.gz"), FOLDER, rows)[0] == zipped


@pytest.mark.parametrize("name", ["jsonl.gz", "parquet"])
def test_dead_letters_are_jsonl_always(name):
    form = SegmentFormat(name, SCHEMA)
    assert write_segment(form, "errors/parse/year=2026", lines({"stage": "parse"}))[1] == ".jsonl"


def test_the_courses_record_has_its_own_columns():
    names = record_schema(CLASSICMODELS, course=True).names
    assert names[-3:] == ["recommended_items", "similar_items", OTHER_FIELDS]
    assert "event_id" not in names


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match=r"expected one of jsonl, jsonl\.gz, parquet, got 'csv'"):
        SegmentFormat("csv")
