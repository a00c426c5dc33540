"""The shard log: each record has one fate whoever writes, however often, and whenever a writer dies."""

import contextlib
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes_fixtures import HOUR
from outcomes_fixtures import outcomes as outcomes_of

from beamrec.io.ledger import missing_segments
from beamrec.io.shard_log import (
    CommitResult,
    Entry,
    ShardLog,
    finish_publications,
    read_entries,
    unpublished,
)
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError


def outcomes(*rows: tuple[int, str], **more: Any) -> pa.Table:
    """Rows of (position, event id) of one source."""
    return outcomes_of(*(("file:a", position, event_id) for position, event_id in rows), **more)


def visible(store: LocalStore) -> list[str]:
    """Every line below recommendations/, as any reader of the folder sees it."""
    lines = []
    for path in sorted((store.root / "recommendations").rglob("*.jsonl")):
        data = path.read_bytes()
        assert data.endswith(b"\n")
        lines += data.decode().splitlines()
    return lines


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_rows_become_a_numbered_segment_and_an_entry(store):
    result = ShardLog(store, 3, 24).commit(outcomes((1, "a"), (2, "b")))
    assert result == CommitResult(visible=2)
    assert visible(store) == ["a@1", "b@2"]
    (entry,) = read_entries(store, 3)
    assert entry.segments[0].path == "recommendations/hour=07/part-0003-0000000000.jsonl"
    assert Entry.decode(entry.encode()) == entry


def test_a_replay_writes_nothing_even_by_a_new_process(store):
    ShardLog(store, 0, 24).commit(outcomes((1, "a"), (2, "b")))
    again = ShardLog(store, 0, 24).commit(outcomes((1, "a"), (2, "b")))
    assert again == CommitResult(replays=2)
    assert len(list(read_entries(store, 0))) == 1


def test_the_same_id_from_another_position_is_a_duplicate_with_a_fate(store):
    log = ShardLog(store, 0, 24)
    assert log.commit(outcomes((1, "a"), (2, "a"))) == CommitResult(visible=1, duplicates=1)
    later = HOUR + timedelta(hours=5)
    assert log.commit(outcomes((3, "a"), hour=later)) == CommitResult(duplicates=1)
    assert visible(store) == ["a@1"]
    assert ShardLog(store, 0, 24).commit(outcomes((2, "a"), (3, "a"))) == CommitResult(replays=2)


def test_ids_are_forgotten_beyond_the_horizon(store):
    log = ShardLog(store, 0, 2)
    log.commit(outcomes((1, "a")))
    log.commit(outcomes((2, "b"), hour=HOUR + timedelta(hours=3)))
    assert log.commit(outcomes((3, "a"), hour=HOUR + timedelta(hours=3))).visible == 1


def test_a_dead_letter_is_accounted_by_its_position_alone(store):
    log = ShardLog(store, 0, 24)
    assert log.commit(outcomes((1, "x"), (2, "x"), fate="dead_letter")).dead_letters == 2
    assert log.commit(outcomes((3, "x"))).visible == 1


class _Killed(BaseException):
    pass


class _KillAt:
    """A store whose writer dies before, or right after, its n-th durable operation."""

    def __init__(self, store: LocalStore, operation: int, after: bool) -> None:
        self._store, self._left, self._after = store, operation, after

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name not in ("create", "stage", "publish", "discard"):
            return method

        def call(*args):
            self._left -= 1
            if self._left == 0 and not self._after:
                raise _Killed
            result = method(*args)
            if self._left == 0:
                raise _Killed
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operation", range(1, 8))
def test_a_writer_killed_at_any_step_leaves_nothing_lost_and_nothing_twice(store, operation, after):
    later = HOUR + timedelta(hours=1)
    rows = pa.concat_tables([outcomes((1, "a"), (2, "b"), (3, "b")), outcomes((4, "c"), hour=later)])
    with contextlib.suppress(_Killed):
        ShardLog(_KillAt(store, operation, after), 0, 24).commit(rows)
    ShardLog(store, 0, 24).commit(rows)
    assert sorted(visible(store)) == ["a@1", "b@2", "c@4"]
    assert sum(entry.rows.num_rows for entry in read_entries(store, 0)) == 4
    assert missing_segments(store) == []


def test_a_slow_twin_that_wakes_after_its_successor_changes_nothing(store):
    """The twin has decided what to write; before it commits, another writer does."""
    rows = outcomes((1, "a"), (2, "b"))

    class Slow(LocalStore):
        def create(self, path, data):
            if path.startswith("_ledger/fates/") and not store.names("_ledger/fates/0000"):
                ShardLog(store, 0, 24).commit(outcomes((2, "b"), (3, "c")))
            return super().create(path, data)

    result = ShardLog(Slow(store.root), 0, 24).commit(rows)
    assert result == CommitResult(visible=1, replays=1)
    assert sorted(visible(store)) == ["a@1", "b@2", "c@3"]


def test_two_writers_in_two_hours_do_not_both_find_an_id_new(store):
    """Why the number is the shard's: with one log an hour both of these would become visible."""
    later = HOUR + timedelta(hours=1)

    class Slow(LocalStore):
        def create(self, path, data):
            if path.startswith("_ledger/fates/") and not store.names("_ledger/fates/0000"):
                ShardLog(store, 0, 24).commit(outcomes((2, "a"), hour=later))
            return super().create(path, data)

    assert ShardLog(Slow(store.root), 0, 24).commit(outcomes((1, "a"))) == CommitResult(duplicates=1)
    assert visible(store) == ["a@2"]


def test_many_concurrent_writers_with_overlapping_rows(store):
    def write(first: int) -> None:
        log = ShardLog(store, 0, 24)
        for position in range(first, first + 30):
            log.commit(outcomes((position, f"id{position % 40}")))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = list(read_entries(store, 0))
    positions = [p for entry in entries for p in entry.rows["position"].to_pylist()]
    assert sorted(positions) == list(range(60))
    lines = visible(store)
    assert len(lines) == len({line.split("@")[0] for line in lines}) == 40


@pytest.mark.parametrize("operation", range(1, 8))
def test_a_restart_finishes_what_was_committed_although_nothing_new_comes(store, operation):
    """Positions in the entry already count as done, so nobody would write to this shard again."""
    with contextlib.suppress(_Killed):
        ShardLog(_KillAt(store, operation, after=True), 0, 24).commit(outcomes((1, "a"), (2, "b")))
    committed = sum(entry.rows.num_rows for entry in read_entries(store, 0))
    assert len(unpublished(store)) == int(committed > len(visible(store)))
    finish_publications(store)
    assert len(visible(store)) == committed
    assert unpublished(store) == []


def test_a_publication_that_fails_is_finished_by_the_next_commit_of_the_same_writer(store):
    class Full(LocalStore):
        failures = 1

        def publish(self, staged, path):
            if self.failures:
                self.failures -= 1
                raise OSError(28, "No space left on device")
            return super().publish(staged, path)

    log = ShardLog(Full(store.root), 0, 24)
    with pytest.raises(OSError, match="No space left"):
        log.commit(outcomes((1, "a")))
    assert visible(store) == []
    assert log.commit(outcomes((1, "a"), (2, "b"))) == CommitResult(visible=1, replays=1)
    assert visible(store) == ["a@1", "b@2"]


def test_a_ledger_that_is_older_than_the_output_is_refused(store):
    ShardLog(store, 0, 24).commit(outcomes((1, "a")))
    (store.root / "_ledger/fates/0000/000000000000.arrow").unlink()
    with pytest.raises(BeamrecError, match="not of the same time"):
        ShardLog(store, 0, 24).commit(outcomes((2, "b")))
    assert visible(store) == ["a@1"]


def test_a_missing_entry_in_the_middle_is_an_error_and_not_a_gap(store):
    log = ShardLog(store, 0, 24)
    for position in range(3):
        log.commit(outcomes((position, str(position))))
    (store.root / "_ledger/fates/0000/000000000001.arrow").unlink()
    with pytest.raises(BeamrecError, match="one is missing"):
        ShardLog(store, 0, 24).refresh()


@settings(max_examples=60, deadline=None)
@given(
    commits=st.lists(
        st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=8),
        min_size=1,
        max_size=12,
    )
)
def test_any_sequence_of_commits_by_new_and_old_writers(tmp_path_factory, commits):
    """Ids are a function of the position (three positions share one), as in a replay."""
    store = LocalStore(tmp_path_factory.mktemp("log"))
    old = ShardLog(store, 0, 24)
    for positions in commits:
        log = old if positions[0][1] else ShardLog(store, 0, 24)
        log.commit(outcomes(*{(p, f"id{p // 3}") for p, _ in positions}))
    seen = {p for positions in commits for p, _ in positions}
    fated = [p for entry in read_entries(store, 0) for p in entry.rows["position"].to_pylist()]
    assert sorted(fated) == sorted(seen)
    ids = [line.split("@")[0] for line in visible(store)]
    assert sorted(ids) == sorted({f"id{p // 3}" for p in seen})
