"""A serving database of a job's own, on a server that may be stopped and spoilt."""

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from postgresql_fixtures import PostgreSQL

_DATABASE = "serving"


@dataclasses.dataclass(frozen=True)
class Serving:
    """The serving database of a job, with the release of the trained shop."""

    server: "PostgreSQL"
    uri: str

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements as the superuser in the database; returns the last one's rows."""
        return self.server.execute(*statements, database=_DATABASE)

    def served_at(self) -> dict[str, tuple[str, float]]:
        """Customer → (id of the event, when its row was committed)."""
        rows = self.execute(
            "SELECT customer_id, event_id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) "
            "FROM beamrec.recommendations_latest"
        )
        return {customer: (event, float(at)) for customer, event, at in rows}

    def wait_until_served(self, clicks: Any, job: Any, seconds: float) -> float:
        """Until what is sent now is served, while the job runs; returns how long that took."""
        began = time.monotonic()
        wanted = len(clicks.sent) - 1
        customer = str(clicks.sent[wanted - 1 + wanted % 2].customer)  # one of its own
        query = f"SELECT 1 FROM beamrec.recommendations_latest WHERE customer_id = '{customer}'"  # noqa: S608
        while not self.execute(query):
            assert job.running, job.log.read_text()[-3000:]
            assert time.monotonic() - began < seconds, job.log.read_text()[-3000:]
            time.sleep(0.2)
        return time.monotonic() - began

    def disconnect(self) -> None:
        """Ends the connections of all others."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.fixture
def serving_database(
    unsteady_postgresql: "PostgreSQL",
    trained: Any,
    command_line: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    source_password: str,
) -> Serving:
    """A database of the test's own on a server that may be stopped."""
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    name = unsteady_postgresql.create_database(_DATABASE)
    unsteady_postgresql.execute("CREATE EXTENSION vector", database=name)
    uri = unsteady_postgresql.uri(name)
    for verb in ("load", "promote"):
        done = command_line("release", verb, trained.release, f"--vector-db={uri}", home=trained.home)
        assert done["ok"], done
    return Serving(unsteady_postgresql, uri)
