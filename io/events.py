"""Reading events: what every unbounded source is told, and one transform over all of them.

A source's module (see `io.registry`, kind `events`) has `open_sources(uri, options)`, which returns one
`UnboundedSource` of RAW_EVENTS batches per split, and `identity(uri)`, the text that says which positions
are meant; it is stored with the output and must not change. With `open_interval` (see `io.event_interval`) a
past interval of it can be replayed. Readers derive from `io.reader.LedgerReader`,
which states the rules that they keep.
"""

import dataclasses

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.unbounded_source import ReadFromUnboundedSource, UnboundedSource

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.registry import backend
from beamrec.io.split_source import SplitSource, place

__all__ = ["ReadEvents", "SourceOptions", "identity", "open_sources"]


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """What a source needs to know of the job.

    Attributes:
      output: URI of the output folder, which holds the ledger.
      run: id of this run, new at each start: `request_drain` with it makes the readers report their end, and
        stays in the folder, so a run of the same id would end before it has read anything.
      max_delay_seconds: the watermark is arrival time less this.
      stop_when_idle_seconds: report the end after this long without data; None runs until drained.
      splits: number of readers, fixed for the job.
      batch_rows: most rows in one batch.
      window_seconds: length of the windows that the sink writes; it matters with the next one.
      max_in_flight_mb: most payload of a reader that has no fate yet, before reading pauses [MiB]. None sets
        no bound: what follows need not give fates at all.
      patience_seconds: how long an output that is away is waited for before the job fails.
      written_us: of a folder only what was last written from the one time on and before the other, in
        microseconds since the epoch; None reads all.
    """

    output: str
    run: str
    max_delay_seconds: float = 2.0
    stop_when_idle_seconds: float | None = None
    splits: int = 1
    batch_rows: int = 1000
    window_seconds: int = 60
    max_in_flight_mb: int | None = None
    patience_seconds: float = 300.0
    written_us: tuple[int, int] | None = None


def open_sources(uri: str, options: SourceOptions) -> list[UnboundedSource]:
    """One source a split; raises UsageError for a scheme that is not known or an input that is not there."""
    sources: list[UnboundedSource] = backend("events", uri, "--input").open_sources(uri, options)
    return sources


def identity(uri: str) -> str:
    """What the positions of an input refer to."""
    return str(backend("events", uri, "--input").identity(uri))


@dataclasses.dataclass(eq=False)
class ReadEvents(beam.PTransform):  # type: ignore[misc]
    """Reads RAW_EVENTS batches of all splits.

    One Read for each split: on Flink all splits of one Read run on one subtask (the stage is keyed by
    the source element, which is the same for all of them), and those of several where their keys happen to
    lie; see `io.split_source`.

    Attributes:
      sources: one a split.
      poll_interval: seconds until a source without data is asked again.
      max_read_time_seconds: after which a busy source ends its bundle.
      hold_seconds: how long a bundle waits for data, asking each `poll_interval`; 0 ends it at once.
    """

    sources: list[UnboundedSource]
    poll_interval: float = 0.05
    max_read_time_seconds: float = 0.1
    hold_seconds: float = 0.0

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """-> [RAW_EVENTS]."""
        splits = [SplitSource.of(each, self.poll_interval, self.hold_seconds) for each in self.sources]
        reads = [
            begin
            | f"Split{i}"
            >> ReadFromUnboundedSource(
                split,
                # Where the bundle has waited already, the next one begins at once.
                poll_interval=0 if self.hold_seconds else self.poll_interval,
                max_read_time_seconds=self.max_read_time_seconds,
            )
            for i, split in enumerate(place(splits))
        ]
        # Prism runs a Flatten by itself, between two stages: what is read would wait there for the next one.
        merged = reads[0] if len(reads) == 1 else reads | "Merge" >> beam.Flatten(pipeline=begin.pipeline)
        merged.element_type = pa.RecordBatch
        return merged
