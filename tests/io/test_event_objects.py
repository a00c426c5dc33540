"""Events from object stores, on real servers: every line once, in any order of names, whatever fails."""

import gzip
import os
import time
from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from outcomes_fixtures import make_visible

from beamrec.io.event_objects import identity, open_sources
from beamrec.io.events import SourceOptions
from beamrec.io.ledger import account, request_drain
from beamrec.io.store import LocalStore, open_store
from beamrec.schemas.errors import BeamrecError, UsageError


class Job:
    """A prefix, an output folder, and readers on them."""

    def __init__(self, uri: str, output: Path) -> None:
        self.uri, self.objects = uri, open_store(uri, "--input")
        self.store = LocalStore(output)

    def put(self, name: str, data: bytes) -> None:
        self.objects.put(name, data)

    def reader(self, **options: Any) -> Any:
        (source,) = open_sources(self.uri, SourceOptions(str(self.store.root), "run", **options))
        return source.create_reader(None, None)

    def fate(self, rows: list[dict[str, Any]]) -> None:
        make_visible(self.store, rows)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamrec.io.event_objects._LIST_SECONDS", 0.1)


@pytest.fixture(params=["s3", "gs"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    if request.param == "gs":
        return Job(request.getfixturevalue("gcs"), tmp_path)
    return Job(request.getfixturevalue("s3").uri, tmp_path)


@pytest.fixture
def s3_job(s3: Any, tmp_path: Path) -> Job:
    return Job(s3.uri, tmp_path)


def poll(reader: Any, rows: int, seconds: float = 300) -> list[dict[str, Any]]:
    """So many rows, and what comes in the listing after them."""
    found: list[dict[str, Any]] = []
    deadline, quiet = time.monotonic() + seconds, 0.0
    while time.monotonic() < deadline and (len(found) < rows or quiet < 0.6):
        if reader.advance():
            found += reader.get_current().to_pylist()
            quiet = 0
        else:
            time.sleep(0.05)
            quiet += 0.05
    return found


def payloads(rows: list[dict[str, Any]]) -> list[bytes]:
    return [row["payload"] for row in rows]


def lines(first: int, last: int) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(first, last)]


def text(*found: bytes) -> bytes:
    return b"\n".join(found)


def test_objects_are_read_once_whenever_and_wherever_they_appear(job: Job) -> None:
    job.put("2026/11/22/07/b.jsonl", text(*lines(0, 3)))
    job.put(
        "2026/11/22/07/c.jsonl.gz",
        gzip.compress(text(*lines(3, 6))) + gzip.compress(b"\n" + text(*lines(6, 9))),
    )
    for name in ("2026/_temporary/x.jsonl", ".hidden", "x.tmp", "empty.jsonl"):
        job.put(name, b"" if name.startswith("empty") else b"x\n")
    job.put("blank.jsonl", b"\n \n\n")
    reader = job.reader()
    first = poll(reader, 9)
    assert sorted(payloads(first)) == lines(0, 9)
    job.put("2026/11/22/06/late name.jsonl", text(*lines(9, 10)) + b"\n\n")
    second = poll(reader, 1)
    assert payloads(second) == lines(9, 10)
    job.fate(second + first[:4])
    again = poll(job.reader(), 5)
    assert again == first[4:], "the same positions and times of arrival"
    job.fate(again)
    assert poll(job.reader(), 0) == []
    found = account(job.store)
    assert found.reconciled
    assert found.counts.records_in == 10


def test_arrival_is_when_the_object_was_written(job: Job) -> None:
    before = time.time()
    job.put("a.jsonl", b"1")
    (row,) = poll(job.reader(), 1)
    # Of whole seconds on S3, and by the server's clock.
    assert before - 2 < row["arrival"].timestamp() < time.time() + 1
    source, scheme = row["source"], job.uri.partition(":")[0]
    assert (source, row["after"], row["position"]) == (f"{scheme}:a.jsonl", 0, 1)


def test_a_large_object_comes_in_ranges_and_goes_on_after_a_restart(job: Job) -> None:
    sent = [os.urandom(300).hex().encode() for _ in range(20_000)]
    job.put("large.jsonl", text(*sent))
    job.put("large.jsonl.gz", gzip.compress(text(*sent), 1))
    reader = job.reader()
    assert reader.advance()
    first = reader.get_current().to_pylist()
    assert len(first) == 1000
    job.fate(first)
    reader = job.reader()
    rows = first + poll(reader, 39_000)
    for name in ("large.jsonl", "large.jsonl.gz"):
        assert payloads([row for row in rows if row["source"].endswith(f":{name}")]) == sent


def test_a_replaced_object_is_told_from_one_that_was_written_again(job: Job) -> None:
    job.put("a.jsonl", text(*lines(0, 3)))
    rows = poll(job.reader(), 3)
    job.put("a.jsonl", text(*lines(0, 3)))
    assert poll(job.reader(), 3) == rows
    job.fate(rows)
    job.put("a.jsonl", text(*lines(1, 4)))
    with pytest.raises(BeamrecError, match=r"a\.jsonl was replaced by other content"):
        poll(job.reader(), 1)


def test_an_object_that_is_needed_again_and_gone_is_an_error(job: Job) -> None:
    job.put("a.jsonl", b"1\n")
    poll(job.reader(), 1)
    job.objects.discard("a.jsonl")
    with pytest.raises(BeamrecError, match=r"a\.jsonl is gone, and 1 of its events"):
        poll(job.reader(), 1)


def test_a_damaged_gzip_is_one_dead_letter_and_a_complaint_once_it_is_not_young(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beamrec.io.event_objects._YOUNG_SECONDS", 1e6)
    whole, cut = gzip.compress(text(*lines(0, 2)) + b"\n"), gzip.compress(text(*lines(2, 9)))[:-4]
    job.put("a.gz", whole + cut)
    job.put("b.jsonl", b"b")
    young = poll(job.reader(), 3)
    assert sorted(payloads(young)) == sorted([*lines(0, 2), b"b"])
    assert "damaged" not in caplog.text
    assert job.reader(stop_when_idle_seconds=6)._young_seconds == 3, "a job that ends by itself gives it up"
    monkeypatch.setattr("beamrec.io.event_objects._YOUNG_SECONDS", 0.0)
    rows = poll(job.reader(), 4)
    assert sorted(payloads(rows[:3])) == sorted(payloads(young))
    assert payloads(rows[3:]) == [cut]
    assert "a.gz is damaged behind byte" in caplog.text
    assert sorted(poll(job.reader(), 4), key=str) == sorted(rows, key=str)
    job.fate(rows)
    assert account(job.store).reconciled


def test_readers_of_several_splits_share_the_objects(job: Job) -> None:
    for n in range(12):
        job.put(f"{n}.jsonl", b"%d" % n)
    sources = open_sources(job.uri, SourceOptions(str(job.store.root), "run", splits=3))
    found = [payloads(poll(source.create_reader(None, None), 1)) for source in sources]
    assert all(found)
    assert sorted(int(n) for part in found for n in part) == list(range(12))


@pytest.mark.parametrize("options", [{}, {"stop_when_idle_seconds": 1.0}])
def test_a_drain_ends_and_an_idle_source_does_too(job: Job, options: dict[str, float]) -> None:
    job.put("a.jsonl", b"1")
    reader, began = job.reader(**options), time.monotonic()
    assert len(poll(reader, 1)) == 1
    if not options:
        assert reader.get_watermark() < MAX_TIMESTAMP
        job.put("b.jsonl", b"not sealed before the drain")
        request_drain(job.store, "run")
    deadline = time.monotonic() + 300
    while reader.get_watermark() < MAX_TIMESTAMP:
        assert time.monotonic() < deadline
        assert not reader.advance()
        time.sleep(0.05)
    assert time.monotonic() - began >= options.get("stop_when_idle_seconds", 0)


def test_an_input_that_is_not_there_is_a_usage_error(s3: Any, gcs: str) -> None:
    for uri in (s3.uri.replace(s3.bucket, "no-such-bucket"), gcs.replace("gs://test-", "gs://no-such-")):
        with pytest.raises(UsageError, match="there is no bucket"):
            open_sources(uri, SourceOptions("/nowhere", "run"))
    assert identity(s3.uri) == f"s3://{s3.bucket}/lake"


def test_refused_requests_lose_nothing(s3: Any, s3_job: Job) -> None:
    for n in range(40):
        s3_job.put(f"{n % 7}/{n}.jsonl", text(*lines(10 * n, 10 * n + 10)))
    with s3.faults(0.3):
        rows = poll(s3_job.reader(), 400)
    assert sorted(payloads(rows)) == sorted(lines(0, 400))


def test_an_outage_is_waited_out_and_is_no_quiet_time(
    s3: Any, s3_job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s3_job.put("a.jsonl", b"1")
    monkeypatch.setattr("beamrec.io.s3._ATTEMPTS", 2)
    reader = s3_job.reader(stop_when_idle_seconds=1)
    with s3.faults(1.0):
        assert poll(reader, 1, 5) == []
    assert "is away, and waited for" in caplog.text
    assert payloads(poll(reader, 1)) == [b"1"]
