"""The runner's own floor: the same topic through two stages of one Beam job on Prism that do nothing.

Read, Reshuffle, and a second stage that notes when each probe came; what Beam and Prism cost at a rate,
without any work. Ends at SIGINT, and writes `OUTPUT/seen.jsonl`: an event's id and its moment, a line each.
"""

import argparse
import json
import re
import signal
import threading
import time
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import ReadEvents, SourceOptions, open_sources
from beamrec.io.ledger import request_drain
from beamrec.io.store import open_store
from beamrec.runners.preset import launch

_PROBE = re.compile(rb'"event_id": "([^"]*0)"')


class _Note(beam.DoFn):
    def __init__(self, path: str) -> None:
        self._path = path

    def setup(self) -> None:
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  (closed by teardown)

    def teardown(self) -> None:
        self._file.close()

    def process(self, batch: pa.RecordBatch) -> None:
        now = time.time()
        ids = (_PROBE.search(payload) for payload in batch.column("payload").to_pylist())
        lines = [json.dumps([found.group(1).decode(), now]) for found in ids if found]
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()


def main() -> None:
    """Runs until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--output", required=True, type=Path)
    values = parser.parse_args()
    values.output.mkdir(parents=True, exist_ok=True)
    store, stopped = open_store(str(values.output)), threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    options = SourceOptions(str(values.output), "floor")
    sources = open_sources(f"kafka://{values.bootstrap}/{values.topic}", options)
    with launch("prism", []) as (preset, args):
        pipeline = beam.Pipeline(options=PipelineOptions(args))
        _ = (
            pipeline
            | ReadEvents(sources, *preset.read.parts)
            | beam.Reshuffle()
            | beam.ParDo(_Note(str(values.output / "seen.jsonl")))
        )
        result = pipeline.run()
        stopped.wait()
        request_drain(store, "floor")
        threading.Thread(target=result.wait_until_finish, daemon=True).start()
        time.sleep(3)


if __name__ == "__main__":
    main()
