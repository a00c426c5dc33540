"""Snapshots: nobody has to read a log from its beginning, and nothing changes by that."""

import random
from datetime import timedelta
from pathlib import Path

import pytest
from outcomes_fixtures import HOUR, outcomes

from beamrec.io.books import Books
from beamrec.io.ledger import Progress, Tally, account
from beamrec.io.shard_log import CommitResult, ShardLog, finish_publications, read_entries
from beamrec.io.snapshots import newest_account, newest_shard, remove_behind
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError

EVERY = 4


def log_of(store: LocalStore, shard: int = 0, horizon: int = 24) -> ShardLog:
    return ShardLog(store, shard, horizon, snapshot_entries=EVERY)


def entry_names(store: LocalStore, folder: str = "fates/0000") -> list[str]:
    return store.names(f"_ledger/{folder}")


def snapshot(store: LocalStore) -> None:
    """Of the account, whether it is due or not."""
    books = Books(store)
    books.update()
    books.save()


def fill(store: LocalStore, log: ShardLog, first: int, count: int) -> None:
    """Seals and commits `count` events one by one, and takes a snapshot of the account now and then."""
    sources = SourceLog(store)
    sources.read()
    for position in range(first, first + count):
        sources.seal([Part("file:a", position - 1, position, 1, 7, f"tail{position}")])
        log.commit(outcomes(("file:a", position, f"id{position}")))
        if position % EVERY == 0:
            snapshot(store)


def visible(store: LocalStore) -> list[str]:
    files = sorted((store.root / "recommendations").rglob("*.jsonl"))
    return [line for path in files for line in path.read_text().splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_entries_behind_two_snapshots_go_and_nothing_is_forgotten(store):
    fill(store, log_of(store), 1, 20)
    before, progress = account(store), Progress.load(store)
    assert remove_behind(store)
    assert entry_names(store)[0] == "000000000016.arrow"
    assert entry_names(store, "sources")[0] == "000000000016.json"
    assert len(store.names("_ledger/snapshots/account")) == 2
    assert len(store.names("_ledger/snapshots/fates/0000")) == 2
    assert remove_behind(store) == 0
    assert account(store) == before
    assert before.reconciled
    assert Progress.load(store) == progress == {"file:a": Progress(20, frozenset())}
    again = log_of(store).commit(outcomes(("file:a", 2, "id2"), ("file:b", 1, "id3"), ("file:b", 2, "x")))
    assert again == CommitResult(visible=1, duplicates=1, replays=1)


def test_the_source_log_gives_the_last_part_of_each_source_and_all_that_is_unfinished(store):
    log, sources = log_of(store), SourceLog(store)
    for source in ("file:a", "file:b"):
        for position in (1, 2, 3):
            sources.seal([Part(source, position - 1, position, 1, position)])
    log.commit(
        outcomes(*(("file:a", position, f"a{position}") for position in (1, 2, 3)), ("file:b", 1, "b1"))
    )
    snapshot(store)
    found = SourceLog(store).read()
    assert found == [Part("file:a", 2, 3, 1, 3), Part("file:b", 1, 2, 1, 2), Part("file:b", 2, 3, 1, 3)]
    assert account(store).faults == ("file:b: no fate for (1, 3]",)


def test_a_source_that_begins_anywhere_or_has_no_fate_yet_survives_a_snapshot(store):
    sources = SourceLog(store)
    sources.seal([Part("kafka:t/0", 1000, 1000, 0, 1, "latest"), Part("kafka:t/1", 5, 9, 4, 1)])
    snapshot(store)
    assert Progress.load(store) == {}
    assert [part.source for part in SourceLog(store).read()] == ["kafka:t/0", "kafka:t/1"]
    assert SourceLog(store).seal([Part("kafka:t/0", 1000, 1001, 1, 2)])
    log_of(store).commit(outcomes(("kafka:t/0", 1001, "a")))
    assert Progress.load(store) == {"kafka:t/0": Progress(1001, frozenset())}
    assert account(store).faults == ("kafka:t/1: no fate for (5, 9]",)


def test_gaps_and_overlaps_are_found_across_snapshots(store):
    SourceLog(store).seal([Part("file:a", 0, 9, 9, 1)])
    log_of(store).commit(outcomes(*(("file:a", p, f"id{p}") for p in (1, 2, 4))))
    snapshot(store)
    # Another shard: up to the floor it knows what has a fate, beyond it cannot.
    result = log_of(store, 1).commit(outcomes(("file:a", 2, "x"), ("file:a", 4, "y"), ("file:a", 5, "z")))
    assert result == CommitResult(visible=2, replays=1)
    snapshot(store)
    assert account(store).faults == (
        "file:a: no fate for (2, 3]",
        "file:a: no fate for (5, 9]",
        "file:a: more than one fate for (3, 4]",
    )


def test_an_old_folder_gets_snapshots_where_it_stands(store):
    plain = ShardLog(store, 0, 24)
    fill(store, plain, 1, 3)
    fill(store, log_of(store), 4, 9)
    remove_behind(store)
    assert account(store).counts.out == account(store).counts.records_in == 12


@pytest.mark.parametrize("steps", [1, 6, 12])
def test_a_writer_that_slept_through_a_removal_begins_again(store, steps):
    """The number that it would take is free again, and what it would write must not become visible."""
    sleeper = log_of(store)
    fill(store, sleeper, 1, steps)
    fill(store, log_of(store), steps + 1, 40)
    remove_behind(store)
    assert f"{steps:012d}.arrow" not in entry_names(store)
    result = sleeper.commit(outcomes(("file:a", 30, "id30"), ("file:b", 1, "id31"), ("file:b", 2, "new")))
    assert result == CommitResult(visible=1, duplicates=1, replays=1)
    assert entry_names(store)[-1] == f"{steps + 40:012d}.arrow"
    assert f"{steps:012d}.arrow" not in entry_names(store)
    assert store.names("_ledger/staged") == []
    lines = visible(store)
    assert len(lines) == len(set(lines)) == steps + 41


def test_a_reader_of_a_source_that_slept_through_a_removal_begins_again(store):
    sleeper = SourceLog(store)
    sleeper.seal([Part("file:z", 0, 5, 1, 1)])
    fill(store, log_of(store), 1, 20)
    remove_behind(store)
    assert "000000000001.json" not in entry_names(store, "sources")
    assert sleeper.seal([Part("file:z", 5, 9, 1, 2)]) == [Part("file:z", 5, 9, 1, 2)]
    assert entry_names(store, "sources")[-1] == "000000000021.json"
    assert account(store).faults == ("file:z: no fate for (0, 9]",)


def test_a_void_entry_of_a_writer_that_died_is_never_read_nor_published(store):
    fill(store, log_of(store), 1, 20)
    remove_behind(store)
    other = LocalStore(store.root / "elsewhere")
    log_of(other).commit(outcomes(("file:x", 1, "void")))
    (segment,) = next(read_entries(other, 0)).segments
    staged = other.root / segment.path
    (store.root / "_ledger/staged").mkdir(exist_ok=True)
    staged.rename(store.root / segment.staged)
    (other.root / "_ledger/fates/0000/000000000000.arrow").rename(
        store.root / "_ledger/fates/0000/000000000000.arrow"
    )
    finish_publications(store)
    assert account(store).counts.out == 20
    assert log_of(store).commit(outcomes(("file:x", 1, "void"))).visible == 1
    assert visible(store).count("void@1") == 1


@pytest.mark.parametrize("damage", [b"", b"garbage"])
@pytest.mark.parametrize("kind", ["account", "fates/0000"])
def test_a_damaged_snapshot_names_the_file(store, kind, damage):
    fill(store, log_of(store), 1, 8)
    newest = max((store.root / "_ledger/snapshots" / kind).iterdir())
    newest.write_bytes(damage)
    with pytest.raises(BeamrecError, match=rf"snapshots/{kind}/\S+\.arrow is damaged"):
        log_of(store).refresh()


@pytest.mark.parametrize("folder", ["fates/0000", "sources"])
def test_a_missing_entry_beyond_a_snapshot_is_an_error(store, folder):
    fill(store, log_of(store), 1, 11)
    names = sorted((store.root / "_ledger" / folder).iterdir())
    names[9].unlink()
    assert any("is missing" in fault for fault in account(store).faults)
    with pytest.raises(BeamrecError, match="one is missing"):
        log_of(store).refresh() if folder != "sources" else SourceLog(store).read()


def test_entries_that_went_without_their_snapshots_are_missed(store):
    fill(store, log_of(store), 1, 20)
    remove_behind(store)
    for path in (store.root / "_ledger/snapshots").rglob("*.arrow"):
        path.unlink()
    with pytest.raises(BeamrecError, match="one is missing"):
        log_of(store).refresh()
    with pytest.raises(BeamrecError, match="one is missing"):
        SourceLog(store).read()
    assert not account(store).reconciled


def test_a_shards_snapshot_is_refused_without_that_of_the_account_that_it_rests_on(store):
    fill(store, log_of(store), 1, 9)
    assert newest_shard(store, 0) is not None
    fill(store, log_of(store), 10, 8)
    for path in (store.root / "_ledger/snapshots/account").iterdir():
        path.unlink()
    with pytest.raises(BeamrecError, match=r"it rests on \S+, which is missing"):
        log_of(store).refresh()


def test_the_tally_writes_snapshots_when_they_are_due(store, monkeypatch):
    monkeypatch.setattr("beamrec.io.books._SNAPSHOT_ENTRIES", 10)
    tally, log, sources = Tally(store), log_of(store), SourceLog(store)
    for position in range(1, 31):
        sources.seal([Part("file:a", position - 1, position, 1, 7)])
        log.commit(outcomes(("file:a", position, f"id{position}")))
        counts = tally.update()
        assert counts.out == counts.records_in == position
    found = newest_account(store)
    assert found is not None
    assert found.sources_next == found.shards[0] == 30
    assert len(entry_names(store)) < 30


def test_any_history_of_writers_snapshots_and_removals_gives_the_same_account(store):
    """Beside it a folder that never has a snapshot: both agree on every commit."""
    draw = random.Random(11)
    plain = LocalStore(store.root.with_name("plain"))
    writers = [log_of(store) for _ in range(3)]
    reference = ShardLog(plain, 0, 24)
    top = 0
    for step in range(120):
        rows = {(f"file:{p % 3}", p // 3 + 1, f"id{p % 50}") for p in draw.choices(range(top, top + 9), k=5)}
        hour = HOUR + timedelta(hours=step // 12)
        fate = draw.choice(["visible", "visible", "dead_letter"])
        wanted = reference.commit(outcomes(*sorted(rows), fate=fate, hour=hour))
        if draw.random() < 0.2:
            writers[draw.randrange(3)] = log_of(store)
        assert draw.choice(writers).commit(outcomes(*sorted(rows), fate=fate, hour=hour)) == wanted
        if draw.random() < 0.2:
            snapshot(store)
        if draw.random() < 0.2:
            remove_behind(store)
        top += draw.randrange(4)
    assert len(entry_names(store)) < len(entry_names(plain))
    assert account(store).counts == account(plain).counts
    assert Progress.load(store) == Progress.load(plain)
    assert sorted(visible(store)) == sorted(visible(plain))
