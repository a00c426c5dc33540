"""What a stream tells of itself while it runs and at its end, and what it must never tell: values of events.

On Prism with a real vector store.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.postgres import connect, resolve_uri

EVENTS, BAD, AGAIN = 300, 7, 50
LATENCIES = {"event_to_serving", "arrival_to_serving", "event_to_file", "arrival_to_file"}
TIMES = {"look_up", "inference", "search", "upsert", "commit"}
CITY, LIMIT = "Zwiebelkuchenstadt", 987654321.25
SECRET = (CITY, str(LIMIT), "street@zwiebel.example")


def events(first: int, count: int) -> bytes:
    """Good events, one a line: each value that is no id is one that can be found again."""
    visitor = {
        "city": CITY,
        "country": f"Land of {CITY}",
        "credit_limit": LIMIT,
        "mail": SECRET[2],
        "browse_history": [{"product_code": "S10_1678", "quantity": "2", "in_shopping_cart": True}],
        "nested": {CITY: [CITY]},
    }
    numbers = range(first, first + count)
    return lines(
        *({"event_id": f"e{n}", "session_id": f"s{n}", "customer_number": n, **visitor} for n in numbers)
    )


def bad_events() -> bytes:
    """Records that are no events, for seven reasons."""
    history = [{"product_code": {CITY: CITY}}]
    return f'{CITY}\n{{"city": "{CITY}\n'.encode() + lines(
        [CITY],
        {"event_id": "b1", "city": [CITY], "browse_history": []},
        {"event_id": "b2", "credit_limit": CITY, "browse_history": []},
        {"event_id": "b3", "browse_history": history},
        {"event_id": "b4", "event_time": CITY, "browse_history": []},
    )


def lines(*records: Any) -> bytes:
    """Records as JSONL."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def give(folder: Path, name: str, data: bytes) -> None:
    """A file appears whole."""
    (folder / f"{name}.tmp").write_bytes(data)
    (folder / f"{name}.tmp").rename(folder / f"{name}.jsonl")


def break_connections(home: Path) -> None:
    """The server ends all connections of the job."""
    with connect(resolve_uri("embedded:", home)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'beamrec' AND pid <> pg_backend_pid()"
        )


def test_a_running_stream_tells_its_rate_latencies_lag_and_release_and_no_value_of_an_event(
    stream_job: Callable[..., Any], trained: Any, command_line: Callable[..., dict[str, Any]]
) -> None:
    job = stream_job("--window-seconds=2", "--max-delay=1", "--debug", "--log-format=json").start()
    give(job.input, "first", events(1, EVENTS) + bad_events())
    job.wait_for(EVENTS)
    break_connections(trained.home)
    give(job.input, "again", events(1, AGAIN))
    metrics = told(lambda: command_line("runs", "show", "last", home=trained.home)["metrics"])
    assert metrics["release"] == trained.release
    assert metrics["watermark_lag_seconds"].keys() == {"0"}
    assert metrics["times_ms"].keys() == TIMES
    assert metrics["events_per_second"] > 0
    result = job.interrupt()
    assert result["ok"], result
    assert (result["in"], result["out"], result["duplicates"]) == (EVENTS + BAD + AGAIN, EVENTS, AGAIN)
    check_metrics(result, trained.release)
    check_silence(job, trained.home / "runs" / result["run"], result)
    shown = [json.loads(line) for line in job.log.read_text().splitlines()]
    assert {line["run"] for line in shown} == {result["run"]}
    assert "DEBUG" in {line["level"] for line in shown}


def told(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The metrics, once all latencies are among them."""
    deadline = time.monotonic() + 120
    while (metrics := ask()).get("latency_ms", {}).keys() != LATENCIES:
        assert time.monotonic() < deadline, metrics
    return metrics


def check_metrics(result: dict[str, Any], release: str) -> None:
    """The figures of the whole run, as far as a retry or Prism cannot change them."""
    told = result["metrics"]
    assert told["release"] == release
    counters = told["counters"]
    # Not less than was read: a reader that is made anew reads again what is on its way.
    assert counters["read"] >= EVENTS + BAD + AGAIN
    assert counters["parse_dead_letters"] >= BAD
    assert counters["release"].keys() == {release}
    assert sum(counters["served_by"].values()) == counters["release"][release] >= EVENTS
    # Not more than got a fate: of two bundles that are the first to send a metric, Prism may forget one.
    assert counters["committed"].keys() == {"visible", "dead_letter", "duplicate"}
    assert 0 < counters["committed"]["visible"] <= EVENTS
    assert 0 < counters["committed"]["dead_letter"] <= BAD
    assert 0 < counters["committed"]["duplicate"] <= AGAIN
    assert result["latency"].keys() == LATENCIES
    assert 0 < result["latency"]["arrival_to_file"]["count"] <= EVENTS
    for one in result["latency"].values():
        assert 0 < one["p50"] <= one["p90"] <= one["p99"]


def check_silence(job: Any, run: Path, result: dict[str, Any]) -> None:
    """No value of an event stands in a log, an error, the run's record, the metrics or the ledger.

    Dead letters hold the exact bytes, and recommendations the event's own fields: they are the data.
    """
    files = [path for path in (*run.rglob("*"), *(job.output / "_ledger").rglob("*")) if path.is_file()]
    files = [path for path in files if path.parent.name != "staged"]  # files of recommendations, on their way
    assert {"log", "run.json"} <= {path.name for path in files}
    found = {str(path): path.read_bytes() for path in [*files, job.log]} | {
        "--json": json.dumps(result).encode()
    }
    for name, data in found.items():
        for secret in forms():
            at = data.find(secret)
            assert at < 0, f"{name}: …{data[max(0, at - 300) : at + 60]!r}"


def forms() -> Iterator[bytes]:
    """The values as they are, and in the middle of something in base64."""
    for value in SECRET:
        yield value.encode()
        for shift in range(3):
            encoded = base64.b64encode(b"-" * shift + value.encode())
            yield encoded[4 : 4 + len(encoded) // 2]


@pytest.mark.faults
def test_a_job_that_fails_for_its_database_says_so_without_a_value(
    stream_job: Callable[..., Any], trained: Any
) -> None:
    job = stream_job("--window-seconds=2", "--max-delay=1", "--debug", "--log-format=json")
    give(job.input, "first", events(1, EVENTS) + bad_events())
    with connect(resolve_uri("embedded:", trained.home)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION beamrec.refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'refused' USING DETAIL = 'Failing row contains ' || NEW; END $$; "
            "CREATE TRIGGER refuse BEFORE INSERT ON beamrec.recommendations_latest "
            "FOR EACH ROW EXECUTE FUNCTION beamrec.refuse()"
        )
    try:
        result = job.start().finish()
    finally:
        with connect(resolve_uri("embedded:", trained.home)) as connection, connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION beamrec.refuse CASCADE")
    assert not result["ok"]
    assert "refused" in result["error"]
    check_silence(job, trained.home / "runs" / result["run"], result)
