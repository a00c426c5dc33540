"""Reasons of items against a plain loop, in lines of JSON and in columns of Parquet."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beamrec.io.segment_files import SegmentFormat, write_segment
from beamrec.schemas.events import CANDIDATES, RELEASE_ID, SIMILAR, event_schema
from beamrec.schemas.reasons import EXPLAINED, RANKED, RULED_SIMILAR, VECTOR_OF
from beamrec.schemas.records import OTHER_FIELDS, record_schema
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.reasons import explained
from beamrec.transforms.recommend import format_records, recommend
from beamrec.transforms.serving import serving_rows

TIME = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
ids = st.sampled_from([f"P{number}" for number in range(6)])
neighbours = st.lists(ids, unique=True, max_size=4)
rows = st.fixed_dictionaries(
    {
        "similar": st.dictionaries(ids, st.tuples(neighbours, st.integers(1, 5)), max_size=3),
        "ranked": st.lists(ids, unique=True),
        "popular": st.integers(0, 6),
        "has_vector": st.booleans(),
    }
)


def similar_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Neighbours of each product, at distances that differ from product to product."""
    return [
        {"product": product, "items": [{"id": i, "distance": at + 10.0 * far} for at, i in enumerate(items)]}
        for product, (items, far) in row["similar"].items()
    ]


def batch_of(given_: list[dict[str, Any]], vector_of: str) -> pa.RecordBatch:
    vectors = [[1.0, 0.0] if row["has_vector"] else None for row in given_]
    batch = pa.RecordBatch.from_pydict(
        {
            "user_vector": pa.array(vectors, pa.list_(pa.float32(), 2)),
            "similar": pa.array([similar_of(row) for row in given_], SIMILAR),
        }
    )
    return batch.replace_schema_metadata({VECTOR_OF: vector_of})


def nearest(row: dict[str, Any], item: str) -> float | None:
    """The least distance of an item to a product of the history; None if the look-up has none."""
    found = [entry["distance"] for near in similar_of(row) for entry in near["items"] if entry["id"] == item]
    return min(found, default=None)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(rows, max_size=4), st.sampled_from(["user_tower", "stored_vector"]))
def test_reasons_are_those_of_a_loop_over_items(given_: list[dict[str, Any]], vector_of: str) -> None:
    moves = [{"rule": "in_stock", "from": 3, "to": 2}]
    ranked = [
        [
            {"id": key, "score": 0.5, "rank": 7 + at, "popular": at >= row["popular"], "moves": moves[:at]}
            for at, key in enumerate(row["ranked"])
        ]
        for row in given_
    ]
    found = explained(batch_of(given_, vector_of), pa.array(ranked, RANKED))
    found.validate(full=True)
    assert found.type == EXPLAINED
    for row, items in zip(given_, found.to_pylist(), strict=True):
        assert [item["id"] for item in items] == row["ranked"]
        for at, item in enumerate(items):
            reason = item["reason"]
            by_vector = row["has_vector"] and at < row["popular"]
            assert reason["path"] == (vector_of if by_vector else "popular")
            assert (reason["rank"], reason["rules"]) == (7 + at, moves[:at])
            assert (reason["nearest_in_history"] or {}).get("distance") == nearest(row, item["id"])
            if reason["nearest_in_history"]:
                product = reason["nearest_in_history"]["product_code"]
                assert item["id"] in row["similar"][product][0]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(rows, max_size=4))
def test_without_rules_the_rank_is_the_place(given_: list[dict[str, Any]]) -> None:
    ranked = pa.array([[{"id": key, "score": 0.5} for key in row["ranked"]] for row in given_], CANDIDATES)
    for row, items in zip(given_, explained(batch_of(given_, "user_tower"), ranked).to_pylist(), strict=True):
        reasons = [item["reason"] for item in items]
        assert [(r["rank"], r["rules"]) for r in reasons] == [(n + 1, []) for n in range(len(items))]
        assert {r["path"] for r in reasons} <= {"user_tower" if row["has_vector"] else "popular"}


def scored() -> pa.RecordBatch:
    """One event as it comes from the search."""
    row = {
        "source": "file:a",
        "after": 0,
        "position": 9,
        "arrival": TIME,
        "payload": b"{}",
        "event_id": "e1",
        "event_time": TIME,
        "fields": b'{"customer_number":103}',
        "customerNumber": 103,
        "history": [{"product": "P1", "in_cart": True}],
        "known": True,
        "similar": [{"product": "P1", "items": [{"id": "P3", "distance": 0.5}, {"id": "P4", "distance": 2}]}],
        "user_vector": [0.5, 0.5],
        "candidates": [{"id": f"P{number}", "score": 1 - number / 8} for number in range(5)],
    }
    schema = event_schema(CLASSICMODELS)
    for name, kind in (
        ("known", pa.bool_()),
        ("similar", SIMILAR),
        ("user_vector", pa.list_(pa.float32(), 2)),
        ("candidates", CANDIDATES),
    ):
        schema = schema.append(pa.field(name, kind))
    batch = pa.RecordBatch.from_pylist([row], schema=schema)
    return batch.replace_schema_metadata({RELEASE_ID: "r1", VECTOR_OF: "user_tower"})


NEAR = {"P3": {"product_code": "P1", "distance": 0.5}, "P4": {"product_code": "P1", "distance": 2.0}}
EXPECTED = [
    {
        "id": key,
        "score": score,
        "reason": {"path": "user_tower", "rank": rank, "rules": [], "nearest_in_history": NEAR.get(key)},
    }
    for rank, key, score in ((1, "P0", 1.0), (2, "P2", 0.75), (3, "P3", 0.625), (4, "P4", 0.5))
]


def test_reasons_stand_in_lines_in_columns_and_in_the_serving_table() -> None:
    ranked = recommend(scored(), 5, explain=True)
    lines = format_records(ranked).column("line")
    assert json.loads(lines[0].as_py())["recommended_items"] == EXPECTED
    (served,) = serving_rows(ranked, CLASSICMODELS).column("recommended_items").to_pylist()
    assert json.loads(served) == EXPECTED
    form = SegmentFormat("parquet", record_schema(CLASSICMODELS, explain=True))
    data, _ = write_segment(form, "recommendations/hour=07", lines)
    (row,) = pq.read_table(pa.BufferReader(data)).to_pylist()
    assert row["recommended_items"] == EXPECTED
    assert row[OTHER_FIELDS] is None


def test_without_reasons_a_record_is_what_it_was() -> None:
    (line,) = format_records(recommend(scored(), 5)).column("line").to_pylist()
    plain = [{"id": item["id"], "score": item["score"]} for item in EXPECTED]
    assert json.loads(line)["recommended_items"] == plain
    assert record_schema(CLASSICMODELS).field("recommended_items").type == CANDIDATES


def test_similar_items_are_shown_as_rules_leave_them_and_the_nearest_is_of_all() -> None:
    left = pa.array([[{"product": "P1", "items": [{"id": "P4", "distance": 2}]}]], SIMILAR)
    batch = recommend(scored().append_column(RULED_SIMILAR, left), 5, explain=True)
    assert batch.column("similar_items").equals(left)
    assert batch.column("recommended_items").to_pylist() == [EXPECTED]
    assert RULED_SIMILAR not in batch.schema.names
