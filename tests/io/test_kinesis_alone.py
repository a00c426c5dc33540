"""The source taken alone, as the README shows it: a stream archived into hourly files, effect once."""

from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beamrec.io.events import ReadEvents, SourceOptions, open_sources
from beamrec.io.ledger import account
from beamrec.io.segments import WriteSegments
from beamrec.io.store import open_store
from beamrec.schemas.events import OUTCOMES
from beamrec.transforms.windows import WindowBatches


def archive(events: pa.RecordBatch) -> pa.RecordBatch:
    """Each record as a line of a file in the hour of its arrival."""
    rows = [
        {
            "source": row["source"],
            "after": row["after"],
            "position": row["position"],
            "event_id": f"{row['source']}@{row['position']}",
            "fate": "visible",
            "folder": f"clicks/{row['arrival']:%Y/%m/%d/%H}",
            "hour": row["arrival"].replace(minute=0, second=0, microsecond=0),
            "line": row["payload"],
        }
        for row in events.to_pylist()
    ]
    return pa.RecordBatch.from_pylist(rows, schema=OUTCOMES)


def run(uri: str, output: str) -> None:
    sources = open_sources(uri, SourceOptions(output, "archive", stop_when_idle_seconds=1.0, splits=2))
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | ReadEvents(sources)
            | beam.Map(archive).with_output_types(pa.RecordBatch)
            | WindowBatches(60)
            | WriteSegments(output)
        )


def test_a_stream_is_archived_and_a_second_run_adds_what_is_new(kinesis: Any, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    sent = [b'{"click": %d}' % number for number in range(900)]
    for part in (sent[:600], sent[600:]):
        kinesis.put(*part)
        run(kinesis.uri(), output)
    lines = [line for path in (tmp_path / "out" / "clicks").rglob("*.jsonl") for line in path.open("rb")]
    assert sorted(lines) == sorted(line + b"\n" for line in sent)
    assert account(open_store(output)).reconciled
