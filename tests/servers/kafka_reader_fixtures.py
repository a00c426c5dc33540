"""Readers of a Kafka topic, driven as a runner drives them, and what the sink does with their rows."""

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.events import SourceOptions
from beamrec.io.kafka import open_sources
from beamrec.io.store import LocalStore

Rows = list[dict[str, Any]]
_SECONDS = 600


def payloads(rows: Rows) -> list[bytes]:
    """Of rows, in their order."""
    return [row["payload"] for row in rows]


def numbers(count: int, first: int = 0) -> list[bytes]:
    """Payloads that differ."""
    return [b"%d" % number for number in range(first, first + count)]


def place(row: dict[str, Any]) -> tuple[int, int]:
    """The interval of a row in its source."""
    return row["after"], row["position"]


class KafkaJob:
    """An output folder and readers that fill it from a topic."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(root / "out")
        self.readers: list[Any] = []

    def reader(self, uri: str, split: int = 0, **options: Any) -> Any:
        """A reader of one split, of a source that has travelled as it does to a worker."""
        sources = open_sources(uri, SourceOptions(str(self.store.root), "run", **options))
        self.readers.append(pickle.loads(pickle.dumps(sources))[split].create_reader(None, None))  # noqa: S301
        return self.readers[-1]

    def read(self, reader: Any, until: Callable[[Rows], Any]) -> Rows:
        """Rows until a condition on them holds."""
        rows: Rows = []
        deadline = time.monotonic() + _SECONDS
        while not until(rows):
            assert time.monotonic() < deadline, f"{len(rows)} rows so far: {rows[-3:]}"
            if reader.advance():
                rows += reader.get_current().to_pylist()
            else:
                time.sleep(0.01)
        return rows

    def all_of(self, reader: Any) -> Rows:
        """Rows until the broker says that these were all that it had when this was called."""
        asked = time.time()

        def heard(_: Rows) -> bool:
            arrival = float(reader.get_watermark()) + reader.options.max_delay_seconds
            return not reader.busy(True) and arrival > asked

        return self.read(reader, heard)

    def fate(self, rows: Rows) -> None:
        """What the sink does with rows that were read."""
        # Here, since modules of fixtures are loaded in any order.
        from outcomes_fixtures import make_visible

        make_visible(self.store, rows)


@pytest.fixture
def kafka_job(tmp_path: Path) -> Iterator[KafkaJob]:
    """Readers on `tmp_path/out`, closed at the end of the test."""
    made = KafkaJob(tmp_path)
    yield made
    for reader in made.readers:
        reader.close()
