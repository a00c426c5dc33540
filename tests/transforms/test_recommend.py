"""Ranking: the history is never recommended back, orders hold, and the record says which path served."""

import json
from datetime import UTC, datetime

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.pipelines.job_metrics import read_metrics
from beamrec.schemas.events import CANDIDATES, RELEASE_ID, SERVED, SIMILAR, event_schema
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.recommend import FormatRecords, Recommend, format_records, recommend
from beamrec.transforms.serving import ServingRows, serving_rows

TIME = datetime(2026, 11, 22, 7, 59, 59, 999999, tzinfo=UTC)
ITEMS = [{"id": f"P{i}", "score": 1.0 - i / 10} for i in range(8)]


def entry(product: str, in_cart: bool) -> dict:
    return {"product": product, "in_cart": in_cart}


def similar(product: str) -> dict:
    return {"product": product, "items": [{"id": f"P{i}", "distance": i / 10} for i in range(8)]}


def scored(*rows: dict) -> pa.RecordBatch:
    """Batches as they come from the search."""
    base = {
        "source": "file:a",
        "after": 0,
        "position": 9,
        "arrival": TIME,
        "payload": b"{}",
        "event_id": "e1",
        "event_time": TIME,
        "fields": b'{"customer_number":103}',
        "customerNumber": 103,
        "city": None,
        "country": None,
        "creditLimit": None,
        "history": [entry("P1", True), entry("P2", False), entry("NEW", True)],
        "known": True,
        "similar": [similar("P1"), similar("P2")],
        "user_vector": [0.5, 0.5],
        "candidates": ITEMS,
    }
    schema = event_schema(CLASSICMODELS)
    for name, kind in (
        ("known", pa.bool_()),
        ("similar", SIMILAR),
        ("user_vector", pa.list_(pa.float32(), 2)),
        ("candidates", CANDIDATES),
    ):
        schema = schema.append(pa.field(name, kind))
    batch = pa.RecordBatch.from_pylist([{**base, **row} for row in rows], schema=schema)
    return batch.replace_schema_metadata({RELEASE_ID: "r1"})


def record(shape: str = "full", **row: object) -> dict:
    (line,) = format_records(recommend(scored(row), 5), shape).column("line").to_pylist()
    return json.loads(line)


def test_the_record_has_the_events_fields_first_then_ours():
    keys = list(record())
    assert keys == [
        "customer_number",
        "recommended_items",
        "similar_items",
        "event_id",
        "event_time",
        "release",
        "served_by",
        "processed_at",
    ]


def test_items_of_the_history_are_not_recommended_back_and_five_remain():
    found = record()
    assert [i["id"] for i in found["recommended_items"]] == ["P0", "P3", "P4", "P5", "P6"]
    assert all(
        [i["id"] for i in s["similar_items"]] == ["P0", "P3", "P4", "P5", "P6"]
        for s in found["similar_items"]
    )


def test_similar_items_are_of_the_cart_or_of_what_was_viewed_if_it_is_empty():
    assert [s["product_code"] for s in record()["similar_items"]] == ["P1"]
    viewed = record(history=[entry("P1", False), entry("P2", False)])
    assert [s["product_code"] for s in viewed["similar_items"]] == ["P1", "P2"]
    assert record(history=[], similar=[])["similar_items"] == []


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({}, "known_customer"),
        ({"known": False}, "cold_customer"),
        ({"user_vector": None, "known": False}, "popular"),
    ],
)
def test_served_by_says_the_path(row, path):
    assert record(**row)["served_by"] == path


def test_the_course_record_has_one_similar_object_of_a_seeded_draw():
    found = record("course")
    assert list(found) == ["customer_number", "recommended_items", "similar_items"]
    assert found["similar_items"]["product_code"] in ("P1", "P2")
    assert found == record("course")
    drawn = {record("course", event_id=str(i))["similar_items"]["product_code"] for i in range(50)}
    assert drawn == {"P1", "P2"}
    assert record("course", similar=[])["similar_items"] is None


def test_an_event_without_fields_of_its_own_is_still_an_object():
    assert "release" in record(fields=b"{}")


def test_the_hour_is_that_of_the_event_time_in_either_style():
    batch = recommend(scored({}), 5)
    assert format_records(batch).column("folder")[0].as_py() == (
        "recommendations/year=2026/month=11/day=22/hour=07"
    )
    assert format_records(batch, style="plain").column("folder")[0].as_py() == "recommendations/2026/11/22/07"


def test_serving_rows_leave_out_events_without_a_customer():
    rows = serving_rows(recommend(scored({}, {"customerNumber": None}), 5), CLASSICMODELS)
    assert rows.schema == SERVED
    assert rows.column("customer_id").to_pylist() == ["103"]
    assert rows.column("release").to_pylist() == ["r1"]


def test_a_slice_gives_what_its_rows_give_and_no_rows_give_none():
    batch = scored(
        {}, {"event_id": "e2", "history": []}, {"event_id": "e3", "known": False, "customerNumber": 7}
    )
    ranked = recommend(batch, 3)
    for shape in ("full", "course"):
        whole = format_records(ranked, shape)
        for begin, end in ((0, 0), (1, 2), (1, 3)):
            assert format_records(ranked.slice(begin, end - begin), shape).equals(
                whole.slice(begin, end - begin)
            )
    assert serving_rows(ranked.slice(2), CLASSICMODELS).column("customer_id").to_pylist() == ["7"]
    part = recommend(batch.slice(1), 3).drop_columns(["processed_at"])
    assert part.equals(ranked.slice(1).drop_columns(["processed_at"]))


def test_who_served_and_the_release_are_counted_without_a_serving_table():
    batch = scored({}, {"known": False}, {"user_vector": None}, {"customerNumber": None})
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create([batch]) | Recommend(5) | FormatRecords()
    found = read_metrics(pipeline.result).counters
    assert found["served_by"] == {"known_customer": 2, "cold_customer": 1, "popular": 1}
    assert found["release"] == {"r1": 4}


def test_the_transforms_are_the_functions():
    with TestPipeline() as pipeline:
        ranked = pipeline | beam.Create([scored({}, {"event_id": "e2"})]) | Recommend(5)
        lines = ranked | FormatRecords() | beam.FlatMap(lambda b: b.column("event_id").to_pylist())
        assert_that(lines, equal_to(["e1", "e2"]), "lines")
        rows = ranked | ServingRows(CLASSICMODELS) | beam.Map(lambda b: b.num_rows)
        assert_that(rows, equal_to([2]), "rows")
