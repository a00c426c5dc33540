"""Splits have places of their own on Flink, by keys that stay the same, and wait for data within a bundle."""

import copy
import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from beamrec.io.event_files import EventFiles
from beamrec.io.events import SourceOptions
from beamrec.io.murmur import key_group, murmur3
from beamrec.io.split_source import KEY_GROUPS, SplitSource, SplitSourceCoder, place

LONG = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def files(folder: Path, split: int = 0, idle: float | None = None) -> EventFiles:
    """A source of the folder."""
    options = SourceOptions(str(folder.parent / "out"), "run", stop_when_idle_seconds=idle)
    return EventFiles(str(folder), options, split)


def put(folder: Path) -> None:
    """A file of one event, long there."""
    path = folder / ".new"
    path.write_text(json.dumps({"number": 1}) + "\n")
    os.utime(path, (1.7e9, 1.7e9))
    path.rename(folder / "1.jsonl")


@pytest.mark.parametrize(
    ("text", "low"),
    [
        (b"", 0),
        (b"The quick brown fox jumps over the lazy dog", 0xE34BBC7BBC071B6C),
        (b"The quick brown fox jumps over the lazy cog", 0x658CA970FF85269A),
    ],
)
def test_the_hash_is_murmur3(text: bytes, low: int) -> None:
    assert murmur3(text) == low


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 13, 64])
def test_subtasks_have_the_same_number_of_splits_or_one_more(folder: Path, count: int) -> None:
    placed = place([SplitSource.of(files(folder, number), 0.1, 0.0) for number in range(count)])
    groups = [key_group(split.key, KEY_GROUPS) for split in placed]
    assert len(set(groups)) == count
    for parallelism in (1, 2, 4, 8, 16, 64):
        # As Flink assigns key groups to subtasks.
        splits = Counter(group * parallelism // KEY_GROUPS for group in groups)
        assert set(splits.values()) <= {count // parallelism, -(-count // parallelism)}


def test_a_key_survives_every_way_to_a_worker(folder: Path) -> None:
    split, coder = place([SplitSource.of(files(folder, 3), 0.1, 2.0)])[0], SplitSourceCoder()
    for other in (coder.decode(coder.encode(split)), copy.deepcopy(split)):
        assert coder.encode(other) == split.key
        assert other.split(20) == [other]
        assert other.create_reader(None, None).get_watermark() < MAX_TIMESTAMP


def test_a_bundle_waits_for_data(folder: Path) -> None:
    reader = SplitSource.of(files(folder), 0.01, LONG).create_reader(None, None)
    timer = threading.Timer(0.3, put, [folder])
    timer.start()
    assert reader.start(), "nothing was there when it was asked"
    assert reader.get_current().num_rows == 1
    timer.join()


def test_a_bundle_waits_no_longer_than_its_hold_time(folder: Path) -> None:
    reader = SplitSource.of(files(folder), 0.01, 0.2).create_reader(None, None)
    assert not reader.start()
    assert not reader.advance(), "the time is the bundle's, and it is over"
    assert reader.get_watermark() < MAX_TIMESTAMP
    reader.get_checkpoint_mark()
    put(folder)
    assert reader.advance(), "the next bundle has its own"


def test_a_bundle_ends_soon_where_the_sink_is_waited_for(folder: Path) -> None:
    put(folder)
    options = SourceOptions(str(folder.parent / "out"), "run", max_in_flight_mb=0)
    source = EventFiles(str(folder), options)
    reader = SplitSource.of(source, 0.01, LONG).create_reader(None, None)
    assert reader.start()
    assert not reader.advance(), "what was emitted reaches the sink after the bundle's end"


def test_a_bundle_ends_with_its_source(folder: Path) -> None:
    reader = SplitSource.of(files(folder, idle=0.1), 0.01, LONG).create_reader(None, None)
    assert not reader.start()
    assert reader.get_watermark() == MAX_TIMESTAMP


def test_without_a_hold_time_the_reader_is_the_sources_own(folder: Path) -> None:
    source = files(folder)
    assert type(SplitSource.of(source, 0.1, 0.0).create_reader(None, None)) is type(source.make_reader())
