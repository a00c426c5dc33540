"""Events sent twice, late and out of order: every record's fate, hour by hour, against a plain answer.

Which records expire depends on when they arrive, so the producer says when that is, by a file's modification
time or a message's timestamp, to the millisecond. All arrived in a past night: the answer follows from the
design alone, whenever the job reads them and however often it is killed.
"""

import abc
import collections
import contextlib
import dataclasses
import datetime as dt
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.ledger import account, missing_segments
from beamrec.io.postgres import connect, resolve_uri
from beamrec.io.shard_log import list_shards, read_entries
from beamrec.io.store import LocalStore

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
OPTIONS = ("--window-seconds=900", "--shards=4")
SECOND = 1_000_000
WINDOW, DELAY, LATENESS, TOLERANCE = 900 * SECOND, 2 * SECOND, 3600 * SECOND, 300 * SECOND
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
BEGIN = (dt.datetime(2025, 2, 28, 21, tzinfo=dt.UTC) - EPOCH) // dt.timedelta(microseconds=1)

# (hour, fate) → what has it: ids of what is visible or a duplicate, places of what was refused
Fates = dict[tuple[str, str], list[str]]


@dataclasses.dataclass(frozen=True)
class Lot:
    """Records that arrive at one moment, in microseconds since the epoch."""

    number: int
    arrival: int
    payloads: list[bytes]


def draw_lots(seed: int, events: int, count: int) -> list[Lot]:
    """Lots over six hours; one event in ten is sent again, and one in fifty is bad."""
    draw = random.Random(seed)
    arrivals = [_arrival(draw, number * 6 * 3600 * SECOND // count) for number in range(count)]
    payloads: list[list[bytes]] = [[] for _ in range(count)]
    for number in range(events):
        lot = number * count // events
        payload = _payload(draw, number, arrivals[lot])
        payloads[lot].append(payload)
        while draw.random() < 0.1:
            later = draw.choice([0, draw.randint(1, 3), draw.randint(count // 8, count // 2)])
            payloads[min(lot + later, count - 1)].append(payload)
    for lines in payloads:
        draw.shuffle(lines)
    return [Lot(number, *both) for number, both in enumerate(zip(arrivals, payloads, strict=True))]


def _arrival(draw: random.Random, after: int) -> int:
    """Two in three at the very moment when a window expires, or a millisecond before it does."""
    window = (BEGIN + after) // WINDOW * WINDOW + DELAY
    return window + draw.choice([0, -1000, draw.randrange(900_000) * 1000])


def _payload(draw: random.Random, number: int, arrival: int) -> bytes:
    behind = draw.choices(
        [draw.randint(-60_000, 60_000), draw.randint(0, 3_600_000), draw.randint(3_600_000, 7_200_000)],
        [6, 3, 1],
    )[0]
    if draw.random() < 0.01:
        behind = draw.choice([-300_000, -300_001])  # as far ahead as is tolerated, and a millisecond more
    event = {
        "event_id": f"e{number}",
        "event_time": (EPOCH + dt.timedelta(microseconds=arrival - 1000 * behind)).isoformat(),
        "session_id": f"s{number % 97}",
        "customer_number": 7_000_000 + draw.randrange(300),
        "city": "Nantes",
        "country": "France",
        "credit_limit": 21000,
        "browse_history": [],
    }
    if draw.random() < 0.01:
        event["customer_number"] = ["103"]
    text = json.dumps(event).encode()
    return text[:-20] if draw.random() < 0.01 else text


class Channel(abc.ABC):
    """What carries lots to the job."""

    @abc.abstractmethod
    def send(self, lot: Lot) -> list[str]:
        """Sends a lot, all of it at once; returns the place of each record in the ledger's terms."""


class Files(Channel):
    """A file for each lot."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, lot: Lot) -> list[str]:
        """See Channel."""
        name, ends = f"{lot.number:04}.jsonl", [0]
        for payload in lot.payloads:
            ends.append(ends[-1] + len(payload) + 1)
        partial = self._folder / f"{name}.tmp"
        partial.write_bytes(b"".join(payload + b"\n" for payload in lot.payloads))
        os.utime(partial, ns=(lot.arrival * 1000, lot.arrival * 1000))
        partial.rename(self._folder / name)
        return [f"file:{name}@{end}" for end in ends[1:]]


class Topic(Channel):
    """Lots by turns to the partitions of a topic."""

    def __init__(self, kafka: Any, topic: str, partitions: int) -> None:
        self._kafka, self._topic, self._ends = kafka, topic, [0] * partitions

    def send(self, lot: Lot) -> list[str]:
        """See Channel."""
        partition = lot.number % len(self._ends)
        self._kafka.send(self._topic, lot.payloads, partition=partition, timestamp=lot.arrival // 1000)
        begin = self._ends[partition]
        self._ends[partition] += len(lot.payloads)
        return [
            f"kafka:{self._topic}/{partition}@{begin + number + 1}" for number in range(len(lot.payloads))
        ]


def plain_answer(sent: Sequence[tuple[str, int, bytes]]) -> Fates:
    """What DESIGN says of records (place, arrival, payload), whatever order they are read in."""
    fates: Fates = collections.defaultdict(list)
    copies: collections.Counter[tuple[str, str]] = collections.Counter()
    for place, arrival, payload in sent:
        event = _event(payload)
        if event is None or event["time"] > arrival + TOLERANCE:
            fates[hour(arrival), "dead_letter"].append(place)
        elif (event["time"] // WINDOW + 1) * WINDOW + LATENESS <= arrival - DELAY:
            fates[hour(arrival), "expired"].append(place)
        else:
            copies[hour(event["time"]), event["event_id"]] += 1
    for (when, name), times in copies.items():
        fates[when, "visible"].append(name)
        fates[when, "duplicate"] += [name] * (times - 1)
    return ordered(fates)


def _event(payload: bytes) -> dict[str, Any] | None:
    """A good event, with its `time` in microseconds."""
    with contextlib.suppress(ValueError):
        event: dict[str, Any] = json.loads(payload)
        if isinstance(event["customer_number"], int):
            since = dt.datetime.fromisoformat(event["event_time"]) - EPOCH
            return event | {"time": since // dt.timedelta(microseconds=1)}
    return None


def hour(micros: int) -> str:
    """The hour's folder."""
    time_ = EPOCH + dt.timedelta(microseconds=micros)
    return f"year={time_:%Y}/month={time_:%m}/day={time_:%d}/hour={time_:%H}"


def ordered(fates: Fates) -> Fates:
    return {key: sorted(names) for key, names in sorted(fates.items()) if names}


class Ledger:
    """The entries of an output folder, gathered while the job runs: it removes those behind its snapshots."""

    def __init__(self, output: Path) -> None:
        self._store, self._next = LocalStore(output), collections.Counter[int]()
        self._fates: Fates = collections.defaultdict(list)

    def gather(self) -> None:
        """Reads what is new."""
        for shard in list_shards(self._store):
            for entry in read_entries(self._store, shard, self._next[shard]):
                self._next[shard] += 1
                for row in entry.rows.to_pylist():
                    refused = row["fate"] in ("dead_letter", "expired")
                    name = f"{row['source']}@{row['position']}" if refused else row["event_id"]
                    at = hour((row["hour"] - EPOCH) // dt.timedelta(microseconds=1))
                    self._fates[at, row["fate"]].append(name)

    def fates(self) -> Fates:
        """What has been gathered."""
        self.gather()
        return ordered(self._fates)


def folders(job: Any) -> Fates:
    """What a reader of the folders sees, who knows nothing of the ledger; duplicates have no line."""
    fates: Fates = collections.defaultdict(list)
    for when, record in job.visible():
        fates[when, "visible"].append(record["event_id"])
    for path in (job.output / "errors").rglob("*.jsonl"):
        stage, when = path.relative_to(job.output / "errors").parent.as_posix().split("/", 1)
        for line in path.read_bytes().splitlines():
            source = json.loads(line)["source"]
            place = f"{source['system']}:{source['name']}@{source['position']}"
            fates[when, "expired" if stage == "expired" else "dead_letter"].append(place)
    return ordered(fates)


class Producer:
    """Sends lots one after another, some earlier than those that arrived before them."""

    def __init__(self, channel: Channel, lots: Sequence[Lot], ledger: Ledger) -> None:
        draw = random.Random(3)
        self._channel, self._ledger = channel, ledger
        self._lots = collections.deque(sorted(lots, key=lambda lot: lot.number + draw.uniform(0, 5)))
        self.sent: list[tuple[str, int, bytes]] = []

    def send(self, count: int, pause_seconds: float = 0) -> None:
        """Sends the next lots."""
        for _ in range(count):
            lot = self._lots.popleft()
            places = self._channel.send(lot)
            self.sent += [
                (place, lot.arrival, payload) for place, payload in zip(places, lot.payloads, strict=True)
            ]
            self._ledger.gather()
            time.sleep(pause_seconds)


def check(job: Any, result: dict[str, Any], ledger: Ledger, sent: list[tuple[str, int, bytes]]) -> None:
    """The folders, the ledger, the account and the serving table against the plain answer."""
    wanted = plain_answer(sent)
    for fate in ("visible", "duplicate", "expired", "dead_letter"):
        assert len({when for when, each in wanted if each == fate}) > 3, f"{fate}: nothing to compare"
    found = ledger.fates()
    for key in sorted({*wanted, *found}):
        assert found.get(key) == wanted.get(key), f"{key} of the ledger"
    assert folders(job) == {key: names for key, names in wanted.items() if key[1] != "duplicate"}
    sums = collections.Counter[str]()
    for (_, fate), names in wanted.items():
        sums[fate] += len(names)
    counted = {name: result[key] for name, key in NAMES.items()}
    assert counted == dict(sums)
    assert result["in"] == len(sent) == sums.total()
    store = LocalStore(job.output)
    assert account(store).reconciled
    assert missing_segments(store) == []
    assert shown(job.home) == newest(sent, wanted)
    events = {event["event_id"]: event for _, _, p in sent if (event := _event(p))}
    for _, record in job.visible():
        event = events[record["event_id"]]
        own = {key: value for key, value in event.items() if key not in ("event_time", "time")}
        assert {key: record[key] for key in own} == own


NAMES = {"visible": "out", "duplicate": "duplicates", "expired": "expired", "dead_letter": "dead_letters"}


def newest(sent: Sequence[tuple[str, int, bytes]], wanted: Fates) -> dict[str, str]:
    """Customer → the newest of its visible events, by time and id."""
    visible = {name for (_, fate), names in wanted.items() if fate == "visible" for name in names}
    good = [event for *_, payload in sent if (event := _event(payload)) and event["event_id"] in visible]
    good.sort(key=lambda event: (event["time"], event["event_id"]))
    return {str(event["customer_number"]): event["event_id"] for event in good}


def shown(home: Path) -> dict[str, str]:
    """The serving table's customers of this test, which no other has."""
    uri = resolve_uri("embedded:", home)
    with contextlib.closing(connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT customer_id, event_id FROM beamrec.recommendations_latest "
            "WHERE customer_id LIKE '7000___'"
        )
        return dict(cursor.fetchall())


@pytest.fixture
def serving(trained: Any) -> None:
    """Takes the rows of the test before out of the serving table."""
    uri = resolve_uri("embedded:", trained.home)
    with contextlib.closing(connect(uri)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM beamrec.recommendations_latest WHERE customer_id LIKE '7000___'")


@pytest.mark.usefixtures("serving")
def test_late_repeated_and_bad_events_have_the_fates_of_a_plain_answer(
    stream_job: Callable[..., Any],
) -> None:
    job = stream_job(*OPTIONS)
    ledger = Ledger(job.output)
    producer = Producer(Files(job.input), draw_lots(1, events=3_000, count=40), ledger)
    producer.send(40)
    result = job.start("--stop-when-idle=2").finish()
    assert result["ok"], result
    check(job, result, ledger, producer.sent)


@pytest.mark.faults
@pytest.mark.usefixtures("serving")
@pytest.mark.parametrize("system", ["kafka"] if SHORT else ["files", "kafka"])
def test_so_they_have_over_kills_and_drains(
    stream_job: Callable[..., Any], request: pytest.FixtureRequest, system: str
) -> None:
    job, draw = stream_job(*OPTIONS), random.Random(4)
    channel: Channel = Files(job.input)
    if system == "kafka":
        kafka = request.getfixturevalue("kafka")
        topic = kafka.create_topic(3, retention_ms="-1")
        job.input, channel = kafka.uri(topic), Topic(kafka, topic, partitions=3)
    lots = draw_lots(2, *((4_000, 60) if SHORT else (20_000, 200)))
    ledger = Ledger(job.output)
    producer = Producer(channel, lots, ledger)
    ends: list[Callable[[], Any]] = [job.kill, job.interrupt] if SHORT else [job.kill, job.interrupt] * 2
    for end in ends:
        some = len(lots) // len(ends) // 2
        producer.send(some)
        seen = len(job.visible())
        job.start().wait_for(seen + 1)
        producer.send(some, pause_seconds=0.1)
        time.sleep(draw.uniform(0, 3))
        drained = end()
        assert drained is None or drained["ok"], drained
    result = job.start("--stop-when-idle=4").finish()
    assert result["ok"], result
    check(job, result, ledger, producer.sent)
