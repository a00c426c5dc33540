"""The Kafka source on a real broker: every record once, whatever happens to the broker, the topic or us."""

import datetime as dt
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from beamrec.io import kafka as kafka_source
from beamrec.io import kafka_group, kafka_requests
from beamrec.io.events import SourceOptions
from beamrec.io.ledger import account, request_drain
from beamrec.io.shard_log import ShardLog
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import OUTCOMES

Rows = list[dict[str, Any]]


class Job:
    """An output folder and readers that fill it from a topic."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(root / "out")
        self.readers: list[Any] = []

    def reader(self, uri: str, split: int = 0, **options: Any) -> Any:
        source_options = SourceOptions(str(self.store.root), "run", **options)
        # As a worker gets it.
        sources = pickle.loads(pickle.dumps(kafka_source.open_sources(uri, source_options)))  # noqa: S301
        self.readers.append(sources[split].create_reader(None, None))
        return self.readers[-1]

    def fate(self, rows: Rows) -> None:
        """What the sink does with rows that were read."""
        table = [
            {
                **{name: row[name] for name in ("source", "after", "position")},
                "event_id": f"{row['source']}{row['position']}",
                "fate": "visible",
                "folder": "recommendations",
                "hour": row["arrival"],
                "line": row["payload"],
            }
            for row in rows
        ]
        ShardLog(self.store, 0, 24).commit(pa.Table.from_pylist(table, schema=OUTCOMES))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    for reader in made.readers:
        reader.close()


def read(reader: Any, until: Callable[[Rows], bool], seconds: float = 120) -> Rows:
    """Rows until a condition holds."""
    rows: Rows = []
    deadline = time.monotonic() + seconds
    while not until(rows):
        assert time.monotonic() < deadline, f"{len(rows)} rows so far: {rows[-3:]}"
        if reader.advance():
            rows += reader.get_current().to_pylist()
        else:
            time.sleep(0.01)
    return rows


def all_of(reader: Any) -> Rows:
    """Rows until the broker says that this was all."""
    asked = time.time()
    return read(reader, lambda _: not reader.busy(True) and float(reader.get_watermark()) > asked - 2.1)


def payloads(rows: Rows) -> list[bytes]:
    return [row["payload"] for row in rows]


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(first, first + count)]


def place(row: dict[str, Any]) -> tuple[int, int]:
    return row["after"], row["position"]


def test_records_come_in_order_and_tile_their_partitions(job, kafka):
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(3), partition=0)
    kafka.send(topic, numbers(2, 10), partition=1)
    reader = job.reader(kafka.uri(topic))
    rows = all_of(reader)
    zero, one = ([r for r in rows if r["source"] == f"kafka:{topic}/{p}"] for p in (0, 1))
    assert (payloads(zero), payloads(one)) == (numbers(3), numbers(2, 10))
    assert [place(row) for row in zero] == [(0, 1), (1, 2), (2, 3)]
    assert dict(reader.get_checkpoint_mark().positions) == {f"kafka:{topic}/0": "3", f"kafka:{topic}/1": "2"}
    job.fate(rows)
    assert account(job.store).reconciled


def test_a_restart_leaves_out_what_has_a_fate_and_reads_the_rest_alike(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(10))
    first = all_of(job.reader(kafka.uri(topic)))
    job.fate(first[:3] + first[5:7])
    again = all_of(job.reader(kafka.uri(topic)))
    assert again == first[3:5] + first[7:]
    job.fate(again)
    kafka.send(topic, [b"new"])
    assert payloads(all_of(job.reader(kafka.uri(topic)))) == [b"new"]


def test_an_empty_record_is_one(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, [None, b"", b"1"])
    assert payloads(all_of(job.reader(kafka.uri(topic)))) == [b"", b"", b"1"]


def test_large_records_come_whole_and_in_batches(job, kafka):
    topic = kafka.create_topic(max_message_bytes="9000000")
    producer = kafka.producer(message_max_bytes="9000000")
    for size in (8_000_000, *[1000] * 3000):
        producer.produce(topic, b"x" * size, partition=0)
        producer.poll(0)
    assert producer.flush(60) == 0
    reader = job.reader(kafka.uri(topic))
    sizes: list[int] = []
    while len(sizes) < 3001:
        if reader.advance():
            batch = reader.get_current()
            assert batch.num_rows <= 1000
            sizes += [len(payload) for payload in batch.column("payload").to_pylist()]
    assert sizes == [8_000_000, *[1000] * 3000]


def test_latest_is_resolved_once(job, kafka):
    """Also if nothing was read before the job was killed."""
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    assert all_of(job.reader(kafka.uri(topic, start="latest"))) == []
    kafka.send(topic, [b"while it was down"])
    rows = all_of(job.reader(kafka.uri(topic, start="latest")))
    assert payloads(rows) == [b"while it was down"]
    assert [place(row) for row in rows] == [(0, 4)]
    assert all_of(job.reader(kafka.uri(topic, start="latest"))) == rows
    job.fate(rows)
    assert account(job.store).reconciled


def test_an_interval_is_read_by_the_times_of_its_records(job, kafka):
    topic, begin = kafka.create_topic(2), dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    for minute in range(10):
        stamp = int((begin + dt.timedelta(minutes=minute)).timestamp() * 1000)
        kafka.send(topic, [b"%d" % minute], partition=0, timestamp=stamp)
    start, end = ((begin + dt.timedelta(minutes=m)).isoformat().replace("+00:00", "Z") for m in (2.5, 6.5))
    reader = job.reader(kafka.uri(topic, start=start, end=end))
    rows = read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert payloads(rows) == [b"3", b"4", b"5", b"6"]
    job.fate(rows)
    assert account(job.store).reconciled


def test_a_read_to_the_end_of_now_ends_by_itself(job, kafka):
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(5))
    reader = job.reader(kafka.uri(topic, end="latest"))
    rows = read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert payloads(rows) == numbers(5)
    kafka.send(topic, [b"later"])
    assert not reader.advance()


@pytest.mark.parametrize("bound", ["start", "end"])
def test_a_bound_that_is_no_past_time_is_a_usage_error(bound):
    for text in ("soon", "2026-11-22T12:00:00", "2999-01-01T00:00:00Z"):
        with pytest.raises(UsageError, match=f"--input: {bound}: expected .*latest, a time that has passed"):
            kafka_source.identity(f"kafka://localhost/t?{bound}={text}")


def test_partitions_are_dealt_to_splits_and_new_ones_are_found(job, kafka):
    """A partition that is added is read from its beginning, although the job began at the latest."""
    topic = kafka.create_topic(3)
    uri = kafka.uri(topic, start="latest")
    readers = [job.reader(uri, split, splits=2) for split in (0, 1)]
    assert [all_of(reader) for reader in readers] == [[], []]
    kafka.add_partitions(topic, 5)
    for partition in range(5):
        kafka.send(topic, [b"%d" % partition], partition=partition)
    rows = [read(reader, lambda rows, n=n: len(rows) >= n) for reader, n in zip(readers, (3, 2), strict=True)]
    assert [sorted(payloads(found)) for found in rows] == [[b"0", b"2", b"4"], [b"1", b"3"]]
    job.fate(rows[0] + rows[1])
    assert account(job.store).reconciled


def test_a_split_without_partitions_holds_no_watermark_back(job, kafka):
    topic = kafka.create_topic(1)
    assert all_of(job.reader(kafka.uri(topic), split=1, splits=2)) == []


def test_arrival_is_the_time_of_the_record_but_never_in_the_future(job, kafka):
    topic = kafka.create_topic(message_timestamp_after_max_ms="9999999999999")
    before, now = int(time.time() * 1000) - 100_000, int(time.time() * 1000)
    kafka.send(topic, [b"old"], timestamp=before)
    kafka.send(topic, [b"2099"], timestamp=4_070_908_800_000)
    first = all_of(job.reader(kafka.uri(topic)))
    arrivals = [int(row["arrival"].timestamp() * 1000) for row in first]
    assert arrivals[0] == before
    assert now <= arrivals[1] <= int(time.time() * 1000)
    assert all_of(job.reader(kafka.uri(topic))) == first


def test_the_watermark_follows_the_records_then_the_clock_and_not_the_idle(job, kafka):
    topic = kafka.create_topic(2)
    old = time.time() - 1000
    kafka.send(topic, [b"old"], partition=1, timestamp=int(old * 1000))
    reader = job.reader(kafka.uri(topic), max_delay_seconds=5)
    rows = read(reader, bool)
    assert float(reader.get_watermark()) <= old - 5 + 0.001
    all_of_it = read(reader, lambda _: float(reader.get_watermark()) > time.time() - 8)
    assert (payloads(rows), all_of_it) == ([b"old"], [])


def test_transactions_are_read_when_they_are_committed(job, kafka):
    topic = kafka.create_topic()
    producer = kafka.producer(transactional_id=topic)
    producer.init_transactions()
    for name, end in (("aborted", producer.abort_transaction), ("committed", producer.commit_transaction)):
        producer.begin_transaction()
        for number in range(2):
            producer.produce(topic, f"{name} {number}".encode(), partition=0)
        producer.flush()
        end()
    producer.begin_transaction()
    producer.produce(topic, b"open", partition=0)
    producer.flush()
    reader = job.reader(kafka.uri(topic))
    rows = all_of(reader)
    assert payloads(rows) == [b"committed 0", b"committed 1"]
    # Two aborted records and the marker of their end come before.
    assert [place(row) for row in rows] == [(0, 4), (4, 5)]
    producer.commit_transaction()
    rows += read(reader, bool)
    assert payloads(rows)[2:] == [b"open"]
    job.fate(rows)
    assert account(job.store).reconciled
    assert all_of(job.reader(kafka.uri(topic))) == []


def test_gaps_of_a_compacted_topic_are_no_gaps_of_the_account(job, kafka):
    soon = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "200"}
    topic = kafka.create_topic(cleanup_policy="compact", **soon)
    for batch in (["a"] * 5 + ["b"], ["c", "b"], ["d"]):
        kafka.send(topic, [key.encode() for key in batch], keys=batch)
        time.sleep(0.3)  # the next record rolls the segment
    wait_until_compacted(kafka, topic, below=9)
    rows = all_of(job.reader(kafka.uri(topic)))
    assert payloads(rows)[-3:] == [b"c", b"b", b"d"]
    assert 4 <= len(rows) < 9
    job.fate(rows)
    assert account(job.store).reconciled


def wait_until_compacted(kafka: Any, topic: str, below: int) -> None:
    deadline = time.monotonic() + 120
    while len(kafka.records(topic)) >= below:
        assert time.monotonic() < deadline, "the broker's cleaner did not run"
        time.sleep(0.2)


def test_records_that_expired_before_they_were_read_are_an_error(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    job.fate(all_of(job.reader(kafka.uri(topic))))
    kafka.send(topic, numbers(5, 3))
    kafka.delete_records(topic, 0, before=6)
    with pytest.raises(BeamrecError, match=r"offsets 3 to 5 are gone before they were read .* add lost=skip"):
        all_of(job.reader(kafka.uri(topic)))
    rows = all_of(job.reader(kafka.uri(topic, lost="skip")))
    assert payloads(rows) == [b"6", b"7"]
    assert [place(row) for row in rows] == [(3, 7), (7, 8)]
    assert all_of(job.reader(kafka.uri(topic))) == rows
    job.fate(rows)
    assert account(job.store).reconciled


def test_records_that_expired_before_they_had_a_fate_are_an_error(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(5))
    job.fate(all_of(job.reader(kafka.uri(topic)))[:2])
    kafka.delete_records(topic, 0, before=2)
    rows = all_of(job.reader(kafka.uri(topic)))
    assert payloads(rows) == numbers(3, 2), "what has a fate is not needed again"
    kafka.delete_records(topic, 0, before=4)
    with pytest.raises(BeamrecError, match=r"offsets 2 to 3 are gone .* counted and have no fate"):
        all_of(job.reader(kafka.uri(topic, lost="skip")))


@pytest.mark.parametrize("lost", ["error", "skip"])
def test_records_that_expire_while_they_are_read_are_an_error_or_counted(job, kafka, lost):
    topic = kafka.create_topic()
    reader = job.reader(kafka.uri(topic, lost=lost))
    assert all_of(reader) == []
    # More than the client fetches ahead of us.
    kafka.send(topic, [b"x" * 900_000] * 40)
    kafka.delete_records(topic, 0, before=40)
    kafka.send(topic, [b"last"])
    if lost == "error":
        with pytest.raises(BeamrecError, match="are gone before they were read"):
            all_of(reader)
        return
    rows = all_of(reader)
    assert payloads(rows)[-1] == b"last"
    assert len(rows) < 41
    job.fate(rows)
    assert account(job.store).reconciled


def test_a_topic_that_was_made_again_is_an_error(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    reader = job.reader(kafka.uri(topic))
    job.fate(all_of(reader))
    kafka.delete_topic(topic)
    kafka.make_topic(topic)
    kafka.send(topic, numbers(9))
    for each in (reader, job.reader(kafka.uri(topic))):
        with pytest.raises(BeamrecError, match="the topic was deleted and made again, or this is another"):
            read(each, lambda _: False)


def test_a_topic_that_is_gone_is_an_error_in_the_end(job, kafka, monkeypatch):
    monkeypatch.setattr(kafka_requests, "_GONE_SECONDS", 2.0)
    topic = kafka.create_topic()
    reader = job.reader(kafka.uri(topic))
    assert all_of(reader) == []
    kafka.delete_topic(topic)
    with pytest.raises(BeamrecError, match="the topic was deleted"):
        read(reader, lambda _: False)


def test_a_drain_ends_what_is_sealed_and_opens_nothing_new(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(5))
    first = all_of(job.reader(kafka.uri(topic)))
    kafka.send(topic, [b"new"])
    reader = job.reader(kafka.uri(topic))
    request_drain(job.store, "run")
    rows = read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert rows == first
    job.fate(rows)
    assert account(job.store).reconciled


def test_an_idle_source_ends_when_it_was_told_to(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    reader = job.reader(kafka.uri(topic), stop_when_idle_seconds=0.5)
    rows = read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert payloads(rows) == numbers(3)


def test_a_broker_that_is_away_is_waited_for(job, kafka):
    """Neither an error, nor the end of an idle source, nor time that passes."""
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    reader = job.reader(kafka.uri(topic), stop_when_idle_seconds=7, max_delay_seconds=0)
    rows = all_of(reader)
    kafka.kill()
    down_since = time.time()
    away = read(reader, lambda _: time.time() > down_since + 10)
    assert away == []
    assert float(reader.get_watermark()) < down_since + 0.5
    kafka.start()
    kafka.send(topic, numbers(3, 3))
    rows += read(reader, lambda rows: len(rows) >= 3)
    assert payloads(rows) == numbers(6)
    read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    job.fate(rows)
    assert account(job.store).reconciled


def test_two_readers_of_one_split_agree_on_what_was_read(job, kafka):
    """A slow twin of a reader that was given up."""
    topic = kafka.create_topic()
    twins = [job.reader(kafka.uri(topic)) for _ in range(2)]
    rows: list[Rows] = [[], []]
    for number in range(40):
        kafka.send(topic, [b"%d" % number])
        turn = number // 5 % 2
        rows[turn] += read(twins[turn], lambda found, end=number + 1: at_position(found, end))
    rows = [found + all_of(twin) for found, twin in zip(rows, twins, strict=True)]
    assert [payloads(found) for found in rows] == [numbers(40)] * 2
    assert rows[0] == rows[1]
    job.fate(rows[0] + rows[1])
    assert account(job.store).reconciled


def at_position(rows: Rows, position: int) -> bool:
    return bool(rows) and rows[-1]["position"] == position


def test_group_offsets_stand_behind_what_has_a_fate(job, kafka, monkeypatch):
    monkeypatch.setattr(kafka_group, "COMMIT_SECONDS", 0.2)
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(5))
    rows = all_of(job.reader(kafka.uri(topic, group=f"lag-{topic}")))
    assert kafka.group_offsets(f"lag-{topic}", topic) == {}
    job.fate(rows[:3] + rows[4:])
    deadline = time.monotonic() + 120
    while not (found := kafka.group_offsets(f"lag-{topic}", topic)):
        assert time.monotonic() < deadline, "nothing was committed"
        time.sleep(0.1)
    assert found == {0: 3}
