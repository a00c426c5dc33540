"""The unbounded pipeline: click stream in, recommendations out (hourly files and serving table)."""

import dataclasses
import json
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import ReadEvents, SourceOptions, identity, open_sources
from beamrec.io.lease import Lease
from beamrec.io.ledger import Settings, account, fix_settings
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import resolve_uri
from beamrec.io.registry import scheme_of
from beamrec.io.release_folders import FetchRelease
from beamrec.io.retrieval import EnrichFromPgvector, Retrieval, SearchItems, UpsertServing
from beamrec.io.segment_files import FORMATS, FileFormat, SegmentFormat
from beamrec.io.segments import WriteSegments
from beamrec.io.session_history import SessionHistory
from beamrec.io.shard_log import finish_publications
from beamrec.io.sinks import open_sink
from beamrec.io.store import clean_staged, open_store, with_beam_options
from beamrec.model.handler import TwoTowerHandler
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.job import run_job
from beamrec.pipelines.verb_options import VerbOptions
from beamrec.runners.preset import ReadSettings, launch
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.events import event_schema
from beamrec.schemas.paths import PartitionStyle
from beamrec.schemas.records import record_schema
from beamrec.schemas.shop import Shop, load_shop
from beamrec.schemas.summary import StageSummary
from beamrec.transforms.features import build_features
from beamrec.transforms.parse import ParseEvents
from beamrec.transforms.recommend import FormatRecords, OutputShape, Recommend
from beamrec.transforms.serving import ServingRows
from beamrec.transforms.windows import SplitWindows, WindowBatches

__all__ = ["StreamConfig", "StreamOptions", "StreamResult", "build", "main", "run", "run_stream"]


class StreamOptions(VerbOptions):
    """Flags of `beamrec stream`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--input", default=default("input"), help="folder or prefix of JSONL files, or a stream [URI]")
        add("--output", default=default("output"), help="output folder, or s3:// or gs:// prefix [URI]")
        add("--also", action="append", help="a stream to write the recommendations to as well [URI]")
        add("--vector-db", default=default("vector_db"), help="release and serving store [URI]")
        add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
        add("--runner", default="prism", help="prism, direct, or a Beam runner's own name")
        add(
            "--window-seconds",
            type=int,
            default=default("window_seconds"),
            help="event-time windows; divides 3600 [s]",
        )
        add(
            "--allowed-lateness",
            type=float,
            default=default("allowed_lateness"),
            help="after a window's end [s]",
        )
        add("--max-delay", type=float, default=default("max_delay"), help="watermark behind arrival [s]")
        add("--future-tolerance", type=float, default=300.0, help="event time beyond arrival [s]")
        add("--dedupe-key", help="payload field that identifies an event without event_id")
        add(
            "--dedupe-horizon",
            type=int,
            default=default("dedupe_horizon"),
            help="how far back ids are known [h]",
        )
        add("--items", type=int, default=default("items"), help="items a list")
        add("--seed", type=int, default=default("seed"), help="of --output-shape=course")
        add("--shards", type=int, default=default("shards"), help="output shards; fixed for an output folder")
        add("--splits", type=int, default=1, help="readers of the input")
        add("--output-shape", choices=("full", "course"), default="full", help="record written")
        add(
            "--format",
            choices=FORMATS,
            default="jsonl",
            help="of recommendations; fixed for an output folder",
        )
        add("--max-file-mb", type=int, default=64, help="most data of one file before compression [MiB]")
        add("--partition-style", choices=("hive", "plain"), default="hive", help="hour folders")
        add("--retrieval", choices=("auto", "exact", "index"), default="auto", help="user to item search")
        add("--stop-when-idle", type=float, help="drain and end after this long without input [s]")


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """A validated job; what `build` needs and nothing else.

    Attributes:
      release: id of the release that scores; None takes the active one, whichever it is at the moment.
      serving: whether the serving table gets the recommendations.

    Raises:
      UsageError: at construction, for a value out of range.
    """

    input: str
    output: str
    vector_db: str
    shop: Shop
    run: str
    release: str | None = None
    serving: bool = True
    window_seconds: int = 60
    allowed_lateness: float = 3600.0
    max_delay: float = 2.0
    future_tolerance: float = 300.0
    dedupe_key: str | None = None
    dedupe_horizon: int = 24
    items: int = 5
    seed: int = 42
    shards: int = 8
    splits: int = 1
    output_shape: OutputShape = "full"
    partition_style: PartitionStyle = "hive"
    retrieval: Retrieval = "auto"
    stop_when_idle: float | None = None
    cache: str = ""
    also: tuple[str, ...] = ()
    format: FileFormat = "jsonl"
    max_file_mb: int = 64

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected a folder")
        if self.window_seconds < 1 or 3600 % self.window_seconds:
            raise UsageError(
                "--window-seconds: expected a divisor of 3600 (a window lies in one hour), "
                f"got {self.window_seconds}"
            )
        open_store(self.output)
        event_schema(self.shop)
        for name in ("items", "shards", "splits", "dedupe_horizon", "max_file_mb"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}"
                )
        if self.dedupe_horizon * 3600 < self.allowed_lateness + self.window_seconds:
            raise UsageError(
                f"--dedupe-horizon: {self.dedupe_horizon} h is less than --allowed-lateness with one window; "
                "a late event's own replay would no longer be recognised"
            )
        for name in ("allowed_lateness", "max_delay", "future_tolerance", "stop_when_idle"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"--{name.replace('_', '-')}: expected seconds from 0 on, got {value}")

    @property
    def settings(self) -> Settings:
        """What must not change in the output folder."""
        of_input = identity(self.input)
        return Settings(
            self.shards, of_input, self.dedupe_key, self.shop.name, self.event_mapping, self.format
        )

    @property
    def event_mapping(self) -> str:
        """How events map to ids and customers, as the output folder keeps it."""
        keys = (self.shop.customers.key_type, self.shop.products.key_type)
        # How many clicks a history holds changes no id.
        events = {k: v for k, v in dataclasses.asdict(self.shop.events).items() if k != "history_length"}
        return json.dumps([events, *keys])

    @property
    def segments(self) -> SegmentFormat:
        """How recommendations are written."""
        return SegmentFormat(self.format, record_schema(self.shop, self.output_shape == "course"))

    @property
    def source(self) -> SourceOptions:
        """What the source needs to know."""
        return SourceOptions(self.output, self.run, self.max_delay, self.stop_when_idle, self.splits)


@dataclasses.dataclass(frozen=True)
class StreamResult:
    """The account of the output folder after a job, over all runs of it."""

    counts: StageSummary
    output: str


def build(pipeline: beam.Pipeline, config: StreamConfig, read: ReadSettings | None = None) -> None:
    """Source to sinks; the only shuffle lies just before the files."""
    read = read or ReadSettings()
    sources = open_sources(config.input, config.source)
    parsed = (
        pipeline
        | "ReadEvents" >> ReadEvents(sources, read.poll_interval, read.max_read_time_seconds)
        | "ParseEvents" >> ParseEvents(config.shop, config.dedupe_key, config.future_tolerance)
    )
    recommend_events(parsed, config)


def recommend_events(parsed: Any, config: StreamConfig, allowed_lateness: float | None = None) -> None:
    """Parsed events to sinks, wherever they come from.

    Args:
      parsed: what `ParseEvents` or `ParseReplayed` returns.
      allowed_lateness: instead of that of `config` [s].
    """
    handler = TwoTowerHandler(config.shop, build_features, FetchRelease(config.cache))
    windows = parsed.events | "SplitWindows" >> SplitWindows(
        config.window_seconds,
        config.allowed_lateness if allowed_lateness is None else allowed_lateness,
        config.max_delay,
    )
    events = windows.events | "WindowEvents" >> WindowBatches(config.window_seconds)
    length, hours = config.shop.events.history_length, 2 * config.dedupe_horizon
    if config.shop.events.shape == "click" and length:
        events |= "SessionHistory" >> SessionHistory(config.vector_db, length, hours)
    recommended = (
        events
        | "EnrichFromPgvector"
        >> EnrichFromPgvector(config.vector_db, config.shop, handler.prepare, config.release)
        | "UserTower" >> RunInference(handler)
        | "SearchItems" >> SearchItems(config.vector_db, config.items, config.retrieval)
        | "Recommend" >> Recommend(config.items)
    )
    if config.serving:
        _ = (
            recommended
            | "ServingRows" >> ServingRows(config.shop)
            | "UpsertServing" >> UpsertServing(config.vector_db)
        )
    failed = (
        (parsed.dead, windows.expired)
        | "Failures" >> beam.Flatten()
        | "WindowFailures" >> WindowBatches(config.window_seconds)
    )
    records = recommended | "FormatRecords" >> FormatRecords(
        config.output_shape, config.seed, config.partition_style
    )
    for number, uri in enumerate(config.also):
        _ = records | f"Also{number}" >> open_sink(uri)
    _ = (
        (records, failed)
        | "Outcomes" >> beam.Flatten()
        | "WriteSegments"
        >> WriteSegments(
            config.output, config.shards, config.dedupe_horizon, config.segments, config.max_file_mb
        )
    )


def _active_release(config: StreamConfig) -> str:
    """Id of the active release, which must have been trained for this shop."""
    store = ReleaseStore(config.vector_db)
    active = store.active()
    if active is None:
        loaded = [release["id"] for release in store.releases()]
        then = (
            f"`beamrec release promote {loaded[0]}`" if loaded else "`beamrec train`, `beamrec release load`"
        )
        raise UsageError(f"no release is active; next: {then}")
    inputs = store.show(active.id)["manifest"]["user_inputs"]
    columns = [config.shop.customers.key, *(f.column for f in config.shop.user_features)]
    if inputs and [entry["column"] for entry in inputs] != columns:
        raise UsageError(
            f"the active release {active.id} was trained for a shop with the inputs "
            f"{[entry['column'] for entry in inputs]}, not {columns}: give the same --shop, or promote a "
            "release of this one"
        )
    return active.id


def run_stream(config: StreamConfig, runner: str, beam_args: Sequence[str], console: Console) -> StreamResult:
    """Runs the job until it is drained or its input ends, and adds up the output folder.

    Raises:
      UsageError: another job writes there, the folder was begun with other settings, no release is active.
      BadDataError: the account does not add up.
      BeamrecError: the job failed.
    """
    began = time.monotonic()
    store = open_store(config.output)
    # Before anything is started or written: a mistyped input must not bind the output folder to it.
    open_sources(config.input, config.source)
    for uri in config.also:
        open_sink(uri)
    release = _active_release(config)
    store.check()
    console.status(
        f"serving release {release}; reading {config.input}; a recommendation is written when its "
        f"{config.window_seconds} s window closes"
    )
    with Lease(store, config.run):
        fix_settings(store, config.settings)
        finish_publications(store)
        clean_staged(store)
        with launch(runner, beam_args, console.status) as (preset, args):
            pipeline = beam.Pipeline(options=PipelineOptions(args))
            build(pipeline, config, preset.read)
            if not preset.streams:
                console.status(f"--runner {runner} writes nothing before its input ends")
            run_job(pipeline, store, config.run, console)
        finish_publications(store)
        found = account(store)
    if not found.reconciled:
        faults = "; ".join(found.faults) or "sums differ"
        raise BadDataError(
            f"the account of {store.uri} does not add up: {found.counts.to_dict()}; {faults}. "
            "If an input file is gone, put it back and start again"
        )
    return StreamResult(dataclasses.replace(found.counts, seconds=time.monotonic() - began), store.uri)


def parse(argv: Sequence[str], console: Console) -> tuple[StreamConfig, str, list[str]]:
    """Flags as (config, runner, flags for Beam); raises UsageError."""
    values, beam_args = parse_pipeline("stream", StreamOptions, argv)
    fields = {k: v for k, v in vars(values).items() if k not in ("shop", "runner", "also")}
    fields["vector_db"] = resolve_uri(fields["vector_db"], console.home)
    if scheme_of(fields["input"] or "") in ("s3", "gs"):
        fields["input"] = with_beam_options(fields["input"], beam_args, "--input")
    if fields["output"]:
        fields["output"] = with_beam_options(fields["output"], beam_args)
    fields["cache"] = str(console.home / "cache" / "releases")
    return (
        StreamConfig(
            shop=load_shop(values.shop),
            run=console.run_id("stream"),
            also=tuple(values.also or ()),
            **fields,
        ),
        values.runner,
        beam_args,
    )


def run(argv: Sequence[str], console: Console | None = None) -> dict[str, Any]:
    """`beamrec stream`: parses, runs, and returns the `--json` object."""
    console = console or Console()
    config, runner, beam_args = parse(argv, console)
    result = run_stream(config, runner, beam_args, console)
    counts = result.counts
    console.print(
        f"{counts.records_in:,} events read: {counts.out:,} recommended, "
        f"{counts.dead_letters:,} dead letters, {counts.duplicates:,} duplicates, "
        f"{counts.expired:,} expired: {result.output}"
    )
    return {
        **result.counts.to_dict(),
        "reconciled": True,
        "paths": {
            "recommendations": f"{result.output}/recommendations",
            "errors": f"{result.output}/errors",
        },
    }


def main() -> None:
    """`python -m beamrec.pipelines.streaming_recommend`."""
    import sys

    from beamrec.pipelines.cli import entry

    entry(["stream", *sys.argv[1:]])


if __name__ == "__main__":
    # By its own path: classes of `__main__` would not be found on a worker.
    from beamrec.pipelines.streaming_recommend import main as _main

    _main()
