"""The unbounded pipeline: click stream in, recommendations out (hourly files and serving table)."""

import contextlib
import dataclasses
import itertools
import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import ReadEvents, SourceOptions, identity, open_sources
from beamrec.io.gaps import Gap, read_gaps
from beamrec.io.lease import Lease
from beamrec.io.ledger import Settings, account, fix_settings
from beamrec.io.postgres import resolve_uri, with_secret
from beamrec.io.registry import scheme_of
from beamrec.io.release_folders import FetchRelease
from beamrec.io.retrieval import EnrichFromPgvector, Retrieval, UpsertServing
from beamrec.io.ruled_search import SearchRules
from beamrec.io.segment_files import FORMATS, FileFormat, SegmentFormat
from beamrec.io.segments import WriteSegments
from beamrec.io.session_history import SessionHistory, check_history
from beamrec.io.shard_log import finish_publications
from beamrec.io.sinks import open_sink
from beamrec.io.store import Store, clean_staged, open_store, with_beam_options
from beamrec.model.handler import TwoTowerHandler
from beamrec.pipelines.active_release import active_release
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.job import RunnerPanicError, run_job
from beamrec.pipelines.job_metrics import MetricsHistory, latency, tell_prometheus
from beamrec.pipelines.placement import place_job
from beamrec.pipelines.stream_rules import RULE_OPTIONS, add_rule_options, load_rules, search
from beamrec.pipelines.verb_options import VerbOptions
from beamrec.runners.preset import Job, Preset, ReadSettings, check_runner, find_preset, launch
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.events import event_schema
from beamrec.schemas.paths import PartitionStyle
from beamrec.schemas.records import record_schema
from beamrec.schemas.shop import Shop, load_shop
from beamrec.schemas.summary import StageSummary
from beamrec.transforms.features import build_features
from beamrec.transforms.metrics import inference_took
from beamrec.transforms.parse import ParseEvents
from beamrec.transforms.recommend import FormatRecords, OutputShape, Recommend
from beamrec.transforms.serving import ServingRows
from beamrec.transforms.windows import SplitWindows, WindowBatches

__all__ = [
    "StreamConfig",
    "StreamOptions",
    "StreamResult",
    "build",
    "main",
    "run",
    "run_stream",
    "write_template",
]


class StreamOptions(VerbOptions):
    """Flags of `beamrec stream`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--input", default=default("input"), help="folder or prefix of JSONL files, or a stream [URI]")
        add("--output", default=default("output"), help="output folder, or s3:// or gs:// prefix [URI]")
        add("--also", action="append", help="a stream to write the recommendations to as well [URI]")
        add("--vector-db", default=default("vector_db"), help="release and serving store [URI]")
        add("--vector-db-secret", help="where its password is, if not in the environment [URI]")
        add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
        add("--runner", default="prism", help="prism, direct, flink, dataflow, or a Beam runner's own name")
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
        add("--metrics-port", type=int, help="tell Prometheus the metrics here; 0 for any that is free")
        add("--metrics-host", default="127.0.0.1", help="address of this machine that --metrics-port is on")
        add("--retrieval", choices=("auto", "exact", "index"), default="auto", help="user to item search")
        add_rule_options(parser)
        add("--max-in-flight-mb", type=int, default=256, help="most read and not yet written, a split [MiB]")
        add("--patience", type=float, default=300.0, help="for an output that is away, before failing [s]")
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
    rules: SearchRules | None = None
    explain: bool = False
    stop_when_idle: float | None = None
    cache: str = ""
    also: tuple[str, ...] = ()
    format: FileFormat = "jsonl"
    max_file_mb: int = 64
    max_in_flight_mb: int | None = 256
    patience: float = 300.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected a folder")
        if self.window_seconds < 1 or 3600 % self.window_seconds:
            raise UsageError(
                "--window-seconds: expected a divisor of 3600 (a window lies in one hour), "
                f"got {self.window_seconds}"
            )
        if self.explain and self.output_shape == "course":
            raise UsageError("--explain: the course's record has no room for reasons; take one of both")
        open_store(self.output)
        event_schema(self.shop)
        for name in ("items", "shards", "splits", "dedupe_horizon", "max_file_mb", "max_in_flight_mb"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, got {number}")
        if self.dedupe_horizon * 3600 < self.allowed_lateness + self.window_seconds:
            raise UsageError(
                f"--dedupe-horizon: {self.dedupe_horizon} h is less than --allowed-lateness with one window; "
                "a late event's own replay would no longer be recognised"
            )
        for name in ("allowed_lateness", "max_delay", "future_tolerance", "stop_when_idle", "patience"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"--{name.replace('_', '-')}: expected seconds from 0 on, got {value}")

    @property
    def settings(self) -> Settings:
        """What must not change in the output folder."""
        return Settings(
            self.shards,
            identity(self.input),
            self.dedupe_key,
            self.shop.name,
            self.event_mapping,
            self.format,
            # Other columns in the files of one table would be an error for its readers; lines may differ.
            self.explain and self.format == "parquet",
        )

    @property
    def event_mapping(self) -> str:
        """How events map to ids and customers, as the output folder keeps it."""
        keys = (self.shop.customers.key_type, self.shop.products.key_type)
        # How many clicks a history holds changes no id.
        events = {k: v for k, v in dataclasses.asdict(self.shop.events).items() if k != "history_length"}
        return json.dumps([events, *keys])

    @property
    def clicks_before(self) -> int:
        """How many clicks of its session an event is given; 0 where events bring their history."""
        return self.shop.events.history_length if self.shop.events.shape == "click" else 0

    @property
    def job(self) -> Job:
        """What the runner's preset is told."""
        places = {"--input": self.input, "--output": self.output, "--vector-db": self.vector_db}
        more = {f"--also {number}": uri for number, uri in enumerate(self.also, start=1)}
        facts = self.rules.facts if self.rules is not None else None
        if facts is not None:
            more["--source"] = facts.uri
        return place_job("stream", {**places, **more}, facts.secret if facts is not None else None)

    def on(self, preset: Preset) -> "StreamConfig":
        """The job on a runner: where nothing is written before the input ends, no reader waits for it."""
        return self if preset.streams else dataclasses.replace(self, max_in_flight_mb=None)

    @property
    def segments(self) -> SegmentFormat:
        """How recommendations are written."""
        course = self.output_shape == "course"
        return SegmentFormat(self.format, record_schema(self.shop, course, self.explain))

    @property
    def source(self) -> SourceOptions:
        """What the source needs to know."""
        return SourceOptions(
            self.output,
            self.run,
            self.max_delay,
            self.stop_when_idle,
            self.splits,
            window_seconds=self.window_seconds,
            max_in_flight_mb=self.max_in_flight_mb,
            patience_seconds=self.patience,
        )


@dataclasses.dataclass(frozen=True)
class StreamResult:
    """The account of the output folder after a job, over all runs of it."""

    counts: StageSummary
    output: str
    metrics: MetricsHistory
    gaps: tuple[Gap, ...] = ()


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
    handler = TwoTowerHandler(config.shop, build_features, FetchRelease(config.cache), inference_took)
    events = parsed.events
    if config.clicks_before:
        # Ahead of the windows: a late click goes in with those that it was read with, and they know it.
        events |= "SessionHistory" >> SessionHistory(
            config.vector_db, config.clicks_before, 2 * config.dedupe_horizon
        )
    windows = events | "SplitWindows" >> SplitWindows(
        config.window_seconds,
        config.allowed_lateness if allowed_lateness is None else allowed_lateness,
        config.max_delay,
    )
    recommended = (
        windows.events
        | "WindowEvents" >> WindowBatches(config.window_seconds)
        | "EnrichFromPgvector"
        >> EnrichFromPgvector(config.vector_db, config.shop, handler.prepare, config.release)
        | "UserTower" >> RunInference(handler)
        | "SearchItems"
        >> search(config.vector_db, config.items, config.retrieval, config.rules, config.shop.customers.key)
        | "Recommend" >> Recommend(config.items, config.explain)
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
            config.output,
            config.shards,
            config.dedupe_horizon,
            config.segments,
            config.max_file_mb,
            config.patience,
        )
    )


def run_stream(config: StreamConfig, runner: str, beam_args: Sequence[str], console: Console) -> StreamResult:
    """Runs the job until it is drained or its input ends, and adds up the output folder.

    Raises:
      UsageError: another job writes there, the folder was begun with other settings, no release is active.
      BadDataError: the account does not add up.
      BeamrecError: the job failed.
    """
    began, history = time.monotonic(), MetricsHistory()
    store = _check_all(config, runner, beam_args, console)
    # A job that takes another's place needs its output; the service sees to it that it is one at a time.
    replaces = find_preset(runner).replaces(beam_args)
    with contextlib.nullcontext() if replaces else Lease(store, config.run):
        _begin_output(store, config)
        with tell_prometheus(history, config.metrics_port, config.metrics_host):
            _run_to_end(config, store, runner, beam_args, console, history)
        finish_publications(store)
        found = account(store)
    if not found.reconciled:
        faults = "; ".join(found.faults) or "sums differ"
        raise BadDataError(
            f"the account of {store.uri} does not add up: {found.counts.to_dict()}; {faults}. "
            "If an input file is gone, put it back and start again"
        )
    counts = dataclasses.replace(found.counts, seconds=time.monotonic() - began)
    return StreamResult(counts, store.uri, history, tuple(read_gaps(store)))


def _run_to_end(
    config: StreamConfig,
    store: Store,
    runner: str,
    beam_args: Sequence[str],
    console: Console,
    history: MetricsHistory,
) -> None:
    """Runs the job; a runner that fails by a fault of its own is started again, and the ledger goes on."""
    for restarts in itertools.count():
        with launch(runner, beam_args, console.status, config.job) as (preset, args):
            pipeline = beam.Pipeline(options=PipelineOptions(args))
            build(pipeline, config.on(preset), preset.read)
            if not preset.streams:
                console.status(f"--runner {runner} writes nothing before its input ends")
            try:
                run_job(pipeline, store, config.run, console, history)
                return
            except RunnerPanicError:
                if restarts == _RUNNER_RESTARTS:
                    raise
        console.status("the runner failed by itself: it is started again, and goes on where it stopped")


def _check_all(config: StreamConfig, runner: str, beam_args: Sequence[str], console: Console) -> Store:
    """What can be wrong is said before anything is started or written.

    A mistyped input must not bind the output folder to it.
    """
    check_runner(runner, config.job, beam_args)
    store = open_store(config.output)
    open_sources(config.input, config.source)
    for uri in config.also:
        open_sink(uri)
    if config.rules is not None and config.rules.facts is not None:
        config.rules.facts.check()
    release = active_release(config.vector_db, config.shop)
    # Workers load the towers from where `release load` found them.
    check_runner(runner, Job("stream", {f"the active release {release.id}": release.uri}), beam_args)
    if config.clicks_before:
        check_history(config.vector_db)
    store.check()
    console.status(
        f"serving release {release.id}; reading {config.input}; a recommendation is written when its "
        f"{config.window_seconds} s window closes"
    )
    return store


def _begin_output(store: Store, config: StreamConfig) -> None:
    fix_settings(store, config.settings)
    finish_publications(store)
    clean_staged(store)


def write_template(config: StreamConfig, runner: str, beam_args: Sequence[str], console: Console) -> None:
    """Writes the job to where its options say, for the service to start; runs nothing.

    Raises:
      UsageError: as `run_stream` does.
    """
    store = _check_all(config, runner, beam_args, console)
    with Lease(store, config.run), launch(runner, beam_args, console.status, config.job) as (preset, args):
        _begin_output(store, config)
        pipeline = beam.Pipeline(options=PipelineOptions(args))
        build(pipeline, config, preset.read)
        pipeline.run()


def parse(argv: Sequence[str], console: Console) -> tuple[StreamConfig, str, list[str]]:
    """Flags as (config, runner, flags for Beam); raises UsageError."""
    values, beam_args = parse_pipeline("stream", StreamOptions, argv)
    return make_config(values, beam_args, console), values.runner, beam_args


def make_config(
    values: Namespace, beam_args: Sequence[str], console: Console, verb: str = "stream"
) -> StreamConfig:
    """The values of `StreamOptions` as a job of a verb; raises UsageError."""
    elsewhere = ("shop", "runner", "also", *RULE_OPTIONS)
    fields = {k: v for k, v in vars(values).items() if k not in elsewhere}
    secret = fields.pop("vector_db_secret")
    fields["vector_db"] = with_secret(resolve_uri(fields["vector_db"], console.home), secret)
    if scheme_of(fields["input"] or "") in ("s3", "gs"):
        fields["input"] = with_beam_options(fields["input"], beam_args, "--input")
    if fields["output"]:
        fields["output"] = with_beam_options(fields["output"], beam_args)
    fields["cache"] = str(console.home / "cache" / "releases")
    shop = load_shop(values.shop)
    return StreamConfig(
        shop=shop,
        rules=load_rules(values, shop),
        run=console.run_id(verb),
        also=tuple(values.also or ()),
        **fields,
    )


def run(argv: Sequence[str], console: Console | None = None) -> dict[str, Any]:
    """`beamrec stream`: parses, runs, and returns the `--json` object."""
    console = console or Console()
    config, runner, beam_args = parse(argv, console)
    template = find_preset(runner).template(beam_args)
    if template:
        write_template(config, runner, beam_args, console)
        console.print(f"the job is written to {template}")
        return {"template": template}
    result = run_stream(config, runner, beam_args, console)
    counts = result.counts
    console.print(
        f"{counts.records_in:,} events read: {counts.out:,} recommended, "
        f"{counts.dead_letters:,} dead letters, {counts.duplicates:,} duplicates, "
        f"{counts.expired:,} expired: {result.output}"
    )
    paths = {"recommendations": f"{result.output}/recommendations", "errors": f"{result.output}/errors"}
    for gap in result.gaps:
        console.print(f"records lost upstream: {gap.source} after position {gap.after}: {gap.reason}")
    told: dict[str, Any] = {"latency": latency(result.metrics.last), "metrics": result.metrics.total()}
    told["gaps"] = [dataclasses.asdict(gap) for gap in result.gaps]
    return {**result.counts.to_dict(), "reconciled": True, **told, "paths": paths}


def main() -> None:
    """`python -m beamrec.pipelines.streaming_recommend`."""
    import sys

    from beamrec.pipelines.cli import entry

    entry(["stream", *sys.argv[1:]])


if __name__ == "__main__":
    # By its own path: classes of `__main__` would not be found on a worker.
    from beamrec.pipelines.streaming_recommend import main as _main

    _main()
