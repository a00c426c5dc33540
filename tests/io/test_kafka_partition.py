"""What is sealed of a partition, what is handed out, and in which intervals, whatever comes when."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.io.kafka_partition import Partition, Place, Record, next_offset
from beamrec.io.source_log import Part
from beamrec.schemas.errors import BeamrecError

NOW = 1_000


def part(after: int, position: int, records: int, offset: int, topic: str = "T") -> Part:
    return Part("kafka:t/0", after, position, records, NOW, str(Place(topic, offset)))


def record(position: int) -> Record:
    return Record(position, 0, b"%d" % position)


def handed_out(partition: Partition) -> list[tuple[int, list[int]]]:
    return [(after, [r.position for r in records]) for _, after, records in partition.whole_parts()]


def test_the_first_part_begins_at_zero_and_is_read_from_the_start():
    partition = Partition.resume([part(0, 0, 0, offset=100)], resume=0)
    assert partition.base == 100
    for position in (101, 103):
        partition.take(record(position))
    new = partition.new_part(NOW)
    assert new == part(0, 103, 2, offset=100)
    partition.add_sealed(new)
    assert handed_out(partition) == [(0, [101, 103])]
    assert (partition.new_part(NOW), next_offset(new)) == (None, 103)


@pytest.mark.parametrize(
    ("resume", "base", "owed"), [(0, 100, True), (102, 102, True), (105, 105, True), (110, 110, False)]
)
def test_a_restart_reads_from_the_first_record_without_a_fate(resume, base, owed):
    parts = [part(0, 0, 0, 100), part(0, 105, 5, 100), part(105, 110, 5, 105)]
    partition = Partition.resume(parts, resume)
    assert (partition.base, partition.owed) == (base, owed)
    for position in range(base + 1, 111):
        partition.take(record(position))
    found = [position for _, positions in handed_out(partition) for position in positions]
    assert found == list(range(base + 1, 111)) * owed


def test_a_sealed_part_is_handed_out_when_it_is_whole():
    partition = Partition.resume([part(0, 3, 3, 0)], resume=0)
    for position in (1, 2):
        partition.take(record(position))
        assert handed_out(partition) == []
    partition.take(record(3))
    assert handed_out(partition) == [(0, [1, 2, 3])]


def test_a_part_that_lost_records_since_it_was_counted_is_an_error():
    partition = Partition.resume([part(0, 3, 3, 0)], resume=0)
    for position in (1, 4):
        partition.take(record(position))
    with pytest.raises(BeamrecError, match="has 1 records from offset 0 to 2 where 3 were counted"):
        handed_out(partition)


def test_an_end_without_records_completes_a_part_that_lost_them():
    partition = Partition.resume([part(0, 3, 3, 0)], resume=0)
    partition.take(record(1))
    partition.reached = 5
    with pytest.raises(BeamrecError, match="where 3 were counted"):
        handed_out(partition)


def test_another_reader_that_sealed_less_leaves_the_rest_to_the_next_part():
    partition = Partition.resume([part(0, 0, 0, 0)], resume=0)
    for position in (1, 2, 3):
        partition.take(record(position))
    partition.add_sealed(part(0, 2, 2, 0))
    assert handed_out(partition) == [(0, [1, 2])]
    assert partition.new_part(NOW) == part(2, 3, 1, 2)


def test_another_reader_that_sealed_more_is_followed():
    partition = Partition.resume([part(0, 0, 0, 0)], resume=0)
    partition.take(record(1))
    partition.add_sealed(part(0, 2, 2, 0))
    assert (handed_out(partition), partition.owed) == ([], True)
    partition.take(record(2))
    assert handed_out(partition) == [(0, [1, 2])]


def test_what_another_reader_brought_to_its_end_is_left_out():
    """A snapshot keeps of wholly fated parts only the last of their source."""
    partition = Partition.resume([part(0, 0, 0, 0)], resume=0)
    for position in (1, 2, 3, 4):
        partition.take(record(position))
    partition.add_sealed(part(2, 3, 1, 2))
    assert handed_out(partition) == [(2, [3])]
    assert partition.new_part(NOW) == part(3, 4, 1, 3)


def test_a_drain_forgets_only_what_is_not_sealed():
    partition = Partition.resume([part(0, 2, 2, 0)], resume=0)
    for position in (1, 2, 3):
        partition.take(record(position))
    partition.drop_new()
    assert handed_out(partition) == [(0, [1, 2])]
    assert partition.new_part(NOW) is None


def test_a_bounded_read_takes_nothing_beyond_its_end_but_what_is_sealed():
    partition = Partition.resume([part(0, 3, 3, 0)], resume=0)
    partition.limit = 2
    for position in (1, 2, 3, 4):
        partition.take(record(position))
    assert handed_out(partition) == [(0, [1, 2, 3])]
    assert (partition.finished, partition.new_part(NOW)) == (True, None)


def test_time_passes_at_an_end_only_when_nothing_sealed_is_owed():
    partition = Partition.resume([part(0, 2, 2, 0)], resume=0)
    partition.reached = 2
    partition.see_end(2, NOW)
    assert (partition.at_end, partition.front_us) == (True, None)
    partition = Partition.resume([part(0, 2, 2, 0)], resume=2)
    partition.see_end(3, NOW)
    assert (partition.at_end, partition.front_us) == (False, None)
    partition.see_end(2, NOW)
    partition.see_end(2, NOW - 1)
    assert (partition.at_end, partition.front_us) == (True, NOW)


def test_a_place_beyond_the_last_record_is_sealed_after_a_quiet_minute():
    """The marker of a transaction: when it has expired with all before it, nothing was lost."""
    partition = Partition.resume([part(0, 5, 5, 0)], resume=5)
    partition.reached = 6
    partition.see_end(6, NOW)
    assert [partition.new_part(seconds * 1_000_000) for seconds in (100, 159)] == [None, None]
    place = partition.new_part(160_000_000)
    assert place == dataclasses.replace(part(5, 5, 0, 6), arrival_us=160_000_000)
    partition.add_sealed(place)
    assert handed_out(partition) == [(5, [])]
    assert partition.new_part(300_000_000) is None
    assert Partition.resume([part(0, 5, 5, 0), place], resume=5).base == 6


def test_a_ledger_without_places_is_an_error_that_says_so():
    with pytest.raises(BeamrecError, match="no place for kafka:t/0"):
        Partition.resume([Part("kafka:t/0", 0, 5, 5, NOW)], resume=0)


@given(
    offsets=st.lists(st.integers(0, 60), unique=True, max_size=30).map(sorted),
    cuts=st.lists(st.integers(1, 5), min_size=30, max_size=30),
    resume_at=st.integers(0, 30),
    start=st.integers(0, 10),
)
def test_what_is_handed_out_tiles_the_partition_over_a_restart(offsets, cuts, resume_at, start):
    """Whatever offsets have no record, however the parts are cut, and wherever the fates stand."""
    positions = [offset + 1 for offset in offsets if offset >= start]
    log = [part(0, 0, 0, start)]
    first = Partition.resume(log, resume=0)
    waiting, tiles = list(positions), []
    for cut in cuts:
        for position in waiting[:cut]:
            first.take(record(position))
        del waiting[:cut]
        if new := first.new_part(NOW):
            log.append(new)
            first.add_sealed(new)
        tiles += intervals(first)
    assert [end for _, end in tiles] == positions
    assert [begin for begin, _ in tiles] == [0, *positions][: len(positions)]
    resume = tiles[resume_at - 1][1] if 0 < resume_at <= len(tiles) else 0
    second = Partition.resume(log, resume)
    for position in positions:
        if position > second.base:
            second.take(record(position))
    again = intervals(second)
    assert again == [tile for tile in tiles if tile[1] > resume]


def intervals(partition: Partition) -> list[tuple[int, int]]:
    found = []
    for after, positions in handed_out(partition):
        found += list(zip([after, *positions], positions, strict=False))
    return found
