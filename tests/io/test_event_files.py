"""The file source: every line once, the same arrival on every replay, nothing before it is whole."""

import gzip
import os
import time
from itertools import accumulate
from pathlib import Path

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from outcomes_fixtures import make_visible

from beamrec.io.event_files import EventFiles, open_sources
from beamrec.io.events import SourceOptions
from beamrec.io.ledger import account, request_drain
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError, UsageError


class Job:
    """An input folder, an output folder, and readers on them."""

    def __init__(self, root: Path) -> None:
        self.input = root / "in"
        self.input.mkdir()
        self.store = LocalStore(root / "out")

    def write(self, name: str, data: bytes, age: float = 10.0) -> None:
        path = self.input / name
        path.parent.mkdir(exist_ok=True, parents=True)
        with open(path, "ab") as file:
            file.write(data)
        os.utime(path, (time.time() - age, time.time() - age))

    def reader(self, **options):
        source_options = SourceOptions(str(self.store.root), "run", **options)
        return EventFiles(str(self.input), source_options).create_reader(None, None)

    def fate(self, rows: list[dict]) -> None:
        make_visible(self.store, rows)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def poll(reader) -> list[dict]:
    """All rows that are there now."""
    rows = []
    while look(reader):
        rows += reader.get_current().to_pylist()
    return rows


def look(reader) -> bool:
    """`advance`, and not without a listing."""
    reader._next_listing = 0.0
    return reader.advance()


def poll_to_the_end(reader) -> list[dict]:
    """All rows until the reader says that there will be no more."""
    rows, deadline = [], time.monotonic() + 300
    while reader.get_watermark() < MAX_TIMESTAMP:
        assert time.monotonic() < deadline, "it does not end"
        rows += poll(reader)
        time.sleep(0.01)
    return rows


def payloads(rows: list[dict]) -> list[bytes]:
    return [row["payload"] for row in rows]


def test_lines_come_in_order_of_arrival_and_tile_their_files(job):
    job.write("b.jsonl", b"1\n2\n", age=20)
    job.write("sub/a.jsonl", b"3\n\n  \n4\n", age=10)
    rows = poll(job.reader())
    assert payloads(rows) == [b"1", b"2", b"3", b"4"]
    assert [(r["source"], r["after"], r["position"]) for r in rows] == [
        ("file:b.jsonl", 0, 2),
        ("file:b.jsonl", 2, 4),
        ("file:sub/a.jsonl", 0, 2),
        ("file:sub/a.jsonl", 2, 8),
    ]
    job.fate(rows)
    assert account(job.store).reconciled


def test_hidden_and_temporary_names_are_not_read(job):
    for name in (".a.jsonl", "_b.jsonl", "c.jsonl.tmp", "d.jsonl.part"):
        job.write(name, b"1\n")
    assert poll(job.reader()) == []


def test_only_regular_files_are_read(job):
    job.write("a.jsonl", b"1\n")
    os.mkfifo(job.input / "pipe.jsonl")
    (job.input / "dangling.jsonl").symlink_to(job.input / "missing")
    (job.input / "circle").symlink_to(job.input)
    (job.input / "folder.jsonl").mkdir()
    assert payloads(poll(job.reader())) == [b"1"]


def test_a_line_without_its_end_waits_for_it(job):
    job.write("a.jsonl", b'1\n{"half', age=1)
    reader = job.reader()
    assert payloads(poll(reader)) == [b"1"]
    job.write("a.jsonl", b'":2}\n', age=0)
    assert payloads(poll(reader)) == [b'{"half":2}']


def test_a_last_line_without_its_end_counts_when_the_file_was_left_alone(job):
    job.write("a.jsonl", b"1\n2", age=61)
    assert payloads(poll(job.reader())) == [b"1", b"2"]


def test_a_growing_file_keeps_the_arrival_of_each_part(job):
    job.write("a.jsonl", b"1\n", age=100)
    reader = job.reader()
    first = poll(reader)
    job.write("a.jsonl", b"2\n", age=50)
    second = poll(reader)
    replay = poll(job.reader())
    assert [row["arrival"] for row in replay] == [first[0]["arrival"], second[0]["arrival"]]
    assert (second[0]["arrival"] - first[0]["arrival"]).total_seconds() == pytest.approx(50, abs=1)


def test_a_replay_has_the_same_arrival_although_the_file_was_touched(job):
    job.write("a.jsonl", b"1\n2\n", age=100)
    first = poll(job.reader())
    os.utime(job.input / "a.jsonl")
    assert poll(job.reader()) == first


def test_a_restart_leaves_out_what_has_a_fate(job):
    job.write("a.jsonl", b"".join(b"%d\n" % i for i in range(10)))
    rows = poll(job.reader())
    job.fate(rows[:3] + rows[5:7])
    assert payloads(poll(job.reader())) == [b"3", b"4", b"7", b"8", b"9"]
    job.fate(rows)
    assert poll(job.reader()) == []
    job.write("a.jsonl", b"new\n")
    assert payloads(poll(job.reader())) == [b"new"]


def test_a_large_file_comes_in_parts_and_batches(job):
    lines = [b"x" * 99 + b"\n"] * 100_000
    job.write("a.jsonl", b"".join(lines))
    reader, rows = job.reader(), 0
    while reader.advance():
        batch = reader.get_current()
        assert batch.num_rows <= 1000
        rows += batch.num_rows
    assert rows == 100_000


def test_a_record_larger_than_a_part_is_whole(job):
    job.write("a.jsonl", b"y" * (9 << 20) + b"\n1\n")
    assert [len(p) for p in payloads(poll(job.reader()))] == [9 << 20, 1]


def test_files_of_several_splits_are_dealt_once(job):
    for i in range(20):
        job.write(f"{i}.jsonl", b"%d\n" % i)
    sources = open_sources(str(job.input), SourceOptions(str(job.store.root), "run", splits=3))
    rows = [payloads(poll(source.create_reader(None, None))) for source in sources]
    assert all(rows)
    assert sorted(payload for part in rows for payload in part) == sorted(b"%d" % i for i in range(20))


def follows_the_clock(reader) -> None:
    """With five seconds of delay, and a hundredth for clocks of different grain."""
    before = time.time()
    assert poll(reader) == []
    assert before - 5.01 <= float(reader.get_watermark()) <= time.time() - 4.99


def test_the_watermark_follows_arrival_then_the_clock(job):
    job.write("a.jsonl", b"1\n", age=1000)
    reader = job.reader(max_delay_seconds=5)
    assert reader.advance()
    assert float(reader.get_watermark()) <= time.time() - 1004
    follows_the_clock(reader)


def test_a_file_dated_in_the_future_arrives_now(job):
    before = time.time()
    job.write("a.jsonl", b"1\n", age=-86_400)
    (row,) = poll(job.reader())
    assert before - 0.01 <= row["arrival"].timestamp() <= time.time() + 0.01


def test_a_drain_ends_what_is_sealed_and_opens_nothing_new(job):
    job.write("a.jsonl", b"1\n2\n3\n")
    reader = job.reader(batch_rows=1)
    assert reader.start()
    job.write("b.jsonl", b"4\n")
    request_drain(job.store, "run")
    rows = reader.get_current().to_pylist() + poll_to_the_end(reader)
    assert payloads(rows) == [b"1", b"2", b"3"]
    job.fate(rows)
    assert account(job.store).reconciled


def test_an_idle_source_ends_when_it_was_told_to(job):
    began = time.monotonic()
    assert poll_to_the_end(job.reader(stop_when_idle_seconds=0.5)) == []
    assert time.monotonic() - began >= 0.5


def test_a_pause_in_which_nobody_asked_is_not_the_end(job):
    reader = job.reader(stop_when_idle_seconds=2.0)
    assert not look(reader)
    time.sleep(2.1)
    assert not look(reader)
    job.write("a.jsonl", b"1\n")
    assert payloads(poll_to_the_end(reader)) == [b"1"]


def test_many_small_files_are_sealed_and_batched_together(job):
    for i in range(500):
        job.write(f"{i}.jsonl", b"%d\n" % i)
    reader, batches = job.reader(), 0
    while reader.advance():
        batches += 1
    assert batches == 1
    assert len(job.store.names("_ledger/sources")) == 1


def test_names_of_any_length_and_language_are_read_and_others_stop_nothing(job):
    names = ["数" * 70 + ".jsonl", "/".join(["a" * 50] * 6) + ".jsonl", "it's 100%2F\n.jsonl"]
    for name in names:
        job.write(name, b"1\n")
    (job.input / os.fsdecode(b"\xff\xfe.jsonl")).write_bytes(b"2\n")
    rows = poll(job.reader())
    assert {row["source"] for row in rows} == {f"file:{name}" for name in names}
    job.fate(rows)
    assert account(job.store).reconciled


@pytest.mark.parametrize("content", [b"7\n8\n9\n10\n11\n", b"7\n"], ids=["longer", "shorter"])
def test_a_file_that_was_replaced_is_an_error_and_not_a_gap(job, content):
    job.write("a.jsonl", b"1\n2\n3\n")
    reader = job.reader()
    job.fate(poll(reader))
    (job.input / "new.tmp").write_bytes(content)
    (job.input / "new.tmp").rename(job.input / "a.jsonl")
    for each in (reader, job.reader()):
        with pytest.raises(BeamrecError, match=r"a\.jsonl was replaced or shortened"):
            poll(each)


def test_a_blank_tail_and_a_half_line_hold_no_watermark_back(job):
    job.write("blank.jsonl", b"1\n\n \n", age=3000)
    job.write("half.jsonl", b'2\n{"half', age=30)
    reader = job.reader(max_delay_seconds=5)
    assert len(poll(reader)) == 2
    follows_the_clock(reader)


def test_a_last_line_dated_in_the_future_counts_once_it_was_left_alone(job):
    job.write("a.jsonl", b"1\n2", age=-86_400)
    assert payloads(poll_to_the_end(job.reader(stop_when_idle_seconds=1.0))) == [b"1", b"2"]


def test_a_reader_that_others_overtake_goes_on_from_what_they_sealed(job):
    """On Flink a reader that was replaced may still read; neither may end the job of the other."""
    job.write("a.jsonl", b"0\n", age=50)
    slow, fast = job.reader(), job.reader()
    assert payloads(poll(fast)) == [b"0"]
    job.write("a.jsonl", b"1\n", age=40)
    assert payloads(poll(fast)) == [b"1"]
    rows = poll(slow)
    assert payloads(rows) == [b"0", b"1"]
    job.write("a.jsonl", b"2\n", age=30)
    assert payloads(poll(fast)) == [b"2"]
    # Sealing another file, it reads what was sealed of this one meanwhile.
    job.write("b.jsonl", b"3\n", age=20)
    (job.input / "a.jsonl").rename(job.input / "_aside")
    rows += _listed(slow, job)
    job.write("a.jsonl", b"4\n", age=10)
    rows += poll(slow)
    assert sorted(payloads(rows)) == [b"0", b"1", b"2", b"3", b"4"]
    job.fate(rows)
    assert account(job.store).reconciled


def _listed(reader, job: Job) -> list[dict]:
    """All rows, where a file is away while the folder is listed."""
    reader._next_listing = 0.0
    reader._list()
    (job.input / "_aside").rename(job.input / "a.jsonl")
    reader._next_listing = time.monotonic() + 300
    rows = []
    while reader.advance():
        rows += reader.get_current().to_pylist()
    return rows


def test_marks_of_two_readers_differ(job):
    assert job.reader().get_checkpoint_mark() != job.reader().get_checkpoint_mark()


def test_a_sealed_file_that_is_gone_is_an_error_that_says_so(job):
    job.write("a.jsonl", b"1\n2\n")
    poll(job.reader())
    (job.input / "a.jsonl").unlink()
    with pytest.raises(BeamrecError, match="gone, and 2 of its events have no fate"):
        poll(job.reader())


def test_a_shortened_file_whose_lines_are_needed_again_is_an_error(job):
    job.write("a.jsonl", b"1\n2\n3\n")
    poll(job.reader())
    (job.input / "a.jsonl").write_bytes(b"1\n")
    with pytest.raises(BeamrecError, match="append-only"):
        poll(job.reader())


def test_an_input_folder_that_is_not_there_is_a_usage_error(job):
    with pytest.raises(UsageError, match="no such folder"):
        open_sources(str(job.input / "missing"), SourceOptions(str(job.store.root), "run"))


def lines(first: int, last: int) -> bytes:
    return b"".join(b'{"n":%d}\n' % n for n in range(first, last))


def test_a_compressed_file_is_read_as_its_text(job):
    text = lines(0, 500)
    job.write("a.jsonl.gz", gzip.compress(text[:1000]) + gzip.compress(text[1000:]) + bytes(512))
    job.write("b.jsonl", lines(500, 510))
    rows = poll(job.reader())
    assert payloads(rows) == (text + lines(500, 510)).splitlines()
    assert [row["position"] for row in rows[:500]] == list(
        accumulate(map(len, text.splitlines(keepends=True)))
    )
    assert poll(job.reader()) == rows


def test_a_large_compressed_file_comes_in_parts_and_goes_on_after_a_restart(job):
    text = b"".join(b'{"n":"%s"}\n' % os.urandom(400).hex().encode() for _ in range(20_000))
    job.write("a.gz", gzip.compress(text, 1))
    reader = job.reader()
    assert reader.advance()
    first = reader.get_current().to_pylist()
    job.fate(first)
    rest = poll(job.reader())
    assert payloads(first) + payloads(rest) == text.splitlines()
    assert account(job.store).counts.records_in == 20_000


def test_members_that_are_added_count_once_they_are_whole(job):
    first, second = gzip.compress(lines(0, 3)), gzip.compress(lines(3, 9))
    job.write("a.gz", first + second[:20], age=0)
    reader = job.reader()
    assert payloads(poll(reader)) == lines(0, 3).splitlines()
    job.write("a.gz", second[20:], age=0)
    assert payloads(poll(reader)) == lines(3, 9).splitlines()
    job.write("a.gz", gzip.compress(lines(9, 12)), age=0)
    assert payloads(poll(job.reader())) == lines(0, 12).splitlines()


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip at all"])
def test_what_is_no_whole_member_waits_and_is_then_one_record_and_a_complaint(job, caplog, damage):
    whole, broken = gzip.compress(lines(0, 3)), bytearray(gzip.compress(lines(3, 5000)))
    if damage == "cut":
        del broken[-5:]
    elif damage == "flipped":
        broken[-3] ^= 1
    else:
        broken[:] = b"\x1f\x8bnothing of the kind"
    job.write("a.jsonl.gz", whole + broken, age=0)
    job.write("b.jsonl", lines(0, 2), age=0)
    assert payloads(poll(job.reader())) == [*lines(0, 3).splitlines(), *lines(0, 2).splitlines()]
    assert not caplog.messages
    os.utime(job.input / "a.jsonl.gz", (time.time() - 100, time.time() - 100))
    rows = poll(job.reader())
    assert payloads(rows)[-1:] == [bytes(broken)]
    assert len(rows) == 6
    assert "a.jsonl.gz is damaged behind byte" in caplog.text
    again = poll(job.reader())
    assert sorted(again, key=str) == sorted(rows, key=str), "in the order of their arrival, the same rows"
    job.fate(rows)
    job.write("a.jsonl.gz", whole, age=0)
    assert poll(job.reader()) == []
    assert "give it another name" in caplog.text
    assert account(job.store).reconciled


def test_a_compressed_file_that_was_replaced_is_an_error(job):
    job.write("a.gz", gzip.compress(lines(0, 50)))
    job.fate(poll(job.reader()))
    (job.input / "a.gz").unlink()
    job.write("a.gz", gzip.compress(os.urandom(300)))
    with pytest.raises(BeamrecError, match="replaced or shortened"):
        poll(job.reader())
