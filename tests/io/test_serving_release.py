"""Which release a worker serves while the active one is prepared, cannot be, or goes away."""

import threading
import time
from collections.abc import Callable

import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_gc import Keep
from beamrec.io.serving_release import Prepare, ServingRelease
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ActiveRelease, ReleaseContents

A, B, C = (f"20261122T1200-0000000{letter}" for letter in "abc")


@pytest.fixture
def loaded(store: ReleaseStore, make_release: Callable[..., ReleaseContents]) -> ReleaseStore:
    """A store with two releases, of which the first is active."""
    for number, name in enumerate((A, B)):
        store.load(make_release(name, seed=number))
    store.promote(A, "test")
    return store


def serving(store: ReleaseStore, prepare: Prepare | None, retry_seconds: float = 30.0) -> ServingRelease:
    def active() -> ActiveRelease:
        found = store.active()
        assert found is not None
        return found

    return ServingRelease(active, store.release, prepare, retry_seconds)


def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def holding_back(go_on: threading.Event, prepared: list[str]) -> Prepare:
    """Prepares the second release only once it may."""

    def prepare(release: ActiveRelease) -> None:
        if release.id == B:
            go_on.wait(300)
        prepared.append(release.id)

    return prepare


def test_the_old_release_serves_until_the_new_one_is_prepared(loaded: ReleaseStore) -> None:
    go_on, prepared = threading.Event(), []
    worker = serving(loaded, holding_back(go_on, prepared))
    assert worker.current().id == A
    loaded.promote(B, "test")
    assert [worker.current().id for _ in range(3)] == [A, A, A]
    go_on.set()
    until(lambda: worker.current().id == B)
    loaded.rollback()
    assert worker.current().id == A, "it is prepared still"
    assert prepared == [A, B]
    assert worker.take_failures() == 0


def test_a_release_that_is_prepared_too_late_does_not_serve(loaded: ReleaseStore) -> None:
    go_on, prepared = threading.Event(), []
    worker = serving(loaded, holding_back(go_on, prepared))
    worker.current()
    loaded.promote(B, "test")
    worker.current()
    loaded.rollback()
    go_on.set()
    until(lambda: B in prepared)
    assert [worker.current().id for _ in range(3)] == [A, A, A]


def test_a_release_that_cannot_be_prepared_is_counted_and_tried_again(
    loaded: ReleaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def prepare(release: ActiveRelease) -> None:
        if release.id == B and broken:
            raise OSError("no such folder")

    worker = serving(loaded, prepare, retry_seconds=0.05)
    assert worker.current().id == A
    loaded.promote(B, "test")
    assert worker.current().id == A
    until(lambda: worker.take_failures() > 0)
    assert worker.current().id == A
    assert f"release {B} is active but cannot serve here (no such folder); {A} goes on serving" in caplog.text
    broken = False
    until(lambda: worker.current().id == B)


def test_a_release_that_failed_is_left_alone_for_a_while_and_a_rollback_ends_it(loaded: ReleaseStore) -> None:
    tried = []

    def prepare(release: ActiveRelease) -> None:
        tried.append(release.id)
        if release.id == B:
            raise OSError

    worker = serving(loaded, prepare)
    worker.current()
    loaded.promote(B, "test")
    worker.current()
    until(lambda: worker.take_failures() == 1)
    assert [worker.current().id for _ in range(5)] == [A] * 5
    assert tried == [A, B]
    loaded.promote(A, "test")
    assert worker.current().id == A


def test_the_first_release_must_be_prepared(loaded: ReleaseStore) -> None:
    def prepare(release: ActiveRelease) -> None:
        raise UsageError("of another shop")

    worker = serving(loaded, prepare)
    for _ in range(2):
        with pytest.raises(UsageError, match="of another shop"):
            worker.current()


def test_a_release_that_left_the_store_serves_no_longer(
    loaded: ReleaseStore, make_release: Callable[..., ReleaseContents]
) -> None:
    release = threading.Event()

    def prepare(wanted: ActiveRelease) -> None:
        if wanted.id == C and threading.current_thread() is not threading.main_thread():
            release.wait(300)

    worker = serving(loaded, prepare)
    assert worker.current().id == A
    loaded.load(make_release(C, seed=2))
    for name in (B, C):
        loaded.promote(name, "test")
    assert A in loaded.collect(Keep(newest=1)).dropped
    assert worker.current().id == C
    release.set()
