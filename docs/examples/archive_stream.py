"""Archives a Kinesis stream or a Kafka topic into hourly files: each record once, whatever is killed.

    python docs/examples/archive_stream.py 'kinesis://clicks?region=eu-west-1' /data/clicks
    python docs/examples/archive_stream.py 'kafka://localhost:9092/clicks' s3://lake/clicks --splits=4

Begun again, it goes on where it stopped, which the ledger in the output folder knows. With `&end=` in the URI
it ends there. What the script does not know goes to Beam.
"""

import argparse
import uuid

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beamrec.io.events import ReadEvents, SourceOptions, open_sources
from beamrec.io.segments import WriteSegments
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


def main() -> None:
    """Reads until the end that the URI names, or for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stream")
    parser.add_argument("output")
    parser.add_argument("--splits", type=int, default=2)
    args, beam_args = parser.parse_known_args()
    # A new one at each start: whoever drains a run (`io.ledger.request_drain`) means that run for ever.
    run = f"archive-{uuid.uuid4().hex}"
    sources = open_sources(args.stream, SourceOptions(args.output, run, splits=args.splits))
    with beam.Pipeline(options=PipelineOptions(["--runner=PrismRunner", *beam_args])) as pipeline:
        _ = (
            pipeline
            | ReadEvents(sources)
            | beam.Map(archive).with_output_types(pa.RecordBatch)
            | WindowBatches(60)
            | WriteSegments(args.output)
        )


if __name__ == "__main__":
    main()
