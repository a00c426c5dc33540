"""The Kafka source on a real broker: every record once, whatever happens to the broker, the topic or us."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from beamrec.io import kafka as kafka_source
from beamrec.io.events import SourceOptions
from beamrec.io.ledger import account, request_drain
from beamrec.io.shard_log import ShardLog
from beamrec.io.store import LocalStore
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError
from beamrec.schemas.events import OUTCOMES


class Job:
    """An output folder and readers that fill it from a topic."""

    def __init__(self, root: Path) -> None:
        self.store = LocalStore(root / "out")
        self.readers: list[Any] = []

    def reader(self, uri: str, split: int = 0, **options: Any) -> Any:
        source = kafka_source.open_sources(uri, SourceOptions(str(self.store.root), "run", **options))[split]
        self.readers.append(source.create_reader(None, None))
        return self.readers[-1]

    def fate(self, rows: list[dict[str, Any]]) -> None:
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
        import pyarrow as pa

        ShardLog(self.store, 0, 24).commit(pa.Table.from_pylist(table, schema=OUTCOMES))


@pytest.fixture
def job(tmp_path: Path):
    made = Job(tmp_path)
    yield made
    for reader in made.readers:
        reader.close()


def read(
    reader: Any, until: "Callable[[list[dict[str, Any]]], bool]", seconds: float = 60
) -> list[dict[str, Any]]:
    """Rows until a condition holds."""
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    while not until(rows):
        assert time.monotonic() < deadline, f"{len(rows)} rows so far: {rows[-3:]}"
        if reader.advance():
            rows += reader.get_current().to_pylist()
        else:
            time.sleep(0.01)
    return rows


def rows_of(reader: Any, count: int) -> list[dict[str, Any]]:
    """So many rows, and no more of them when the broker has said that this was all."""
    rows = read(reader, lambda rows: len(rows) >= count and not reader.busy(True))
    assert len(rows) == count, payloads(rows)
    return rows


def payloads(rows: list[dict[str, Any]]) -> list[bytes]:
    return [row["payload"] for row in rows]


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(first, first + count)]


def test_records_come_in_order_and_tile_their_partitions(job, kafka):
    topic = kafka.create_topic(2)
    kafka.send(topic, numbers(3), partition=0)
    kafka.send(topic, numbers(2, 10), partition=1)
    rows = rows_of(job.reader(kafka.uri(topic)), 5)
    by_source = {s: [r for r in rows if r["source"] == f"kafka:{topic}/{s}"] for s in (0, 1)}
    assert payloads(by_source[0]) == numbers(3)
    assert payloads(by_source[1]) == numbers(2, 10)
    assert [(r["after"], r["position"]) for r in by_source[0]] == [(0, 1), (1, 2), (2, 3)]
    job.fate(rows)
    assert account(job.store).reconciled


def test_a_restart_leaves_out_what_has_a_fate_and_reads_the_rest_alike(job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(10))
    first = rows_of(job.reader(kafka.uri(topic)), 10)
    job.fate(first[:3] + first[5:7])
    again = rows_of(job.reader(kafka.uri(topic)), 5)
    assert again == first[3:5] + first[7:]
    job.fate(again)
    kafka.send(topic, [b"new"])
    assert payloads(rows_of(job.reader(kafka.uri(topic)), 1)) == [b"new"]
