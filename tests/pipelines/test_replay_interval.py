"""A past interval scored again equals what the stream gives with that release, and so does the difference."""

import contextlib
import dataclasses
import datetime as dt
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect, resolve_uri
from beamrec.pipelines import replay, streaming_recommend
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
BEGIN, END = NOW - dt.timedelta(hours=3), NOW - dt.timedelta(minutes=80)
EVENTS = 150
SAME = ("served_by", "release", "event_time", "event_id", "browse_history")


@pytest.fixture(scope="module")
def other(trained: Any, command_line: Callable[..., dict[str, Any]]) -> str:
    """A second release of the same shop, loaded and not active."""
    result = command_line("train", f"--data={trained.home}/lake", "--seed=7", "--epochs=1", home=trained.home)
    assert result["ok"], result
    loaded = command_line("release", "load", result["release"], home=trained.home)
    assert loaded["ok"], loaded
    return str(result["release"])


def events(products: list[str]) -> Iterator[dict[str, Any]]:
    """Of known and unknown customers, some without an id, over the last four hours."""
    draw = random.Random(5)
    for number in range(EVENTS):
        time = NOW - dt.timedelta(seconds=draw.randrange(4 * 3600))
        viewed = draw.sample(products, draw.randrange(4))
        event = {
            "session_id": f"s{number}",
            "customer_number": draw.choice([103, 112, 114, 999_999, None]),
            "city": draw.choice(["Nantes", "nowhere", None]),
            "country": draw.choice(["France", None]),
            "credit_limit": draw.choice([21_000, -5, None]),
            "event_time": time.isoformat(),
            "browse_history": [{"product_code": p, "quantity": 1, "in_shopping_cart": True} for p in viewed],
        }
        yield event | ({"event_id": f"e{number}"} if number % 10 else {})


def run(verb: Any, home: Path, *argv: str) -> dict[str, Any]:
    """A verb in this process."""
    result: dict[str, Any] = verb.run([*argv, "--runner=direct"], Console(home=home))
    return result


def records(output: Path) -> dict[str, dict[str, Any]]:
    """The visible records by the session, of which each event has one of its own."""
    lines = [line for path in output.glob("recommendations/**/*.jsonl") for line in path.open()]
    found = {record["session_id"]: record for record in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def serving_table(home: Path) -> list[Any]:
    with (
        contextlib.closing(connect(resolve_uri("embedded:", home))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT * FROM beamrec.recommendations_latest ORDER BY customer_id")
        return list(cursor.fetchall())


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same lists by the same path; batches of other sizes may differ in a score's last digits."""
    assert {name: found[name] for name in SAME} == {name: expected[name] for name in SAME}
    lists = [
        [record["recommended_items"], *(entry["similar_items"] for entry in record["similar_items"])]
        for record in (found, expected)
    ]
    for ours, theirs in zip(*lists, strict=True):
        assert [item["id"] for item in ours] == [item["id"] for item in theirs]
        numbers = [
            [value for item in each for value in item.values() if value != item["id"]]
            for each in (ours, theirs)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-6)
    assert [e["product_code"] for e in found["similar_items"]] == [
        e["product_code"] for e in expected["similar_items"]
    ]


@dataclasses.dataclass(frozen=True)
class Scored:
    """What the stream itself gave with either release."""

    home: Path
    root: Path
    old: dict[str, dict[str, Any]]
    new: dict[str, dict[str, Any]]
    release: str

    def in_interval(self, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those of the interval."""
        return {
            session: record
            for session, record in found.items()
            if BEGIN <= dt.datetime.fromisoformat(record["event_time"]) < END
        }


@pytest.fixture(scope="module")
def scored(trained: Any, other: str, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The same events through the stream twice, with one release and with the other."""
    root, store = tmp_path_factory.mktemp("interval"), ReleaseStore(f"embedded:{trained.home}/pg")
    (root / "in").mkdir()
    lines = (json.dumps(event) + "\n" for event in events(store.popular(trained.release, 40)))
    (root / "in" / "events.jsonl").write_text("".join(lines))
    options = (f"--input={root}/in", "--stop-when-idle=1", "--allowed-lateness=80000")
    try:
        for name, release in (("old", trained.release), ("new", other)):
            store.promote(release, "test")
            result = run(streaming_recommend, trained.home, f"--output={root}/{name}", *options)
            assert (result["out"], result["expired"]) == (EVENTS, 0)
    finally:
        store.promote(trained.release, "test")
    return Scored(trained.home, root, records(root / "old"), records(root / "new"), other)


def tau_b(old: list[str], new: list[str]) -> float:
    """Kendall's tau-b, pair by pair; what a list lacks is tied behind its end."""
    if old == new:
        return 1.0
    pairs = [
        tuple((x.index(a) if a in x else 9) - (x.index(b) if b in x else 9) for x in (old, new))
        for a, b in itertools.combinations({*old, *new}, 2)
    ]
    signed = [(math.copysign(bool(x), x), math.copysign(bool(y), y)) for x, y in pairs]
    untied = math.prod(sum(bool(pair[side]) for pair in signed) for side in (0, 1))
    return sum(x * y for x, y in signed) / math.sqrt(untied)


def check_difference(found: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    """The numbers once more, in plain Python."""
    assert found["events"] == len(old)
    ids = {
        session: [[item["id"] for item in side[session]["recommended_items"]] for side in (old, new)]
        for session in old
    }
    assert found["changed"] == sum(a != b for a, b in ids.values()) > 0
    shared = [len({*a} & {*b}) / 5 for a, b in ids.values()]
    assert found["overlap@5"] == pytest.approx(sum(shared) / len(shared), abs=1e-6)
    taus = [tau_b(a, b) for a, b in ids.values()]
    assert found["rank_correlation"] == pytest.approx(sum(taus) / len(taus), abs=1e-6)
    paths = [record["served_by"] for record in new.values()]
    counted = {path: sums["events"] for path, sums in found["by_served_by"].items()}
    assert counted == {path: paths.count(path) for path in set(paths)}
    assert found["examples"][0]["overlap@5"] == pytest.approx(min(shared))


def test_recommendations_scored_again_equal_the_streams_with_that_release(scored: Scored) -> None:
    before = serving_table(scored.home)
    argv = (f"--from={BEGIN.isoformat()}", f"--to={END.isoformat()}", f"--release={scored.release}")
    argv = (*argv, f"--recommendations={scored.root}/old", f"--output={scored.root}/again")
    result = run(replay, scored.home, *argv)
    again, old, new = records(scored.root / "again"), *map(scored.in_interval, (scored.old, scored.new))
    assert 10 < len(old) < EVENTS
    assert again.keys() == old.keys() == new.keys()
    for session, record in again.items():
        check_same(record, new[session])
        assert list(record) == list(old[session])
    assert (result["in"], result["out"], result["reconciled"]) == (len(old), len(old), True)
    check_difference(result["difference"], old, new)
    assert serving_table(scored.home) == before
    # It is done: once more only compares.
    files = sorted((scored.root / "again").rglob("*.jsonl"))
    assert run(replay, scored.home, *argv)["difference"] == result["difference"]
    assert sorted((scored.root / "again").rglob("*.jsonl")) == files
    with pytest.raises(UsageError, match="cannot go on with"):
        run(replay, scored.home, *argv[:2], f"--release={scored.old['s1']['release']}", *argv[3:])


def test_the_input_scored_again_equals_the_streams_with_that_release(scored: Scored) -> None:
    written = dt.datetime.fromtimestamp((scored.root / "in" / "events.jsonl").stat().st_mtime, dt.UTC)
    argv = (f"--input={scored.root}/in", f"--release={scored.release}", "--allowed-lateness=80000")
    argv = (*argv, f"--recommendations={scored.root}/old", "--stop-when-idle=1")
    soon = dt.datetime.now(dt.UTC)
    span = (f"--from={(NOW - dt.timedelta(hours=4)).isoformat()}", f"--to={soon.isoformat()}")
    result = run(replay, scored.home, *argv, *span, f"--output={scored.root}/input")
    again = records(scored.root / "input")
    assert again.keys() == scored.new.keys()
    for session, record in again.items():
        check_same(record, scored.new[session])
    check_difference(result["difference"], scored.old, scored.new)
    # What was written at another time is not read.
    span = (span[0], f"--to={(written - dt.timedelta(seconds=1)).isoformat()}")
    assert run(replay, scored.home, *argv, *span, f"--output={scored.root}/none")["in"] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--release=r", "--errors=x"], "either --errors"),
        ([], "either --errors"),
        (["--release=nowhere"], "--from is missing"),
        (["--release=r", "--from=2026-01-01", "--to=2025-01-01"], "after --from"),
        (["--release=r", "--from=2026-01-01", "--to=2999-01-01"], "that is over"),
        (["--release=r", "--from=yesterday", "--to=2026-01-01"], "--from: expected a time"),
        (["--release=nowhere", "--from=2026-01-01", "--to=2026-01-02"], "release nowhere is not loaded"),
        (["--release=r", "--stage=parse"], "--stage does not go with --release"),
        (["--errors=x", "--shards=3"], "--shards does not go with --errors"),
        (["--errors=x"], "is no output folder of `stream`"),
        (["--errors=x", "--from=never"], "--from: expected a time"),
    ],
)
def test_what_cannot_be_replayed_is_refused(scored: Scored, argv: list[str], message: str) -> None:
    more = [f"--recommendations={scored.root}/old", f"--output={scored.root}/x"]
    with pytest.raises(UsageError, match=message):
        run(replay, scored.home, *argv, *(more if any("release" in a for a in argv) else []))
