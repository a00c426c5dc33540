"""Readers of a Kafka topic, driven as a runner drives them, and what the sink does with their rows."""

import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io.events import SourceOptions
from beamrec.io.kafka import open_sources
from beamrec.io.shard_log import ShardLog
from beamrec.io.store import LocalStore
from beamrec.schemas.events import OUTCOMES

Rows = list[dict[str, Any]]
_SECONDS = 120


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
        table = [
            {
                **{name: row[name] for name in ("source", "after", "position")},
                "event_id": f"{row['source']}{row['position']}",
                "fate": "visible",
                "folder": "recommendations",
                "hour": row["arrival"],
                "line": row["payload"],
            }
            for row in rows
        ]
        ShardLog(self.store, 0, 24).commit(pa.Table.from_pylist(table, schema=OUTCOMES))


@pytest.fixture
def kafka_job(tmp_path: Path) -> Iterator[KafkaJob]:
    """Readers on `tmp_path/out`, closed at the end of the test."""
    made = KafkaJob(tmp_path)
    yield made
    for reader in made.readers:
        reader.close()
