"""The Kinesis source on two servers: every record once, from where it should begin to where it should end."""

import datetime as dt
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from beamrec.io.events import SourceOptions
from beamrec.io.kinesis import identity, open_sources
from beamrec.io.kinesis_client import parse_address
from beamrec.io.ledger import account, request_drain
from beamrec.io.source_log import read_parts
from beamrec.schemas.errors import UnavailableError, UsageError

Row = dict[str, Any]


def payloads(rows: Sequence[Row]) -> list[bytes]:
    return sorted(row["payload"] for row in rows)


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%06d" % i for i in range(first, last)]


def test_every_record_comes_once_and_positions_tile_the_shards(kinesis_job: Any) -> None:
    job, sent = kinesis_job, numbered(0, 1200)
    job.server.put(*sent)
    job.start(splits=2)
    rows = job.read(len(sent))
    assert payloads(rows) == sent
    names = {shard["ShardId"] for shard in job.server.shards()}
    assert {row["source"] for row in rows} == {f"kinesis:{job.server.stream}/{name}" for name in names}
    job.fate(rows)
    job.check(sent)


def test_aggregates_are_unpacked_and_broken_ones_are_records(
    kinesis_job: Any, kpl_aggregate: Callable[[Sequence[bytes]], bytes]
) -> None:
    job = kinesis_job
    whole, broken = kpl_aggregate([b"1", b"2", b"3"]), kpl_aggregate([b"4"])[:-1]
    job.server.put(b"0", whole, kpl_aggregate([]), broken, b"5", hash_key="1")
    job.start()
    rows = job.read(6)
    assert [row["payload"] for row in rows] == [b"0", b"1", b"2", b"3", broken, b"5"]
    assert [(row["after"], row["position"]) for row in rows] == [(i, i + 1) for i in range(6)]
    job.fate(rows[2:4])
    job.start()
    again = job.read(4)
    assert [row["position"] for row in again] == [1, 2, 5, 6], "an aggregate is resumed in its middle"
    job.fate(again)
    job.check([b"0", b"1", b"2", b"3", broken, b"5"])


def test_a_restart_resumes_at_what_has_no_fate(kinesis_job: Any) -> None:
    job, sent = kinesis_job, numbered(0, 900)
    job.server.put(*sent[:500])
    job.start(splits=2)
    rows = job.read(500)
    job.fate(rows[:123] + rows[200:300])
    job.server.put(*sent[500:])
    job.start(splits=3)  # positions are those of shards: the number of splits may change between jobs
    rest = job.read(len(sent) - 223)
    assert payloads(rest) == payloads([*rows[123:200], *rows[300:]]) + sent[500:]
    job.fate(rest)
    job.check(sent)
    job.start()
    assert job.read(0) == []


def test_latest_is_resolved_once(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*numbered(0, 100))
    time.sleep(2.1)  # the service's clock is known to the second
    job.start(uri={"start": "latest"})
    job.wait(lambda _: any(True for _ in read_parts(job.store)))
    job.server.put(*numbered(100, 200))
    job.start(uri={"start": "latest"})  # killed before it had read anything
    rows = job.read(100)
    assert payloads(rows) == numbered(100, 200)
    job.fate(rows)
    job.check(numbered(100, 200))


def test_a_time_to_start_and_a_time_to_end(kinesis_job: Any) -> None:
    job, times = kinesis_job, []
    for step in range(3):
        job.server.put(*numbered(step * 100, step * 100 + 100))
        time.sleep(1.1)
        times.append(dt.datetime.now(dt.UTC).isoformat())
        time.sleep(1.1)
    job.start(splits=2, uri={"start": times[0], "end": times[1]}, max_delay_seconds=0.5)
    rows = job.finish()
    assert payloads(rows) == numbered(100, 200)
    job.fate(rows)
    job.check(numbered(100, 200))
    job.start(uri={"start": times[0], "end": times[1]})
    assert job.finish() == [], "it ends again at once"
    job.start(uri={"start": times[0], "end": times[2]}, max_delay_seconds=0.5)
    rows = job.finish()
    job.fate(rows)
    job.check(numbered(100, 300))


def test_an_idle_shard_does_not_hold_the_watermark(kinesis_job: Any) -> None:
    job = kinesis_job
    job.start()
    job.server.put(*numbered(0, 10), hash_key="1")
    (row, *_) = job.read(10)
    arrived = row["arrival"].timestamp()
    job.wait(lambda _: job.readers[0].get_watermark().micros / 1e6 > arrived + 1)


def test_the_watermark_waits_for_what_is_not_emitted_yet(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*numbered(0, 3000), hash_key="1")
    job.start(max_delay_seconds=0.0, batch_rows=100)
    (reader,) = job.readers
    rows = 0
    while rows < 3000:
        if reader.advance():
            first = reader.get_current().to_pylist()[0]["arrival"].timestamp()
            assert reader.get_watermark().micros / 1e6 <= first + 1e-6
            rows += reader.get_current().num_rows


def test_a_drain_ends_with_everything_sealed_emitted(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*numbered(0, 300))
    job.start()
    job.read(300)
    job.start()  # killed; what it had sealed is to be read again
    request_drain(job.store, "run")
    job.server.put(*numbered(300, 400))
    rows = job.finish()
    assert payloads(rows) == numbered(0, 300)
    job.fate(rows)
    assert account(job.store).reconciled


def test_it_ends_when_the_stream_has_been_quiet(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*numbered(0, 500))
    job.start(splits=2, stop_when_idle_seconds=1.0)
    assert payloads(job.finish()) == numbered(0, 500)


def test_a_checkpoint_mark_tells_sequence_numbers(kinesis_job: Any) -> None:
    job = kinesis_job
    job.server.put(*numbered(0, 20))
    job.start()
    job.read(20)
    mark = job.readers[0].get_checkpoint_mark()
    (source,) = open_sources(job.server.uri(), SourceOptions(str(job.store.root), "run"))
    coder = source.get_checkpoint_mark_coder()
    assert coder.decode(coder.encode(mark)) == mark
    assert {shard for shard, _ in mark.positions} == {shard["ShardId"] for shard in job.server.shards()}
    assert all(place.isdigit() for _, place in mark.positions)


def test_a_shard_is_read_at_most_five_times_a_second(kinesis_job: Any) -> None:
    job, before = kinesis_job, kinesis_job.server.report()["reads"]
    job.start()

    def reads() -> list[list[float]]:
        found = job.server.report()["reads"]
        return [times[len(before.get(shard, ())) :] for shard, times in found.items()]

    job.wait(lambda _: max(map(len, reads()), default=0) > 16)
    for times in reads():
        # What is on its way for long seems to come faster: not all of the first ones are.
        rests = (times[first:] for first in range(min(5, len(times))))
        assert not times or any(len(rest) <= 5 * (rest[-1] - rest[0] + 0.5) + 1 for rest in rests)


def test_a_role_is_assumed_for_every_call(moto_stream: Any, kinesis_jobs: Callable[[Any], Any]) -> None:
    job = kinesis_jobs(moto_stream)
    before = set(moto_stream.report()["signers"])
    moto_stream.put(*numbered(0, 10))
    job.start(uri={"role": "arn:aws:iam::123456789012:role/reader"})
    assert payloads(job.read(10)) == numbered(0, 10)
    signers = set(moto_stream.report()["signers"]) - before
    assert signers, "nobody new: the role was not assumed"
    assert "test" not in signers


def test_a_bad_address_is_refused_before_anything_starts(kinesis: Any, tmp_path: Any) -> None:
    options = SourceOptions(str(tmp_path), "run")
    base = f"endpoint={kinesis.endpoint}&region=us-east-1"
    with pytest.raises(UsageError, match="there is no stream nothing-here in us-east-1"):
        open_sources(f"kinesis://nothing-here?{base}", options)
    for uri, message in (
        (f"kinesis://?{base}", "no stream's name"),
        (f"kinesis://key:secret@stream?{base}", "no stream's name"),
        (f"kinesis://{kinesis.stream}?begin=now", "the parameter 'begin'"),
        (f"kinesis://{kinesis.stream}?start=yesterday", "expected a time such as"),
        (f"kinesis://{kinesis.stream}?end=2026-11-22T07:00:00", "expected a time such as"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            open_sources(uri, options)
        assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(UnavailableError, match="kinesis://stream"):
        open_sources(
            "kinesis://stream?endpoint=http://127.0.0.1:1&region=us-east-1",
            SourceOptions(str(tmp_path), "run"),
        )


def test_the_way_to_a_stream_is_not_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    plain = identity("kinesis://clicks")
    assert plain == "kinesis://clicks?region=eu-west-1"
    more = "endpoint=http://localhost:1&role=arn:aws:iam::1:role/r&start=2026-11-22T07:00:00%2B01:00&end="
    assert identity(f"kinesis://clicks?region=eu-west-1&{more}") == plain
    assert identity("kinesis://clicks?region=us-east-1") != plain


def test_a_time_may_have_a_plain_plus_sign() -> None:
    plain = parse_address("kinesis://clicks?start=2026-11-22T07:00:00+01:00&region=r", "--input")
    assert plain.start == round(dt.datetime(2026, 11, 22, 6, tzinfo=dt.UTC).timestamp() * 1e6)
