"""Shards that are split and merged while they are read, by readers that are killed: every record once."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

_EACH = 240


class Producer:
    """Numbered records: plain, with explicit hash keys, and in aggregates, a third of them each."""

    def __init__(self, server: Any, pack: Callable[[Sequence[bytes]], bytes]) -> None:
        self._server, self._pack, self._random = server, pack, random.Random(5)
        self.sent: list[bytes] = []

    def put(self, count: int = _EACH) -> None:
        fresh = [b"%06d" % (len(self.sent) + i) for i in range(count)]
        plain, keyed, packed = (
            fresh[: count // 3],
            fresh[count // 3 : 2 * count // 3],
            fresh[2 * count // 3 :],
        )
        self._server.put(*plain)
        for first in range(0, len(keyed), 20):
            self._server.put(*keyed[first : first + 20], hash_key=str(self._random.getrandbits(128)))
        self._server.put(*(self._pack(packed[first : first + 8]) for first in range(0, len(packed), 8)))
        self.sent += fresh


def reshard(server: Any, step: int) -> None:
    """Three splits and two merges, in turn."""
    shards = server.open_shards()
    if step % 2 == 0:
        server.split(shards[step % len(shards)])
    else:
        server.merge(shards[0], shards[1])


@pytest.mark.parametrize("splits", [1, 3])
def test_splits_and_merges_lose_and_repeat_nothing(
    kinesis_job: Any, kpl_aggregate: Callable[[Sequence[bytes]], bytes], splits: int
) -> None:
    job, producer = kinesis_job, Producer(kinesis_job.server, kpl_aggregate)
    producer.put()
    job.start(splits=splits)
    rows = []
    for step in range(5):
        rows += job.read(_EACH // 2, quiet_seconds=0)
        reshard(job.server, step)
        producer.put()
        if step == 2:
            job.fate(rows[::2])  # killed in the middle
            job.start(splits=splits)
            rows = []
    fates = len(rows) // 2
    job.fate(rows[:fates])
    rows = rows[fates:]
    rows += job.wait(lambda _: len(job.seen) == len(producer.sent))
    job.start(splits=splits)
    rows = job.read(len(producer.sent) - job.fated())
    job.fate(rows)
    job.check(producer.sent)
    assert len({row for row, _ in job.seen}) > 2, "no child was read: the test has shown nothing"


def test_a_backfill_goes_down_the_lineage_to_its_end(
    kinesis_job: Any, kpl_aggregate: Callable[[Sequence[bytes]], bytes]
) -> None:
    job, producer = kinesis_job, Producer(kinesis_job.server, kpl_aggregate)
    for step in range(4):
        producer.put()
        reshard(job.server, step)
    producer.put()
    job.start(splits=2, stop_when_idle_seconds=2.0)
    job.fate(job.finish())
    job.check(producer.sent)


def test_children_wait_for_their_parents(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*(b"parent%d" % i for i in range(500)), hash_key="1")
    job.server.split(job.server.open_shards()[0])
    job.server.put(*(b"child%d" % i for i in range(500)), hash_key="1")
    job.start()
    rows = job.read(1000)
    assert [row["payload"][:5] for row in rows] == [b"paren"] * 500 + [b"child"] * 500
    job.fate(rows)
    job.start()
    assert job.read(0) == []


def test_the_watermark_waits_for_children(kinesis_job: Any) -> None:
    job = kinesis_job
    job.start(max_delay_seconds=0.0)
    (reader,) = job.readers
    job.server.put(b"parent", hash_key="1")
    job.read(1)
    with job.server.faults(1.0):  # nothing can be read now
        job.server.split(job.server.open_shards()[0])
        job.server.put(b"child", hash_key="1")
        job.read(0, quiet_seconds=1.5)
    job.wait(lambda _: reader.advance())
    (row,) = reader.get_current().to_pylist()
    assert row["payload"] == b"child"
    assert reader.get_watermark().micros <= row["arrival"].timestamp() * 1e6


def test_the_watermark_of_one_reader_waits_for_what_another_reads_first(kinesis_job: Any) -> None:
    """In a backfill: the upper half of the hash space was one shard with the lower half for a while."""
    job, upper = kinesis_job, str(2**128 - 1)
    job.server.put(*(b"a%d" % i for i in range(100)), hash_key=upper)
    job.server.merge(*job.server.open_shards())
    job.server.put(*(b"b%d" % i for i in range(100)), hash_key=upper)
    job.server.split(job.server.open_shards()[0])
    job.server.put(*(b"c%d" % i for i in range(100)), hash_key=upper)
    job.start(splits=2, max_delay_seconds=0.0)
    read: list[list[bytes]] = [[], []]

    def all_read(_: Any) -> bool:
        for number, reader in enumerate(job.readers):
            before = reader.get_watermark().micros
            while reader.advance():
                for row in reader.get_current().to_pylist():
                    assert row["arrival"].timestamp() * 1e6 >= before
                    read[number].append(row["payload"])
        return sum(map(len, read)) == 300

    job.wait(all_read)
    assert [{payload[:1] for payload in payloads} for payloads in read] == [{b"b"}, {b"a", b"c"}]


def test_moto_as_it_comes_loses_nothing_over_a_split(
    plain_moto: Any, kinesis_jobs: Callable[[Any], Any]
) -> None:
    """There a closed shard never ends, and takes records still."""
    job = kinesis_jobs(plain_moto)
    sent = [b"%d" % i for i in range(300)]
    job.server.put(*sent[:100])
    job.start(splits=2)
    job.read(100)
    job.server.split(job.server.open_shards()[0])
    job.server.put(*sent[100:200])
    job.read(100)
    job.server.merge(*job.server.open_shards()[:2])
    job.server.put(*sent[200:])
    job.read(100)
    job.start(splits=2)
    job.fate(job.read(300))
    job.check(sent)
