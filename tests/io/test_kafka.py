"""The Kafka source on a real broker: every record once, in the intervals and with the times that stand."""

import datetime as dt
import time
from typing import Any

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from confluent_kafka import TopicPartition
from kafka_reader_fixtures import Rows, numbers, payloads, place

from beamrec.io import kafka as kafka_source
from beamrec.io import kafka_group
from beamrec.io.ledger import account, request_drain
from beamrec.schemas.errors import UsageError


def test_records_come_in_order_and_tile_their_partitions(kafka_job, kafka):
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(3), partition=0)
    kafka.send(topic, numbers(2, 10), partition=1)
    reader = kafka_job.reader(kafka.uri(topic))
    rows = kafka_job.all_of(reader)
    zero, one = ([r for r in rows if r["source"] == f"kafka:{topic}/{p}"] for p in (0, 1))
    assert (payloads(zero), payloads(one)) == (numbers(3), numbers(2, 10))
    assert [place(row) for row in zero] == [(0, 1), (1, 2), (2, 3)]
    assert dict(reader.get_checkpoint_mark().positions) == {f"kafka:{topic}/0": "3", f"kafka:{topic}/1": "2"}
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled


def test_a_restart_leaves_out_what_has_a_fate_and_reads_the_rest_alike(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(10))
    first = kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    kafka_job.fate(first[:3] + first[5:7])
    again = kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    assert again == first[3:5] + first[7:]
    kafka_job.fate(again)
    kafka.send(topic, [b"new"])
    assert payloads(kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))) == [b"new"]


def test_an_empty_record_is_one(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, [None, b"", b"1"])
    assert payloads(kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))) == [b"", b"", b"1"]


def test_large_records_come_whole_and_in_batches(kafka_job, kafka):
    topic = kafka.create_topic(max_message_bytes="9000000")
    producer = kafka.producer(message_max_bytes="9000000")
    for size in (8_000_000, *[1000] * 3000):
        producer.produce(topic, b"x" * size, partition=0)
        producer.poll(0)
    assert producer.flush(60) == 0
    reader = kafka_job.reader(kafka.uri(topic))
    sizes: list[int] = []
    while len(sizes) < 3001:
        if reader.advance():
            batch = reader.get_current()
            assert batch.num_rows <= 1000
            sizes += [len(payload) for payload in batch.column("payload").to_pylist()]
    assert sizes == [8_000_000, *[1000] * 3000]


def test_latest_is_resolved_once(kafka_job, kafka):
    """Also if nothing was read before the job was killed."""
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    assert kafka_job.all_of(kafka_job.reader(kafka.uri(topic, start="latest"))) == []
    kafka.send(topic, [b"while it was down"])
    rows = kafka_job.all_of(kafka_job.reader(kafka.uri(topic, start="latest")))
    assert payloads(rows) == [b"while it was down"]
    assert [place(row) for row in rows] == [(0, 4)]
    assert kafka_job.all_of(kafka_job.reader(kafka.uri(topic, start="latest"))) == rows
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled


def test_an_interval_is_read_by_the_times_of_its_records(kafka_job, kafka):
    topic, begin = kafka.create_topic(2), dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    for minute in range(10):
        stamp = int((begin + dt.timedelta(minutes=minute)).timestamp() * 1000)
        kafka.send(topic, [b"%d" % minute], partition=0, timestamp=stamp)
    start, end = ((begin + dt.timedelta(minutes=m)).isoformat().replace("+00:00", "Z") for m in (2.5, 6.5))
    reader = kafka_job.reader(kafka.uri(topic, start=start, end=end))
    rows = kafka_job.read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert payloads(rows) == [b"3", b"4", b"5", b"6"]
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled


def test_a_read_to_the_end_of_now_ends_by_itself(kafka_job, kafka):
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(5))
    reader = kafka_job.reader(kafka.uri(topic, end="latest"))
    rows = kafka_job.read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert payloads(rows) == numbers(5)
    kafka.send(topic, [b"later"])
    assert not reader.advance()


@pytest.mark.parametrize("bound", ["start", "end"])
def test_a_bound_that_is_no_past_time_is_a_usage_error(bound):
    for text in ("soon", "2026-11-22T12:00:00", "2999-01-01T00:00:00Z"):
        with pytest.raises(UsageError, match=f"--input: {bound}: expected .*latest, a time that has passed"):
            kafka_source.identity(f"kafka://localhost/t?{bound}={text}")


def test_partitions_are_dealt_to_splits_and_new_ones_are_found(kafka_job, kafka):
    """A partition that is added is read from its beginning, although the job began at the latest."""
    topic = kafka.create_topic(3)
    uri = kafka.uri(topic, start="latest")
    readers = [kafka_job.reader(uri, split, splits=2) for split in (0, 1)]
    assert [kafka_job.all_of(reader) for reader in readers] == [[], []]
    kafka.add_partitions(topic, 5)
    for partition in range(5):
        kafka.send(topic, [b"%d" % partition], partition=partition)
    counts = zip(readers, (3, 2), strict=True)
    rows = [kafka_job.read(reader, lambda rows, n=n: len(rows) >= n) for reader, n in counts]
    assert [sorted(payloads(found)) for found in rows] == [[b"0", b"2", b"4"], [b"1", b"3"]]
    kafka_job.fate(rows[0] + rows[1])
    assert account(kafka_job.store).reconciled


def test_a_split_without_partitions_holds_no_watermark_back(kafka_job, kafka):
    topic = kafka.create_topic(1)
    assert kafka_job.all_of(kafka_job.reader(kafka.uri(topic), split=1, splits=2)) == []


def test_arrival_is_the_time_of_the_record_but_never_in_the_future(kafka_job, kafka):
    topic = kafka.create_topic(message_timestamp_after_max_ms="9999999999999")
    before, now = int(time.time() * 1000) - 100_000, int(time.time() * 1000)
    kafka.send(topic, [b"old"], timestamp=before)
    kafka.send(topic, [b"2099"], timestamp=4_070_908_800_000)
    first = kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    arrivals = [int(row["arrival"].timestamp() * 1000) for row in first]
    assert arrivals[0] == before
    assert now <= arrivals[1] <= int(time.time() * 1000)
    assert kafka_job.all_of(kafka_job.reader(kafka.uri(topic))) == first


def test_the_watermark_follows_the_records_then_the_clock_and_not_the_idle(kafka_job, kafka):
    topic = kafka.create_topic(2)
    old = time.time() - 1000
    kafka.send(topic, [b"old"], partition=1, timestamp=int(old * 1000))
    reader = kafka_job.reader(kafka.uri(topic), max_delay_seconds=5)
    rows = kafka_job.read(reader, bool)
    assert float(reader.get_watermark()) <= old - 5 + 0.001
    all_of_it = kafka_job.read(reader, lambda _: float(reader.get_watermark()) > time.time() - 8)
    assert (payloads(rows), all_of_it) == ([b"old"], [])


def test_transactions_are_read_when_they_are_committed(kafka_job, kafka):
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
    reader = kafka_job.reader(kafka.uri(topic))
    rows = kafka_job.all_of(reader)
    assert payloads(rows) == [b"committed 0", b"committed 1"]
    # Two aborted records and the marker of their end come before.
    assert [place(row) for row in rows] == [(0, 4), (4, 5)]
    producer.commit_transaction()
    rows += kafka_job.read(reader, bool)
    assert payloads(rows)[2:] == [b"open"]
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled
    assert kafka_job.all_of(kafka_job.reader(kafka.uri(topic))) == []


def test_gaps_of_a_compacted_topic_are_no_gaps_of_the_account(kafka_job, kafka):
    soon = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "200"}
    topic = kafka.create_topic(cleanup_policy="compact", **soon)
    for batch in (["a"] * 5 + ["b"], ["c", "b"], ["d"]):
        kafka.send(topic, [key.encode() for key in batch], keys=batch)
        time.sleep(0.3)  # the next record rolls the segment
    wait_until_compacted(kafka, topic, below=9)
    rows = kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    assert payloads(rows)[-3:] == [b"c", b"b", b"d"]
    assert 4 <= len(rows) < 9
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled


def wait_until_compacted(kafka: Any, topic: str, below: int) -> None:
    deadline = time.monotonic() + 120
    while len(kafka.records(topic)) >= below:
        assert time.monotonic() < deadline, "the broker's cleaner did not run"
        time.sleep(0.2)


def test_a_drain_ends_what_is_sealed_and_opens_nothing_new(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(5))
    first = kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    kafka.send(topic, [b"new"])
    reader = kafka_job.reader(kafka.uri(topic))
    request_drain(kafka_job.store, "run")
    rows = kafka_job.read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert rows == first
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled


def test_an_idle_source_ends_when_it_was_told_to(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    reader = kafka_job.reader(kafka.uri(topic), stop_when_idle_seconds=0.5)
    rows = kafka_job.read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    assert payloads(rows) == numbers(3)


def test_two_readers_of_one_split_agree_on_what_was_read(kafka_job, kafka):
    """A slow twin of a reader that was given up."""
    topic = kafka.create_topic()
    twins = [kafka_job.reader(kafka.uri(topic)) for _ in range(2)]
    rows: list[Rows] = [[], []]
    for number in range(40):
        kafka.send(topic, [b"%d" % number])
        turn = number // 5 % 2
        rows[turn] += kafka_job.read(twins[turn], lambda found, end=number + 1: at_position(found, end))
    rows = [found + kafka_job.all_of(twin) for found, twin in zip(rows, twins, strict=True)]
    assert [payloads(found) for found in rows] == [numbers(40)] * 2
    assert rows[0] == rows[1]
    kafka_job.fate(rows[0] + rows[1])
    assert account(kafka_job.store).reconciled


def test_a_reader_follows_its_twin_in_partitions_of_which_it_has_nothing_to_seal(kafka_job, kafka):
    topic = kafka.create_topic(2)
    first, second = (kafka_job.reader(kafka.uri(topic)) for _ in range(2))
    kafka.send(topic, [b"0"], partition=1)
    rows = [kafka_job.read(twin, bool) for twin in (first, second)]
    away = [TopicPartition(topic, 0)]
    second._consumer.pause(away)
    for number in range(1, 4):
        kafka.send(topic, [b"%d" % number], partition=0)
        rows[0] += kafka_job.read(first, bool)
    kafka.send(topic, [b"4"], partition=1)
    rows[1] += kafka_job.read(second, lambda found: b"4" in payloads(found))
    second._consumer.resume(away)
    kafka.send(topic, [b"5"], partition=0)
    rows = [found + kafka_job.all_of(twin) for found, twin in zip(rows, (first, second), strict=True)]
    assert [sorted(payloads(found)) for found in rows] == [numbers(6)] * 2
    kafka_job.fate(rows[0] + rows[1])
    assert account(kafka_job.store).reconciled


def at_position(rows: Rows, position: int) -> bool:
    return bool(rows) and rows[-1]["position"] == position


def test_group_offsets_stand_behind_what_has_a_fate(kafka_job, kafka, monkeypatch):
    monkeypatch.setattr(kafka_group, "COMMIT_SECONDS", 0.2)
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(5))
    rows = kafka_job.all_of(kafka_job.reader(kafka.uri(topic, group=f"lag-{topic}")))
    assert kafka.group_offsets(f"lag-{topic}", topic) == {}
    kafka_job.fate(rows[:3] + rows[4:])
    deadline = time.monotonic() + 120
    while not (found := kafka.group_offsets(f"lag-{topic}", topic)):
        assert time.monotonic() < deadline, "nothing was committed"
        time.sleep(0.1)
    assert found == {0: 3}
