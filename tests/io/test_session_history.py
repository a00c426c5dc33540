"""Single clicks: each is given the last ones of its session, the same on every replay; a real database."""

import dataclasses
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import orjson
import psycopg2
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io import embedded
from beamrec.io.postgres import Database, connect
from beamrec.io.session_history import (
    Click,
    SessionHistory,
    _Clicks,
    add_history,
    check_clicks,
    check_history,
    clicks_of,
    keep_clicks,
    remove_old_clicks,
)
from beamrec.schemas.errors import BeamrecError, RefusedError
from beamrec.schemas.events import RAW_EVENTS
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.parse import parse_events

if TYPE_CHECKING:
    from postgresql_fixtures import PostgreSQL

SHOP = dataclasses.replace(CLASSICMODELS, events=dataclasses.replace(CLASSICMODELS.events, shape="click"))
Histories = dict[tuple[str, str], list[tuple[str, bool]]]


@pytest.fixture
def keep(database: str) -> Callable[..., Histories]:
    """`keep(clicks, length)`, each call a transaction of its own."""
    patient = Database(database, patient=True)
    patient.transaction(check_clicks)

    def keep(clicks: list[Click], length: int = 3) -> Histories:
        return patient.transaction(lambda cursor: keep_clicks(cursor, clicks, length))

    return keep


def click(session: str, number: int, at: int | None = None, in_cart: bool = False) -> Click:
    return Click(
        session, f"{session}-{number}", (number if at is None else at) * 1_000_000, f"P{number}", in_cart
    )


def products(histories: Histories) -> dict[str, list[str]]:
    return {event_id: [product for product, _ in before] for (_, event_id), before in histories.items()}


def test_a_click_is_given_the_last_ones_of_its_session_oldest_first(keep: Callable[..., Histories]) -> None:
    found = keep([click("a", 2), click("a", 1, in_cart=True), click("b", 1), click("a", 3)])
    assert found["a", "a-3"] == [("P1", True), ("P2", False)]
    assert products(found) == {"a-1": [], "a-2": ["P1"], "a-3": ["P1", "P2"], "b-1": []}
    assert products(keep([click("a", n) for n in range(4, 7)])) == {
        "a-4": ["P1", "P2", "P3"],
        "a-5": ["P2", "P3", "P4"],
        "a-6": ["P3", "P4", "P5"],
    }


def test_a_replay_is_given_the_same_whatever_came_between(keep: Callable[..., Histories]) -> None:
    clicks = [click("a", n) for n in (1, 3, 5)]
    first = keep(clicks)
    late = keep([click("a", 2), click("a", 4)])
    assert products(late) == {"a-2": ["P1"], "a-4": ["P1", "P2", "P3"]}
    assert keep(clicks) == first
    assert keep([click("a", 4), *clicks, click("a", 2)]) == {**first, **late}
    assert products(keep([click("a", 6), click("a", 5)])) == {"a-5": ["P1", "P3"], "a-6": ["P3", "P4", "P5"]}


def test_clicks_of_one_moment_are_ordered_by_their_ids(keep: Callable[..., Histories]) -> None:
    found = keep([click("a", n, at=7) for n in (2, 1)])
    assert products(found) == {"a-1": [], "a-2": ["P1"]}
    assert products(keep([click("a", 3, at=7)])) == {"a-3": ["P1", "P2"]}


def test_the_first_of_one_id_counts(keep: Callable[..., Histories]) -> None:
    twice = dataclasses.replace(click("a", 1), product="other")
    assert products(keep([click("a", 1), twice, click("a", 2)])) == {"a-1": [], "a-2": ["P1"]}


@pytest.mark.parametrize("seed", range(3))
def test_histories_are_those_of_a_plain_answer(keep: Callable[..., Histories], seed: int) -> None:
    draw, length = random.Random(seed), 4
    clicks = [click(draw.choice("xyz"), n, at=draw.randrange(60)) for n in range(150)]
    kept: list[Click] = []
    while clicks:
        batch, clicks = clicks[: (size := draw.randrange(1, 30))], clicks[size:]
        again = draw.sample(kept, min(len(kept), 3))
        known = sorted([*kept, *batch], key=lambda c: (c.event_time_us, c.event_id))
        found = keep([*batch, *again], length)
        for c in batch:
            before = [o for o in known[: known.index(c)] if o.session == c.session]
            assert found[c.session, c.event_id] == [(o.product, o.in_cart) for o in before[-length:]]
        kept += batch


def test_batches_at_once_neither_deadlock_nor_lose_a_click(
    keep: Callable[..., Histories], database: str
) -> None:
    failures: list[Exception] = []

    def work(seed: int) -> None:
        clicks = [click(session, n) for session in "abcde" for n in range(40)]
        random.Random(seed).shuffle(clicks)
        try:
            for at in range(0, len(clicks), 25):
                keep(clicks[at : at + 25])
        except (psycopg2.Error, BeamrecError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert query(database, "SELECT count(*), count(DISTINCT event_id) FROM beamrec.session_clicks") == (
        200,
        200,
    )


def query(uri: str, statement: str) -> tuple[Any, ...]:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone() if cursor.description else ()
    connection.close()
    return tuple(row)


def test_old_clicks_go_and_a_replay_keeps_one_young(keep: Callable[..., Histories], database: str) -> None:
    keep([click("old", 1), click("old", 2), click("new", 1)])
    query(
        database,
        "UPDATE beamrec.session_clicks SET seen_at = now() - interval '3 hours' WHERE session = 'old'",
    )
    keep([click("old", 2)])
    assert Database(database).transaction(lambda cursor: remove_old_clicks(cursor, 2, 9)) == 1
    assert query(
        database, "SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM beamrec.session_clicks"
    ) == ("new-1 old-2",)


def test_the_table_grows_no_further_than_it_is_kept_and_a_backlog_goes(database: str) -> None:
    clicks = _Clicks(database, keep_hours=1)
    backlog = [click("old", n) for n in range(3_000)]
    Database(database).transaction(lambda cursor: keep_clicks(cursor, backlog, 0))
    query(database, "UPDATE beamrec.session_clicks SET seen_at = now() - interval '2 hours'")
    held = []
    for batch in range(10):
        clicks.keep([click(f"s{batch}", n) for n in range(500)], 3)
        held += query(database, "SELECT count(*) FROM beamrec.session_clicks")
        # The others age faster than the test can wait.
        query(database, "UPDATE beamrec.session_clicks SET seen_at = now() - interval '2 hours'")
    assert max(held) <= 3_000 + 1_000
    assert held[-1] <= 1_000


def test_an_outage_is_waited_out_and_the_history_survives_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("outage") / "pg"
    embedded.ensure_running(folder)
    try:
        clicks = _Clicks(f"embedded:{folder}", 48)
        clicks.keep([click("a", 1), click("a", 2)], 3)
        embedded.stop_server(folder)
        assert products(clicks.keep([click("a", 3)], 3)) == {"a-3": ["P1", "P2"]}
    finally:
        embedded.stop_server(folder)


def events(*payloads: dict[str, Any]) -> pa.RecordBatch:
    now = datetime(2026, 11, 22, 7, 30, tzinfo=UTC)
    rows = [
        {"source": "file:a", "after": i, "position": i + 1, "arrival": now, "payload": orjson.dumps(payload)}
        for i, payload in enumerate(payloads)
    ]
    parsed, dead = parse_events(pa.RecordBatch.from_pylist(rows, schema=RAW_EVENTS), SHOP)
    assert dead.num_rows == 0
    return parsed


BATCH = (
    {"session_id": "s", "event_id": "1", "product_code": "A", "in_shopping_cart": True},
    {"session_id": "s", "event_id": "2"},
    {"event_id": "3", "product_code": "B"},
    {"session_id": "s", "event_id": "4", "product_code": "A"},
)


def test_history_holds_the_earlier_clicks_and_then_the_click_itself() -> None:
    batch = events(*BATCH)
    assert [c.event_id for c in clicks_of(batch)] == ["1", "4"]
    for part in (batch, batch.slice(3), batch.slice(0, 0)):
        found = add_history(part, {("s", "4"): [("A", True), ("C", False)]})
        found.validate(full=True)
        assert found.schema.equals(batch.schema)
    assert [[e["product"] for e in h] for h in add_history(batch, {("s", "4"): [("A", True), ("C", False)]})
        .column("history").to_pylist()] == [["A"], [], ["B"], ["A", "C", "A"]]  # fmt: skip


def test_the_transform_is_the_functions(database: str) -> None:
    with TestPipeline() as pipeline:
        found = pipeline | beam.Create([events(*BATCH)]) | SessionHistory(database, length=5)
        histories = found | beam.FlatMap(
            lambda b: [[(e["product"], e["in_cart"]) for e in h] for h in b.column("history").to_pylist()]
        )
        assert_that(histories, equal_to([[("A", True)], [], [("B", False)], [("A", True), ("A", False)]]))


def test_a_user_without_the_rights_is_told_what_is_missing(
    postgresql: "PostgreSQL", source_password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    postgresql.create_database("clicks")
    postgresql.execute("CREATE EXTENSION vector", database="clicks")
    uri = postgresql.uri("clicks", "reader")
    with pytest.raises(RefusedError, match="GRANT CREATE ON DATABASE"):
        check_history(uri)
    check_history(postgresql.uri("clicks"))
    postgresql.execute(
        "SET ROLE shop",
        "GRANT USAGE ON SCHEMA beamrec TO reader",
        "GRANT SELECT, INSERT ON beamrec.session_clicks TO reader",
        database="clicks",
    )
    with pytest.raises(RefusedError, match=r"GRANT UPDATE, DELETE ON \S+ TO reader"):
        check_history(uri)
    with pytest.raises(RefusedError, match="GRANT UPDATE, DELETE"):
        _Clicks(uri, 48)  # a worker waits outages out, and this is none
    postgresql.execute(
        "SET ROLE shop", "GRANT UPDATE, DELETE ON beamrec.session_clicks TO reader", database="clicks"
    )
    assert products(_Clicks(uri, 48).keep([click("a", 1), click("a", 2)], 3)) == {"a-1": [], "a-2": ["P1"]}
