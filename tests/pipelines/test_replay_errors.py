"""Dead letters are replayed into the folder that they came from, each once, and the account stays whole."""

import collections
import datetime as dt
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.dead_letters import Wanted
from beamrec.io.lease import Lease
from beamrec.io.ledger import account
from beamrec.io.replays import Chosen, choose, keep
from beamrec.io.shard_log import finish_publications
from beamrec.io.store import LocalStore, open_store
from beamrec.pipelines import replay, streaming_recommend
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError

SHOP = """
name = "classicmodels"

[customers]
name = "customers"
key = "customerNumber"
key_type = "int"
features = [
  {{ column = "city", event_field = "city" }},
  {{ column = "state" }},
  {{ column = "postalCode" }},
  {{ column = "country", event_field = "country" }},
  {{ column = "creditLimit", kind = "number", event_field = "credit_limit" }},
]

[products]
name = "products"
key = "productCode"
key_type = "string"
features = [
  {{ column = "productLine" }},
  {{ column = "productScale" }},
  {{ column = "quantityInStock", kind = "number" }},
  {{ column = "buyPrice", kind = "number" }},
  {{ column = "MSRP", kind = "number" }},
]

[ratings]
name = "ratings"
customer = "customerNumber"
product = "productCode"
rating = "productRating"

[events]
event_time = "{event_time}"
"""
NOW = dt.datetime.now(dt.UTC)
THEN = NOW - dt.timedelta(hours=5)


def shop(folder: Path, event_time: str) -> str:
    """`--shop` of classicmodels, whose events have their time in a field of that name."""
    path = folder / f"{event_time}.toml"
    path.write_text(SHOP.format(event_time=event_time))
    return f"--shop={path}"


def event(event_id: str | None, **more: Any) -> bytes:
    base = {"customer_number": 103, "city": "Nantes", "country": "France", "browse_history": []}
    return json.dumps(base | more | ({"event_id": event_id} if event_id else {})).encode()


# `ts` is a number, and the shop was told at first that it is the time.
GOOD = [event(f"good{n}") for n in range(20)]
MENDED = [event(f"bad{n}", ts=1.7e9 + n, when=THEN.isoformat()) for n in range(30)]
NAMELESS = [event(None, ts=1, when=THEN.isoformat(), n=n) for n in range(4)]
HOPELESS = [b"no event", b"[1]", b"\xff\x00\xfe", b'"text"', b"{"]
OLD = [event(f"old{n}", ts=THEN.isoformat(), when=THEN.isoformat()) for n in range(3)]
AGAIN = [event("bad3"), event("bad7")]
ALL = [*GOOD, *MENDED, *NAMELESS, *HOPELESS, *OLD]


class Folder:
    """An input and an output folder, on which `stream` and `replay` run in this process."""

    def __init__(self, root: Path, home: Path, output: str = "") -> None:
        self.input, self.output = root / "in", root / "out"
        self.input.mkdir(exist_ok=True)
        self._uri = output or str(self.output)
        self.home, self._root = home, root

    def write(self, name: str, lines: list[bytes]) -> None:
        """An event file."""
        (self.input / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))

    def stream(self, event_time: str, *options: str) -> dict[str, Any]:
        """`beamrec stream` until it is idle, of a shop whose time is in that field."""
        argv = [f"--input={self.input}", f"--output={self._uri}", "--stop-when-idle=1", "--runner=direct"]
        return streaming_recommend.run(
            [*argv, shop(self._root, event_time), *options], Console(home=self.home)
        )

    def replay(self, *options: str, of: str = "", event_time: str = "when") -> dict[str, Any]:
        """`beamrec replay --errors` of the folder or of what is below it."""
        argv = [f"--errors={self._uri}{of}", shop(self._root, event_time), "--runner=direct"]
        return replay.run([*argv, *options], Console(home=self.home))

    def visible(self) -> list[tuple[str, dict[str, Any]]]:
        """(hour folder, record) of every recommendation."""
        return self._lines("recommendations")

    def errors(self) -> list[dict[str, Any]]:
        """Every dead letter."""
        return [record for _, record in self._lines("errors")]

    def _lines(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        return [
            (str(path.parent.relative_to(self.output / folder)), json.loads(line))
            for path in sorted((self.output / folder).rglob("*.jsonl"))
            for line in path.read_bytes().splitlines()
        ]


@pytest.fixture(scope="module")
def streamed(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A shop that had the wrong time field; two of its dead letters were sent again in another form."""
    folder = Folder(tmp_path_factory.mktemp("streamed"), trained.home)
    folder.write("a", ALL)
    folder.write("b", AGAIN)
    result = folder.stream("ts")
    assert (result["in"], result["out"], result["dead_letters"], result["expired"]) == (64, 22, 39, 3)
    return folder


@pytest.fixture
def broken(streamed: Folder, tmp_path: Path) -> Folder:
    """That shop's output folder, for one test."""
    shutil.copytree(streamed.output, tmp_path / "out")
    folder = Folder(tmp_path, streamed.home)
    folder.input = streamed.input
    return folder


def whole(job: Folder) -> collections.Counter[str]:
    """Checks the account against the files; returns how many events have which fate."""
    found = account(LocalStore(job.output))
    assert found.reconciled, found
    letters = collections.Counter(
        "expired" if letter["stage"] == "expired" else "dead_letter" for letter in job.errors()
    )
    visible = len(job.visible())
    assert visible == len({record["event_id"] for _, record in job.visible()}) == found.counts.out
    replaced = collections.Counter[str]()
    for key, count in found.replays.items():
        replaced[key.partition("/")[0]] += count
    assert found.counts.dead_letters == letters["dead_letter"] - replaced["dead_letter"]
    assert found.counts.expired == letters["expired"] - replaced["expired"]
    assert found.counts.records_in == sum(
        (found.counts.out, found.counts.dead_letters, found.counts.duplicates, found.counts.expired)
    )
    counts = found.counts
    return collections.Counter(
        read=counts.records_in,
        visible=counts.out,
        dead=counts.dead_letters,
        duplicate=counts.duplicates,
        expired=counts.expired,
    )


def test_what_was_mended_becomes_visible_in_its_hour_and_the_account_holds(
    broken: Folder,
) -> None:
    before = {letter["payload"]: letter for letter in broken.errors()}
    dry = broken.replay("--dry-run")
    assert (dry["letters"], dry["good"]) == (39, 34), dry
    assert {row["error_type"]: (row["good"], row["bad"]) for row in dry["would"]} == {
        "event_time_invalid": (34, {}),
        "json_invalid": (0, {"json_invalid": 5}),
    }
    done = broken.replay()
    assert done["replayed"] == {
        "letters": 39, "visible": 32, "dead_letters": 5, "duplicates": 2, "left": 0, "ever": 39
    }  # fmt: skip
    assert done["mended"] == ["events.event_time"]
    assert done["reconciled"]
    expected = collections.Counter(read=64, visible=54, dead=5, duplicate=2, expired=3)
    assert whole(broken) == expected
    assert {name: done[name] for name in ("in", "out", "dead_letters", "duplicates", "expired")} == {
        "in": 64, "out": 54, "dead_letters": 5, "duplicates": 2, "expired": 3
    }  # fmt: skip
    hour = f"year={THEN:%Y}/month={THEN:%m}/day={THEN:%d}/hour={THEN:%H}"
    mended = [record["event_id"] for found, record in broken.visible() if found == hour]
    assert len(mended) == 28 + 4 + 0
    again = [letter for letter in broken.errors() if letter["attempt"] == 2]
    assert len(again) == 5
    for letter in again:
        first = before[letter["payload"]]
        assert (letter["source"], letter["first_seen"]) == (first["source"], first["first_seen"])

    files = sorted(broken.output.rglob("*.jsonl"))
    second = broken.replay()
    assert (second["replayed"]["letters"], second["replayed"]["ever"]) == (0, 39)
    assert sorted(broken.output.rglob("*.jsonl")) == files
    assert whole(broken) == expected


def test_the_stream_goes_on_with_the_mended_shop_and_not_with_the_old_one(broken: Folder) -> None:
    broken.replay(of="/errors/parse")
    broken.write("c", [event("new", when=THEN.isoformat(), ts=5)])
    with pytest.raises(UsageError, match="event_mapping"):
        broken.stream("ts")
    result = broken.stream("when")
    assert (result["in"], result["out"], result["expired"]) == (65, 54, 4)
    whole(broken)


def test_only_what_is_meant_is_replayed_and_nothing_is_too_late_for_it(broken: Folder) -> None:
    def letters(**options: Any) -> int:
        return int(broken.replay("--dry-run", *options.pop("argv", ()), **options)["letters"])

    days = sorted((broken.output / "errors/parse").glob("year=*/month=*/day=*"))
    assert letters(argv=["--error-type=json_invalid"]) == 5
    assert letters(argv=["--stage=parse", "--stage=expired"]) == 42
    assert letters(argv=[f"--to={NOW.isoformat()}"]) == letters(argv=["--stage=elsewhere"]) == 0
    assert letters(argv=[f"--from={NOW.isoformat()}"]) == 39
    assert sum(letters(of=f"/{day.relative_to(broken.output)}") for day in days) == 39
    assert letters(of="/errors/parse/year=2001") == 0
    with pytest.raises(UsageError, match="errors/parse2: no such folder; below errors/ are expired, parse"):
        letters(of="/errors/parse2")
    files = sorted(broken.output.rglob("*"))
    done = broken.replay(of="/errors/expired")
    assert (done["replayed"]["letters"], done["replayed"]["visible"]) == (3, 3)
    assert whole(broken) == collections.Counter(read=64, visible=25, dead=39, duplicate=0, expired=0)
    placed = {record["event_id"]: hour for hour, record in broken.visible()}
    folder = f"year={THEN:%Y}/month={THEN:%m}/day={THEN:%d}/hour={THEN:%H}"
    assert {placed[f"old{n}"] for n in range(3)} == {folder}
    assert len(files) < len(sorted(broken.output.rglob("*")))
    rest = broken.replay()
    assert (rest["replayed"]["letters"], rest["replayed"]["ever"], rest["mended"]) == (39, 42, [])
    whole(broken)


def test_a_replay_that_was_killed_when_it_had_chosen_goes_on(broken: Folder) -> None:
    store = LocalStore(broken.output)
    chosen = [
        Chosen(file, tuple(line for line, _ in letters))
        for file, letters in choose(store, Wanted(error_types=frozenset({"event_time_invalid"})))
    ]
    keep(store, chosen)
    assert whole(broken)["dead"] == 39
    done = broken.replay("--error-type=nothing")
    assert (done["replayed"]["letters"], done["replayed"]["visible"], done["replayed"]["left"]) == (34, 32, 0)
    whole(broken)


def test_a_folder_that_a_job_writes_to_is_not_replayed(broken: Folder) -> None:
    with (
        Lease(LocalStore(broken.output), "stream-1"),
        pytest.raises(UsageError, match=r"run stream-1 .* is writing"),
    ):
        broken.replay()
    assert account(LocalStore(broken.output)).replayed == 0


def test_a_replay_in_a_bucket(trained: Any, tmp_path: Path, s3: Any) -> None:
    folder = Folder(tmp_path, trained.home, output=s3.uri)
    folder.write("a", [*GOOD, *MENDED, b"no event"])
    assert folder.stream("ts")["dead_letters"] == 31
    base, _, options = s3.uri.partition("?")
    argv = [f"--errors={base}/errors/parse?{options}", shop(tmp_path, "when"), "--runner=direct"]
    done = replay.run(argv, Console(home=trained.home))
    assert done["replayed"] | {"ever": 0} == {
        "letters": 31, "visible": 30, "dead_letters": 1, "duplicates": 0, "left": 0, "ever": 0
    }  # fmt: skip
    found = account(open_store(s3.uri))
    assert found.reconciled
    assert (found.counts.records_in, found.counts.out, found.counts.dead_letters) == (51, 50, 1)


def test_more_than_may_be_on_its_way_is_replayed_where_nothing_is_written_before_the_end(
    trained: Any, tmp_path: Path, command_line: Callable[..., dict[str, Any]]
) -> None:
    folder = Folder(tmp_path, trained.home)
    # More than one batch of a reader, and the first of them is more than 1 MiB.
    folder.write("a", [event(f"e{n}", ts=n, when=THEN.isoformat(), note="x" * 1100) for n in range(1200)])
    assert folder.stream("ts")["dead_letters"] == 1200
    # In a process of its own, which ends with the test.
    argv = (f"--errors={folder.output}", shop(tmp_path, "when"), "--runner=direct", "--max-in-flight-mb=1")
    done = command_line("replay", *argv, home=trained.home, timeout=900)
    assert done["ok"], done
    assert (done["replayed"]["visible"], done["replayed"]["left"]) == (1200, 0)


def test_an_event_of_a_clock_at_1970_is_not_too_late_for_a_replay(trained: Any, tmp_path: Path) -> None:
    folder = Folder(tmp_path, trained.home)
    folder.write("a", [event("epoch", when="1970-01-01T00:00:01Z"), event("now", when=NOW.isoformat())])
    assert folder.stream("when")["expired"] == 1
    assert folder.replay("--stage=expired")["replayed"]["visible"] == 1
    assert whole(folder) == collections.Counter(read=2, visible=2, dead=0, duplicate=0, expired=0)
    assert [hour for hour, record in folder.visible() if record["event_id"] == "epoch"] == [
        "year=1970/month=01/day=01/hour=00"
    ]
    assert folder.replay("--stage=expired")["replayed"]["letters"] == 0


HOURS = 12 if os.environ.get("BEAMREC_FAULTS") == "short" else 60
KILLS = 2 if os.environ.get("BEAMREC_FAULTS") == "short" else 8


@pytest.mark.faults
def test_a_replay_that_is_killed_again_and_again_gives_each_letter_one_fate(
    stream_job: Callable[..., Any], trained: Any, tmp_path: Path
) -> None:
    folder = Folder(tmp_path, trained.home)
    for hour in range(HOURS):
        written = NOW - dt.timedelta(hours=hour)
        lines = [event(f"e{hour}-{n}", ts=n, when=written.isoformat()) for n in range(40)]
        folder.write(f"{hour}", [*lines, b"no event"])
        os.utime(folder.input / f"{hour}.jsonl", (written.timestamp(), written.timestamp()))
    assert folder.stream("ts")["dead_letters"] == 41 * HOURS
    store, job = LocalStore(folder.output), stream_job(shop(tmp_path, "when"))
    in_the_middle = 0
    for _ in range(KILLS):
        before = commits(store)
        job.start_replay()
        while job.running and commits(store) < before + 3:
            time.sleep(0.002)
        job.kill()
        finish_publications(store)
        found = account(store)
        assert found.reconciled, found
        in_the_middle += 0 < found.waiting < 41 * HOURS
        whole(folder)
    assert in_the_middle > 0, "it was done before it was killed"
    result = job.start_replay().finish()
    assert result["ok"], result
    assert (result["replayed"]["left"], result["replayed"]["ever"]) == (0, 41 * HOURS)
    expected = {"read": 41 * HOURS, "visible": 40 * HOURS, "dead": HOURS, "duplicate": 0, "expired": 0}
    assert whole(folder) == collections.Counter(expected)
    ids = sorted(record["event_id"] for _, record in folder.visible())
    assert ids == sorted(f"e{hour}-{n}" for hour in range(HOURS) for n in range(40))


def commits(store: LocalStore) -> int:
    """How many entries the logs of the shards have."""
    return sum(1 for _ in (store.root / "_ledger" / "fates").glob("*/*.arrow"))
