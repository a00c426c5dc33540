"""Releases change while the job runs: no restart, no lost event, each list is of the release it names."""

import collections
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_neighbours import nearest_of
from beamrec.model.embeddings import read_embeddings
from beamrec.model.handler import ServedRelease
from beamrec.model.preprocessing import FeatureSpec
from beamrec.model.release import ITEM_EMBEDDINGS
from beamrec.schemas.events import RAW_EVENTS
from beamrec.schemas.shop import CLASSICMODELS as SHOP
from beamrec.transforms.features import build_features
from beamrec.transforms.parse import parse_events

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
MOVES = 4 if SHORT else 20
ITEMS = 5


class Shoppers(threading.Thread):
    """Appends events of known and unknown customers at a steady rate until told to stop."""

    def __init__(self, folder: Path, products: list[str]) -> None:
        super().__init__(daemon=True)
        self._path, self._products, self._random = folder / "events.jsonl", products, random.Random(3)
        self._stopped = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            with open(self._path, "ab") as file:
                file.write(json.dumps(self._event()).encode() + b"\n")
            self.sent += 1

    def _event(self) -> dict[str, Any]:
        viewed = self._random.sample(self._products, self._random.randrange(4))
        return {
            "event_id": f"e{self.sent}",
            "session_id": f"s{self.sent}",
            "customer_number": self._random.choice([103, 112, 999_999, None]),
            "city": self._random.choice(["Nantes", "nowhere", None]),
            "country": self._random.choice(["France", None]),
            "credit_limit": self._random.choice([21_000, -5, None]),
            "browse_history": [{"product_code": p, "quantity": 1, "in_shopping_cart": True} for p in viewed],
        }

    def stop(self) -> None:
        self._stopped.set()
        self.join()


class Alone:
    """What a release gives when it is asked by itself, without store, stream or batches."""

    def __init__(self, folder: Path, checksum: str) -> None:
        self._served = ServedRelease(folder, checksum, FeatureSpec.from_shop(SHOP))
        manifest = self._served.manifest
        self._ids, self._items = read_embeddings(folder / ITEM_EMBEDDINGS, manifest.dim)
        self._places = {key: place for place, key in enumerate(self._ids)}
        self._operator = manifest.distance

    def check(self, records: list[dict[str, Any]]) -> None:
        events = build_features(_events(records), SHOP.customers.key, SHOP.user_features)
        for record, vector in zip(records, self._served.vectors(events), strict=True):
            self._check_one(record, vector)

    def _check_one(self, record: dict[str, Any], vector: Any) -> None:
        viewed = {entry["product_code"] for entry in record["browse_history"]}
        self._check_recommended(record, viewed, vector)
        known = list(dict.fromkeys(entry["product_code"] for entry in record["browse_history"]))
        assert [entry["product_code"] for entry in record["similar_items"]] == known
        for entry in record["similar_items"]:
            rows = np.array([self._places[entry["product_code"]]])
            near, distances = nearest_of(rows, self._items, self._operator, 20)
            wanted = [
                (self._ids[place], distance)
                for place, distance in zip(near[0], distances[0], strict=True)
                if self._ids[place] not in viewed
            ][:ITEMS]
            assert [item["id"] for item in entry["similar_items"]] == [key for key, _ in wanted]
            np.testing.assert_allclose(
                [item["distance"] for item in entry["similar_items"]], [d for _, d in wanted], rtol=1e-4
            )

    def _check_recommended(self, record: dict[str, Any], viewed: set[str], vector: Any) -> None:
        found = record["recommended_items"]
        assert len(found) == ITEMS
        assert not viewed & {item["id"] for item in found}
        if record["served_by"] == "popular":
            assert not vector.is_valid
            return
        scores = self._items.astype(np.float64) @ np.asarray(vector.as_py())
        rest = sorted(
            (scores[place] for key, place in self._places.items() if key not in viewed), reverse=True
        )
        np.testing.assert_allclose([item["score"] for item in found], rest[:ITEMS], rtol=1e-4, atol=1e-6)
        of_ids = [scores[self._places[item["id"]]] for item in found]
        np.testing.assert_allclose([item["score"] for item in found], of_ids, rtol=1e-4, atol=1e-6)


def _events(records: list[dict[str, Any]]) -> pa.RecordBatch:
    row = {"source": "file:a", "arrival": datetime.now(UTC)}
    rows = [
        {**row, "after": number, "position": number + 1, "payload": json.dumps(record).encode()}
        for number, record in enumerate(records)
    ]
    events, dead = parse_events(pa.RecordBatch.from_pylist(rows, schema=RAW_EVENTS), SHOP)
    assert dead.num_rows == 0
    assert events.column("event_id").to_pylist() == [record["event_id"] for record in records]
    return events


@pytest.fixture(scope="module")
def other(trained: Any, command_line: Callable[..., dict[str, Any]]) -> str:
    """A second release of the same shop, loaded and not active."""
    result = command_line("train", f"--data={trained.home}/lake", "--seed=7", "--epochs=1", home=trained.home)
    assert result["ok"], result
    loaded = command_line("release", "load", result["release"], home=trained.home)
    assert loaded["ok"], loaded
    return str(result["release"])


def wait_for_release(job: Any, release: str, seconds: float = 600) -> None:
    """Until a recommendation of that release is visible."""
    deadline = time.monotonic() + seconds
    while not any(record["release"] == release for _, record in job.visible()):
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.2)


def wait_for_log(home: Path, text: str) -> None:
    """Until the log of the newest job holds it."""
    log = max((home / "runs").glob("stream-*/log"))
    deadline = time.monotonic() + 600
    while text not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_every_list_is_of_the_release_that_it_names(
    trained: Any, other: str, stream_job: Callable[..., Any], figures: Callable[..., None]
) -> None:
    store = ReleaseStore(f"embedded:{trained.home}/pg")
    job = stream_job("--window-seconds=1", "--max-delay=0.5")
    shoppers = Shoppers(job.input, store.popular(trained.release, 50))
    shoppers.start()
    try:
        job.start()
        wait_for_release(job, trained.release)
        draw = random.Random(11)
        for move in range(MOVES):
            if move % 3 == 2:
                store.rollback()
            else:
                store.promote((other, trained.release)[move % 2], "test")
            time.sleep(draw.uniform(0.2, 3))
        store.promote(other, "test")
        wait_for_release(job, other)
    finally:
        shoppers.stop()
        store.promote(trained.release, "test")
    job.wait_for(shoppers.sent)  # a drain reads no new file
    assert job.interrupt()["ok"]
    records = [record for _, record in job.visible()]
    assert collections.Counter(r["event_id"] for r in records) == {f"e{n}": 1 for n in range(shoppers.sent)}
    assert {record["release"] for record in records} == {trained.release, other}
    _check_all(store, records)
    figures(
        promotes_and_rollbacks=MOVES,
        events=shoppers.sent,
        lists_of_each_release=dict(collections.Counter(record["release"] for record in records)),
        served_by=dict(collections.Counter(record["served_by"] for record in records)),
    )


def _check_all(store: ReleaseStore, records: list[dict[str, Any]]) -> None:
    of_release: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in records:
        of_release[record["release"]].append(record)
    for release, of_it in of_release.items():
        found = store.release(release)
        Alone(Path(found.uri), found.checksum).check(of_it)


def test_a_release_that_cannot_be_read_leaves_the_old_one_serving(
    trained: Any, other: str, stream_job: Callable[..., Any]
) -> None:
    store = ReleaseStore(f"embedded:{trained.home}/pg")
    folder = Path(store.release(other).uri)
    hidden = folder.with_name(f".{folder.name}")
    job = stream_job("--window-seconds=1", "--max-delay=0.5")
    shoppers = Shoppers(job.input, store.popular(trained.release, 50))
    shoppers.start()
    try:
        job.start()
        wait_for_release(job, trained.release)
        shutil.move(folder, hidden)
        store.promote(other, "test")
        wait_for_log(trained.home, f"release {other} is active but cannot serve here")
        job.wait_for(len(job.visible()) + 100, timeout=600)
        assert {record["release"] for _, record in job.visible()} == {trained.release}
    finally:
        shoppers.stop()
        store.promote(trained.release, "test")
        if hidden.exists():
            shutil.move(hidden, folder)
    job.wait_for(shoppers.sent)
    assert job.interrupt()["ok"]
    assert len(job.visible()) == shoppers.sent
