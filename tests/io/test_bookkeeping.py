"""A worker keeps the account's snapshots while the launcher does not, and one worker is enough."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pytest

from beamrec.io import bookkeeping, segments
from beamrec.io.bookkeeping import Bookkeeper
from beamrec.io.lease import Lease, lease_is_held
from beamrec.io.ledger import account
from beamrec.io.shard_log import ShardLog
from beamrec.io.snapshots import newest_account
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import LocalStore, Store, open_store
from beamrec.schemas.errors import BeamrecError
from beamrec.schemas.events import OUTCOMES


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty output folder."""
    return LocalStore(tmp_path)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is due after ten entries."""
    monkeypatch.setattr("beamrec.io.books._SNAPSHOT_ENTRIES", 10)


def write(store: Store, first: int, count: int) -> None:
    """Reads and commits events one by one, an entry of each log for each."""
    sources, log = SourceLog(store), ShardLog(store, 0, 24)
    sources.read()
    for position in range(first + 1, first + count + 1):
        sources.seal([Part("file:a", position - 1, position, 1, 7)])
        log.commit(outcome(position))


def outcome(position: int) -> pa.Table:
    """A visible event that ends there."""
    row = {"source": "file:a", "after": position - 1, "position": position, "event_id": f"e{position}"}
    row |= {"fate": "visible", "folder": "recommendations/a", "hour": 0, "line": json.dumps(row).encode()}
    return pa.Table.from_pylist([row], schema=OUTCOMES)


def test_a_worker_writes_them_where_there_is_no_launcher(store: Store) -> None:
    keeper = Bookkeeper(store)
    for first in (0, 6, 12):
        write(store, first, 6)
        assert keeper.look()
    found = newest_account(store)
    assert found is not None
    assert found.records == sum(found.fates.values()) == 18
    assert len(store.names("_ledger/sources")) == 6, "two snapshots hold the others"
    assert account(store).counts.out == 18
    assert account(store).reconciled
    keeper.close()


def test_it_leaves_them_to_the_launcher_as_long_as_that_lives(store: Store) -> None:
    keeper = Bookkeeper(store)
    with Lease(store, "run"):
        assert lease_is_held(store)
        write(store, 0, 6)
        assert not keeper.look()
        assert newest_account(store) is None
    assert not lease_is_held(store)
    assert keeper.look()
    with Lease(store, "run"):
        assert not keeper.look()
        assert not lease_is_held(store, "_ledger/bookkeeper")
    assert newest_account(store) is not None


def test_a_launcher_that_was_killed_holds_nothing_half_a_minute_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    Lease(store, "run").__enter__()._stopped.set()
    assert lease_is_held(store)
    monkeypatch.setattr("beamrec.io.lease._EXPIRY_SECONDS", -1)
    assert not lease_is_held(store)
    assert Bookkeeper(store).look()


@pytest.mark.parametrize("place", ["tmp_path", "s3", "gcs"])
def test_of_two_workers_one_keeps_them_and_the_other_takes_over(
    request: pytest.FixtureRequest, place: str
) -> None:
    found = request.getfixturevalue(place)
    store = open_store(str(getattr(found, "uri", found)))
    first, second = Bookkeeper(store), Bookkeeper(store)
    assert first.look()
    assert not second.look()
    assert first.look()
    first.close()
    assert second.look()
    assert not first.look()
    second.close()


def test_the_sink_of_any_pipeline_does_it_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(bookkeeping.keep_books, "__defaults__", (0.05,))
    logs = segments._Logs(segments._Sink(store.uri, 1, 24, segments.SegmentFormat(), 1 << 20, 30))
    sources = SourceLog(store)
    deadline, written = time.monotonic() + 300, 0
    while newest_account(store) is None:
        assert time.monotonic() < deadline
        sources.seal([Part("file:a", written, written + 1, 1, 7)])
        written += 1
        logs.commit(0, outcome(written))
    assert account(store).counts.out == written
    del logs
    while lease_is_held(store, "_ledger/bookkeeper"):
        assert time.monotonic() < deadline, "it goes on although its sink is gone"
        time.sleep(0.05)


def test_a_damaged_ledger_is_the_jobs_to_fail_of(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write(store, 0, 3)
    (tmp_path / "_ledger/sources/000000000001.json").write_bytes(b"x")
    with pytest.raises(BeamrecError, match="is damaged"):
        Bookkeeper(store).look()
