"""The streaming job on a database that is there and refuses: waited out, or told loudly; nothing lost."""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from serving_fixtures import Serving

from beamrec.io.ledger import account
from beamrec.io.store import LocalStore

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RATE = 20
SECONDS = 5 if SHORT else 40
OPTIONS = ("--window-seconds=2", "--max-delay=1")
WAIT_SECONDS = 900  # only a failure waits so long

Trouble = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture
def password_file(tmp_path: Path, source_password: str) -> Path:
    """Where the job reads the password of its database."""
    path = tmp_path / "password"
    path.write_text(source_password)
    return path


@pytest.fixture
def troubles(serving_database: Serving, password_file: Path, small_disk: Any) -> dict[str, Trouble]:
    """Contexts in which the database refuses, by what the job's log says of it."""
    server, old = serving_database.server, password_file.read_text()

    @contextlib.contextmanager
    def no_slots() -> Iterator[None]:
        options = {"host": "127.0.0.1", "port": server.port, "dbname": "postgres", "user": "reader"}
        with contextlib.ExitStack() as stack:
            # The job connects again at once: until it has lost the race.
            while True:
                with contextlib.suppress(psycopg2.OperationalError):
                    while True:
                        connection = psycopg2.connect(**options, password=old)
                        stack.enter_context(contextlib.closing(connection))
                if not server.execute("SELECT 1 FROM pg_stat_activity WHERE usename = 'shop'"):
                    break
                serving_database.disconnect()
            yield

    @contextlib.contextmanager
    def read_only() -> Iterator[None]:
        serving_database.execute("ALTER DATABASE serving SET default_transaction_read_only = on")
        serving_database.disconnect()
        yield
        set_back = "ALTER DATABASE serving RESET default_transaction_read_only"
        serving_database.execute("SET default_transaction_read_only = off", set_back)

    @contextlib.contextmanager
    def rotated() -> Iterator[None]:
        server.execute("ALTER ROLE shop PASSWORD 'the new one'")
        serving_database.disconnect()
        yield
        password_file.write_text("the new one")

    @contextlib.contextmanager
    def full_disk() -> Iterator[None]:
        place = server.folder.parent / "small"
        disk = small_disk(place, 64, like=server.folder)
        serving_database.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        serving_database.execute("ALTER TABLE beamrec.recommendations_latest SET TABLESPACE small")
        disk.fill()
        yield
        disk.empty()

    return {
        "slots|too many clients": no_slots,
        "read-only transaction": read_only,
        "password authentication failed": rotated,
        "No space left|could not extend": full_disk,
    }


def check(job: Any, clicks: Any, serving: Serving) -> None:
    """Every event has one record, none is a dead letter, and each customer is served its newest event."""
    counted = collections.Counter(record["event_id"] for _, record in job.visible())
    assert counted == {f"e{event.number}": 1 for event in clicks.sent}
    assert job.errors() == []
    found = account(LocalStore(job.output))
    assert found.reconciled, found
    assert {customer: event for customer, (event, _) in serving.served_at().items()} == clicks.newest()


def test_what_passes_is_waited_out(
    serving_database: Serving,
    troubles: dict[str, Trouble],
    password_file: Path,
    source_password: str,
    stream_job: Callable[..., Any],
    stream_load: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BEAMREC_VECTOR_DB_PASSWORD")
    job = stream_job(
        *OPTIONS, f"--vector-db={serving_database.uri}", f"--vector-db-secret=file://{password_file}"
    ).start()
    clicks = stream_load("clicks", job.input, RATE)
    try:
        job.wait_for(1, WAIT_SECONDS)
        for says, trouble in troubles.items():
            before = len(job.log.read_text())
            with trouble():
                wait_until_told(job, says, before)
                time.sleep(SECONDS)
                assert job.running, job.log.read_text()[-3000:]
            seconds = serving_database.wait_until_served(clicks, job, WAIT_SECONDS)
            print(f"{says}: served again {seconds:.1f} s after it was over")
        clicks.stop()
        serving_database.wait_until_served(clicks, job, WAIT_SECONDS)
    finally:
        serving_database.server.execute(f"ALTER ROLE shop PASSWORD '{source_password}'")
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    assert job.interrupt()["ok"], job.log.read_text()[-3000:]
    check(job, clicks, serving_database)


def wait_until_told(job: Any, says: str, begin: int) -> None:
    """Until the log has one of the words, beyond a place."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(word in job.log.read_text()[begin:] for word in says.split("|")):
        assert job.running, job.log.read_text()[-3000:]
        assert time.monotonic() < deadline, job.log.read_text()[-3000:]
        time.sleep(0.2)
