"""The serving tables on a real PostgreSQL: the newest wins, repetition and outages change nothing."""

import datetime as dt
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.serving import ServingRow

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def ask(uri: str, statement: str) -> list[tuple[Any, ...]]:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
    connection.close()
    return rows


def row(customer: str, event: str, minutes: int = 0, processed: int = 0, release: str = "r") -> ServingRow:
    when = NOON + dt.timedelta(minutes=minutes)
    return ServingRow(
        customer, event, when, NOON + dt.timedelta(seconds=processed), release, "popular", "[]", "[]"
    )


def known(store: ReleaseStore, *customers: str) -> list[str]:
    found: list[str] = store.lookup(
        "first", pa.array([], pa.string()), pa.array(customers)
    ).customers.to_pylist()
    return found


def test_the_newest_recommendations_win_in_any_order_and_repetition(
    store: ReleaseStore, database: str
) -> None:
    rows = [
        row("7", "é", 5), row("7", "z", 5), row("7", "a", 4, processed=99), row("8", "a", 1),
        row("8", "a", 1, processed=1), row("9", "b", -3),
    ]  # fmt: skip
    rng = np.random.default_rng(3)
    for _ in range(10):
        ask(database, "TRUNCATE beamrec.recommendations_latest")
        for batch in np.array_split(rng.permutation(len(rows)), 3):
            store.upsert_latest([rows[i] for i in batch])
        assert store.upsert_latest(rows) == 0
        latest = ask(
            database,
            "SELECT customer_id, event_id, processed_at FROM beamrec.recommendations_latest ORDER BY 1",
        )
        second = dt.timedelta(seconds=1)
        assert latest == [("7", "é", NOON), ("8", "a", NOON + second), ("9", "b", NOON)]
    assert store.upsert_latest([]) == 0


def test_the_log_holds_each_event_once(store: ReleaseStore, database: str) -> None:
    assert store.append_log([row("7", "a"), row("7", "a", processed=1), row("8", "b")]) == 2
    assert store.append_log([row("7", "a"), row("9", "c")]) == 1
    assert ask(database, "SELECT count(*) FROM beamrec.recommendations_log") == [(3,)]


def test_a_store_survives_pickling_and_a_restart_of_the_server(
    server: Path, store: ReleaseStore, make_release: Callable[..., Any]
) -> None:
    store.load(make_release("first"))
    copy: ReleaseStore = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert known(copy, "100") == ["100"]
    assert embedded.stop_server(server)
    embedded.ensure_running(server)
    assert known(copy, "100") == ["100"]
    assert store.upsert_latest([row("7", "a")]) == 1
    copy.close()


def test_a_patient_store_waits_an_outage_out(
    server: Path, store: ReleaseStore, make_release: Callable[..., Any]
) -> None:
    store.load(make_release("first"))
    uri = embedded.ensure_running(server).uri  # a plain URI: nothing starts the server behind our back
    patient, hasty = ReleaseStore(uri, patient=True), ReleaseStore(uri)
    assert hasty.active() is None
    embedded.stop_server(server)
    threading.Timer(1.0, lambda: embedded.ensure_running(server)).start()
    with pytest.raises(UnavailableError, match="no connection"):
        hasty.active()
    assert known(patient, "100", "1") == ["100"]
    patient.close()
