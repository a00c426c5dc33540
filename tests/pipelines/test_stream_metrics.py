"""What a stream tells of itself while it runs, and at its end, on Prism with a real vector store."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS, BAD = 300, 7
LATENCIES = {"event_to_serving", "arrival_to_serving", "event_to_file", "arrival_to_file"}
TIMES = {"look_up", "inference", "search", "upsert", "commit"}


def events(first: int, count: int) -> bytes:
    """Good events of customers of their own, one a line."""
    visitor = {"city": "Nantes", "country": "France", "credit_limit": 21000, "browse_history": []}
    numbers = range(first, first + count)
    lines = [{"event_id": f"e{n}", "session_id": f"s{n}", "customer_number": n, **visitor} for n in numbers]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def give(folder: Path, name: str, data: bytes) -> None:
    """A file appears whole."""
    (folder / f"{name}.tmp").write_bytes(data)
    (folder / f"{name}.tmp").rename(folder / f"{name}.jsonl")


def show(command_line: Callable[..., dict[str, Any]], home: Path) -> dict[str, Any]:
    """`beamrec runs show last` of the stream."""
    return command_line("runs", "show", "last", home=home)


def test_a_running_stream_tells_its_rate_latencies_lag_and_release(
    stream_job: Callable[..., Any], trained: Any, command_line: Callable[..., dict[str, Any]]
) -> None:
    job = stream_job("--window-seconds=2", "--max-delay=1").start()
    give(job.input, "first", events(1, EVENTS) + b"no event\n" * BAD)
    job.wait_for(EVENTS)
    give(job.input, "again", events(1, 50))
    deadline = time.monotonic() + 60
    while (metrics := show(command_line, trained.home)["metrics"])["latency_ms"].keys() != LATENCIES:
        assert time.monotonic() < deadline, metrics
    assert metrics["release"] == trained.release
    assert metrics["watermark_lag_seconds"].keys() == {"0"}
    assert metrics["times_ms"].keys() == TIMES
    assert metrics["events_per_second"] > 0
    result = job.interrupt()
    assert result["ok"], result
    assert (result["in"], result["out"], result["duplicates"]) == (EVENTS + BAD + 50, EVENTS, 50)
    told = result["metrics"]
    assert told["release"] == trained.release
    counters = told["counters"]
    # Not less than was read: a reader that is made anew reads again what is on its way.
    assert counters["read"] >= EVENTS + BAD + 50
    assert counters["parse_dead_letters"] >= BAD
    assert counters["release"].keys() == {trained.release}
    assert sum(counters["served_by"].values()) == counters["release"][trained.release] >= EVENTS
    # Not more than got a fate: of two bundles that are the first to send a metric, Prism may forget one.
    assert counters["committed"].keys() == {"visible", "dead_letter", "duplicate"}
    assert 0 < counters["committed"]["visible"] <= EVENTS
    assert 0 < counters["committed"]["dead_letter"] <= BAD
    assert 0 < counters["committed"]["duplicate"] <= 50
    assert 0 < result["latency"]["arrival_to_file"]["count"] <= EVENTS
    for one in result["latency"].values():
        assert 0 < one["p50"] <= one["p90"] <= one["p99"]
