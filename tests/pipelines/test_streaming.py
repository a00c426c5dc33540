"""The streaming pipeline end to end on Prism, with events that nobody on this project wrote."""

import contextlib
import csv
import datetime as dt
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.postgres import connect, resolve_uri

KEYS = [
    "session_id",
    "customer_number",
    "city",
    "country",
    "credit_limit",
    "browse_history",
    "recommended_items",
    "similar_items",
    "event_id",
    "event_time",
    "release",
    "served_by",
    "processed_at",
]


@pytest.fixture(scope="module")
def real_home(
    classicmodels: str,
    mariadb: Any,
    command_line: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A home with a release trained on the real data in MariaDB."""
    home = tmp_path_factory.mktemp("real")
    assert command_line(
        "batch", f"--source={mariadb.uri(classicmodels, 'root')}", f"--output={home}/lake", home=home
    )["ok"]
    release = command_line("train", f"--data={home}/lake", home=home)
    assert release["ok"], release
    for verb in ("load", "promote"):
        assert command_line("release", verb, release["release"], home=home)["ok"]
    yield home
    command_line("down", home=home)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def drop(job: Any, path: Path) -> None:
    """A file appears whole, as `mv` makes it appear."""
    partial = job.input / "events.tmp"
    shutil.copyfile(path, partial)
    partial.rename(job.input / path.name)


def test_the_real_events_while_the_job_runs(
    stream_job: Callable[..., Any], real_home: Path, real_data: Path
) -> None:
    sent, products = lines(real_data / "events.jsonl"), products_of(real_home)
    job = stream_job("--window-seconds=2", "--max-delay=1", home=real_home).start()
    time.sleep(1)
    drop(job, real_data / "events.jsonl")
    dropped = time.time()
    arrived = dt.datetime.fromtimestamp((job.input / "events.jsonl").stat().st_mtime, dt.UTC)
    job.wait_for(len(sent))
    seconds = time.time() - dropped
    result = job.interrupt()
    assert result["ok"], result
    assert (result["in"], result["out"], result["dead_letters"]) == (200, 200, 0)
    records = dict(zip((r["session_id"] for _, r in job.visible()), job.visible(), strict=True))
    for event in sent:
        hour, record = records[event["session_id"]]
        check_record(event, record, products)
        assert hour == f"year={arrived:%Y}/month={arrived:%m}/day={arrived:%d}/hour={arrived:%H}"
    served = [record["served_by"] for _, record in records.values()]
    known = set(customers_of(real_home))
    assert [r["served_by"] == "known_customer" for _, r in records.values()] == [
        r["customer_number"] in known for _, r in records.values()
    ]
    assert served.count("cold_customer") > 100
    print(f"{seconds:.1f} s from the drop to the last record, process start included")


def test_the_real_events_from_kinesis_to_files_serving_table_and_kinesis(
    kinesis: Any, stream_job: Callable[..., Any], real_home: Path, real_data: Path
) -> None:
    sent, products = lines(real_data / "events.jsonl"), products_of(real_home)
    out = kinesis.another()
    job = stream_job(
        f"--input={kinesis.uri()}", f"--also={out.uri()}", "--window-seconds=2", "--splits=2", home=real_home
    ).start()
    kinesis.put(*(real_data / "events.jsonl").read_bytes().splitlines())
    job.wait_for(len(sent))
    result = job.interrupt()
    assert result["ok"], result
    assert (result["in"], result["out"], result["dead_letters"]) == (200, 200, 0)
    records = {record["session_id"]: record for _, record in job.visible()}
    assert len(records) == len(sent)
    for event in sent:
        check_record(event, records[event["session_id"]], products)
    sent_on = {record["event_id"]: record for record in map(json.loads, out.stored())}
    assert sent_on.keys() == {record["event_id"] for record in records.values()}
    for record in records.values():
        same = {**record, "processed_at": sent_on[record["event_id"]]["processed_at"]}
        assert sent_on[record["event_id"]] == same
    assert serving_table(real_home, list(sent_on)) == newest(list(records.values()))


def newest(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What each customer should be shown: the list of the newest event."""
    ordered = sorted(
        records, key=lambda record: (dt.datetime.fromisoformat(record["event_time"]), record["event_id"])
    )
    return {str(record["customer_number"]): record["recommended_items"] for record in ordered}


def serving_table(home: Path, event_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What customers are shown whose newest event is one of these."""
    with (
        contextlib.closing(connect(resolve_uri("embedded:", home))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "SELECT customer_id, recommended_items FROM beamrec.recommendations_latest "
            "WHERE event_id = ANY(%s)",
            [event_ids],
        )
        return {str(customer): items for customer, items in cursor.fetchall()}


def customers_of(home: Path) -> list[int]:
    return [int(p.name.split("=")[1]) for p in (home / "lake" / "ratings_ml_training").iterdir()]


def products_of(home: Path) -> set[str]:
    """The products that the release knows."""
    (embeddings,) = (home / "releases").glob("*/embeddings/item_embeddings.csv")
    with open(embeddings, newline="") as file:
        return {row["id"] for row in csv.DictReader(file)}


def check_record(event: dict[str, Any], record: dict[str, Any], products: set[str]) -> None:
    """One record against FORMATS."""
    assert list(record) == KEYS
    assert {key: record[key] for key in event} == event
    history = [entry["product_code"] for entry in event["browse_history"]]
    ids = [item["id"] for item in record["recommended_items"]]
    scores = [item["score"] for item in record["recommended_items"]]
    assert len(ids) == len(set(ids)) == 5
    assert not set(ids) & set(history)
    assert scores == sorted(scores, reverse=True)
    cart = {e["product_code"] for e in event["browse_history"] if e["in_shopping_cart"]} or set(history)
    similar = [entry["product_code"] for entry in record["similar_items"]]
    assert similar == [p for p in dict.fromkeys(history) if p in cart & products]
    for entry in record["similar_items"]:
        distances = [item["distance"] for item in entry["similar_items"]]
        assert len(distances) == 5
        assert distances == sorted(distances)
        assert not {item["id"] for item in entry["similar_items"]} & set(history)
    for name in ("event_time", "processed_at"):
        assert dt.datetime.fromisoformat(record[name]).tzinfo is not None


def test_the_course_shape(stream_job: Callable[..., Any], real_home: Path, real_data: Path) -> None:
    example = json.loads((real_data / "recommendation-example.json").read_text())
    job = stream_job("--output-shape=course", "--partition-style=plain", home=real_home)
    drop(job, real_data / "events.jsonl")
    assert job.start("--stop-when-idle=3").finish()["out"] == 200
    for folder, record in job.visible():
        assert shape(record) == shape(example)
        assert re.fullmatch(r"\d{4}/\d\d/\d\d/\d\d", folder)
        scores = [item["score"] for item in record["recommended_items"]]
        assert scores == sorted(scores, reverse=True)
        distances = [item["distance"] for item in record["similar_items"]["similar_items"]]
        assert distances == sorted(distances)
        history = [entry["product_code"] for entry in record["browse_history"]]
        assert record["similar_items"]["product_code"] in history


def shape(value: Any) -> Any:
    """Keys in order and nesting; lists by their first entry, numbers alike."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def test_dirty_events_are_accounted_one_by_one(
    stream_job: Callable[..., Any], trained: Any, command_line: Callable[..., dict[str, Any]]
) -> None:
    job = stream_job()
    generated = command_line(
        "generate",
        "events",
        f"--source={trained.source}",
        f"--output={job.input}",
        "--events=3000",
        home=trained.home,
    )
    assert generated["ok"], generated
    sent = []
    for line in Path(generated["paths"]["events"]).read_bytes().splitlines():
        try:
            sent.append(json.loads(line))
        except ValueError:
            continue
    result = job.start("--stop-when-idle=2").finish()
    assert result["ok"], result
    ids = [event["event_id"] for event in sent if isinstance(event, dict) and "event_id" in event]
    assert result["in"] == 3000
    assert result["duplicates"] == len(ids) - len(set(ids)) > 0
    assert result["expired"] == len([e for e in job.errors() if e["stage"] == "expired"]) > 0
    assert result["dead_letters"] == len([e for e in job.errors() if e["stage"] == "parse"]) > 0
    rows = job.visible()
    assert result["out"] == len(rows) == len({record["event_id"] for _, record in rows})
    for hour, record in rows:
        when = dt.datetime.fromisoformat(record["event_time"])
        assert hour == f"year={when:%Y}/month={when:%m}/day={when:%d}/hour={when:%H}"
    again = job.start("--stop-when-idle=1").finish()
    assert {k: again[k] for k in ("in", "out", "duplicates")} == {
        k: result[k] for k in ("in", "out", "duplicates")
    }
