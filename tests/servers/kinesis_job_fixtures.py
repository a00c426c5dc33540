"""A Kinesis stream, an output folder, and readers of all splits on them, driven as a runner drives them."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from beamrec.io.events import SourceOptions
from beamrec.io.kinesis import open_sources
from beamrec.io.ledger import account
from beamrec.io.store import LocalStore

_WAIT_SECONDS = 600  # only a failure waits so long

Row = dict[str, Any]


class KinesisJob:
    """Readers of one stream that keep their ledger in one output folder.

    Attributes:
      seen: every row that was ever emitted, by source and position.
    """

    def __init__(self, server: Any, root: Path) -> None:
        self.server = server
        self.store = LocalStore(root / "out")
        self.readers: list[Any] = []
        self.seen: dict[tuple[str, int], Row] = {}

    def start(self, splits: int = 1, uri: dict[str, Any] | None = None, **options: Any) -> None:
        """New readers; those before are gone as after a kill: what they emitted has no fate."""
        self.stop()
        source_options = SourceOptions(str(self.store.root), "run", splits=splits, **options)
        sources = open_sources(self.server.uri(**(uri or {})), source_options)
        self.readers = [source.create_reader(None, None) for source in sources]

    def stop(self) -> None:
        """Ends the readers' threads."""
        for reader in self.readers:
            reader.close()
        self.readers = []

    def poll(self) -> list[Row]:
        """What is there now; a position always has the same record and arrival."""
        rows: list[Row] = []
        for reader in self.readers:
            while reader.advance():
                rows += reader.get_current().to_pylist()
        for row in rows:
            before = self.seen.setdefault((row["source"], row["position"]), row)
            if self.server.kind == "plain moto":
                # A split there gives what the parent holds new arrival times.
                row["arrival"] = before["arrival"]
            assert before == row
        return rows

    def read(self, count: int, quiet_seconds: float = 0.5) -> list[Row]:
        """At least that many rows, and what else comes soon."""
        rows = self.wait(lambda rows: len(rows) >= count)
        until = time.monotonic() + quiet_seconds
        while time.monotonic() < until:
            rows += self.poll()
            time.sleep(0.01)
        return rows

    def wait(self, condition: Callable[[list[Row]], Any]) -> list[Row]:
        """Polls until something holds of the rows that have come; returns them."""
        rows: list[Row] = []
        deadline = time.monotonic() + _WAIT_SECONDS
        while not condition(rows):
            assert time.monotonic() < deadline, f"waited in vain; {len(rows)} rows came"
            rows += self.poll()
            time.sleep(0.01)
        return rows

    def finish(self) -> list[Row]:
        """Reads until every reader reports its end."""
        return self.wait(lambda _: all(r.get_watermark() == MAX_TIMESTAMP for r in self.readers))

    def fate(self, rows: Sequence[Row]) -> None:
        """What the sink does with rows that were read."""
        # Here, since modules of fixtures are loaded in any order.
        from outcomes_fixtures import make_visible

        make_visible(self.store, rows)

    def fated(self) -> int:
        """How many records have a fate."""
        return account(self.store).counts.out

    def check(self, sent: Sequence[bytes]) -> None:
        """Every record was read once, and each has its fate."""
        assert sorted(row["payload"] for row in self.seen.values()) == sorted(sent)
        found = account(self.store)
        assert found.reconciled, found
        assert found.counts.records_in == found.counts.out == len(sent)


@pytest.fixture
def kinesis_jobs(tmp_path: Path) -> Iterator[Callable[[Any], KinesisJob]]:
    """`kinesis_jobs(server)`: a job on that server's stream; its readers are stopped at the end."""
    jobs: list[KinesisJob] = []

    def make(server: Any) -> KinesisJob:
        jobs.append(KinesisJob(server, tmp_path))
        return jobs[-1]

    yield make
    for job in jobs:
        job.stop()


@pytest.fixture
def kinesis_job(kinesis: Any, kinesis_jobs: Callable[[Any], KinesisJob]) -> KinesisJob:
    """A job on each server in turn."""
    return kinesis_jobs(kinesis)
