"""The account: in is counted at the source, fates at the sink, and gaps and overlaps are found."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from beamrec.io.lease import Lease
from beamrec.io.ledger import Progress, Settings, Tally, account, fix_settings
from beamrec.io.shard_log import ShardLog
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import OUTCOMES


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def commit(store: LocalStore, shard: int, *intervals: tuple[int, int], fate: str = "visible") -> None:
    hour = datetime(2026, 11, 22, 7, tzinfo=UTC)
    rows = [
        {
            "source": "file:a",
            "after": after,
            "position": position,
            "event_id": f"{after}-{position}",
            "fate": fate,
            "folder": "recommendations",
            "hour": hour,
            "line": b"x",
        }
        for after, position in intervals
    ]
    ShardLog(store, shard, 24).commit(pa.Table.from_pylist(rows, schema=OUTCOMES))


def read(store: LocalStore, after: int, position: int, records: int) -> None:
    SourceLog(store).seal([Part("file:a", after, position, records, 0)])


def test_a_tiled_source_is_reconciled_across_shards(store):
    read(store, 0, 30, 3)
    commit(store, 0, (0, 10), (20, 30))
    commit(store, 1, (10, 20), fate="dead_letter")
    found = account(store)
    assert found.reconciled
    assert (found.counts.records_in, found.counts.out, found.counts.dead_letters) == (3, 2, 1)
    assert Tally(store).update() == found.counts


def test_a_gap_and_an_overlap_are_faults_even_if_the_sums_agree(store):
    read(store, 0, 30, 3)
    commit(store, 0, (0, 10), (20, 30))
    commit(store, 1, (0, 12))
    found = account(store)
    assert found.counts.reconciled
    assert not found.reconciled
    assert any("no fate" in fault for fault in found.faults)
    assert any("more than one fate" in fault for fault in found.faults)


def test_what_was_read_and_has_no_fate_yet_is_a_gap_at_the_end(store):
    read(store, 0, 30, 3)
    commit(store, 0, (0, 10))
    assert account(store).faults == ("file:a: no fate for (10, 30]",)


def test_progress_resumes_at_the_lowest_position_without_a_fate(store):
    commit(store, 0, (0, 10), (20, 30))
    commit(store, 1, (40, 50))
    assert Progress.load(store) == {"file:a": Progress(10, frozenset({30, 50}))}
    commit(store, 1, (10, 20))
    assert Progress.load(store) == {"file:a": Progress(30, frozenset({50}))}


def test_of_two_readers_of_one_place_the_first_holds(store):
    first, second, other = (
        Part("file:a", 0, 30, 3, 1),
        Part("file:a", 0, 50, 5, 2),
        Part("file:b", 0, 9, 1, 2),
    )
    assert SourceLog(store).seal([first]) == [first]
    assert SourceLog(store).seal([second, other]) == [first, other]
    assert SourceLog(store).read() == [first, other]


def test_a_reader_that_loses_the_race_adopts_what_the_winner_wrote(store):
    first, second = Part("file:a", 0, 30, 3, 1), Part("file:a", 0, 50, 5, 2)

    class Slow(LocalStore):
        def create(self, path, data):
            if not store.names("_ledger/sources"):
                SourceLog(store).seal([first])
            return super().create(path, data)

    assert SourceLog(Slow(store.root)).seal([second]) == [first]


def test_a_source_may_begin_anywhere(store):
    read(store, 1000, 1030, 3)
    commit(store, 0, (1000, 1010))
    assert Progress.load(store) == {"file:a": Progress(1010, frozenset())}
    commit(store, 0, (1010, 1030))
    assert account(store).faults == ()


def test_recommendations_without_a_ledger_are_refused(store):
    store.create("recommendations/part-0000-0000000000.jsonl", b"{}")
    with pytest.raises(UsageError, match="no ledger"):
        fix_settings(store, Settings(8, "/in", None, "classicmodels"))


@pytest.mark.parametrize("damage", [b"", b"garbage", b'{"a": 1}'])
def test_a_damaged_ledger_names_the_file(store, damage):
    read(store, 0, 10, 1)
    commit(store, 0, (0, 10))
    entry = store.root / "_ledger/fates/0000/000000000000.arrow"
    (entry.parent / ".nfs0001").write_bytes(b"")
    (entry.parent.parent / ".DS_Store").write_bytes(b"")
    assert account(store).reconciled, "stray files are not entries"
    entry.write_bytes(damage)
    with pytest.raises(BeamrecError, match=r"fates/0000/000000000000\.arrow is damaged"):
        account(store)
    part = store.root / "_ledger/sources/000000000000.json"
    part.write_bytes(damage)
    with pytest.raises(BeamrecError, match=r"sources/000000000000\.json is damaged"):
        SourceLog(store).read()


def test_an_unreadable_lease_counts_by_its_age(store):
    store.create("_ledger/lease/00000000.json", b"")
    with pytest.raises(UsageError, match="is writing"), Lease(store, "next"):
        pass
    path = store.root / "_ledger/lease/00000000.json"
    os.utime(path, (time.time() - 60, time.time() - 60))
    with Lease(store, "next"):
        pass


def test_settings_of_an_output_folder_cannot_change(store):
    settings = Settings(8, "/in", None, "classicmodels")
    fix_settings(store, settings)
    fix_settings(store, settings)
    with pytest.raises(UsageError, match="begun with shards = 8 and cannot go on with 4"):
        fix_settings(store, Settings(4, "/in", None, "classicmodels"))


def test_one_job_at_a_time(store):
    with (
        Lease(store, "first"),
        pytest.raises(UsageError, match=r"run first .* is writing"),
        Lease(store, "second"),
    ):
        pass
    with Lease(store, "third"):
        pass


def test_a_lease_of_a_dead_process_is_taken_over_at_once(store):
    import multiprocessing

    def hold_and_die() -> None:
        import os

        Lease(store, "dead").__enter__()
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=hold_and_die)
    process.start()
    process.join()
    with Lease(store, "next"):
        assert store.names("_ledger/lease")[-1] == "00000001.json"
