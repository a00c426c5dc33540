"""The unbounded pipeline: click stream in, recommendations out (hourly files and serving table)."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.apart import check_apart
from beamrec.io.begun import begin_run
from beamrec.io.events import ReadEvents, open_sources
from beamrec.io.gaps import Gap, read_gaps
from beamrec.io.lease import Lease
from beamrec.io.ledger import account, fix_settings
from beamrec.io.release_folders import FetchRelease
from beamrec.io.retrieval import EnrichFromPgvector
from beamrec.io.segments import WriteSegments
from beamrec.io.serving_sink import UpsertServing
from beamrec.io.session_history import SessionHistory, check_history
from beamrec.io.shard_log import finish_publications
from beamrec.io.sinks import open_sink
from beamrec.io.store import Store, clean_staged, open_store
from beamrec.model.handler import TwoTowerHandler
from beamrec.pipelines.active_release import active_release
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.job import RunnerLostError, run_job
from beamrec.pipelines.job_metrics import MetricsHistory, latency, tell_prometheus
from beamrec.pipelines.resume import check_resume
from beamrec.pipelines.stream_options import StreamConfig, StreamOptions, make_config
from beamrec.pipelines.stream_rules import search
from beamrec.runners.flink_jobs import end_lost_jobs
from beamrec.runners.preset import Job, ReadSettings, check_runner, find_preset, launch
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.summary import StageSummary
from beamrec.transforms.features import build_features
from beamrec.transforms.metrics import inference_took
from beamrec.transforms.parse import ParseEvents
from beamrec.transforms.recommend import FormatRecords, Recommend
from beamrec.transforms.serving import ServingRows
from beamrec.transforms.windows import SplitWindows, WindowBatches

__all__ = ["StreamResult", "build", "main", "recommend_events", "run", "run_stream", "write_template"]


_RUNNER_RESTARTS = 5
# One that ran for so long may be lost as often as before.
_SOUND_SECONDS = 60.0


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
        | "ReadEvents" >> ReadEvents(sources, *read.parts)
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
    # A port that is taken is said before the output folder is bound to the input.
    with tell_prometheus(history, config.metrics_port, config.metrics_host):
        store, release = _check_all(config, runner, beam_args)
        # A job that takes another's place needs its output; the service sees to it that it is one at a time.
        replaces = find_preset(runner).replaces(beam_args)
        with contextlib.nullcontext() if replaces else Lease(store, config.run):
            _begin_output(store, config)
            console.status(
                f"serving release {release}; reading {config.input}; a recommendation is written when its "
                f"{config.window_seconds} s window closes"
            )
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
    """Runs the job; a runner that is lost is started again, or awaited, and goes on from the ledger."""
    restarts = 0
    while True:
        began = time.monotonic()
        with launch(runner, beam_args, console.status, config.job) as (preset, args):
            options = PipelineOptions(args)
            pipeline = beam.Pipeline(options=options)
            build(pipeline, config.on(preset), preset.read)
            if not preset.streams:
                console.status(f"--runner {runner} writes nothing before its input ends")
            try:
                run_job(pipeline, store, config.run, console, history, readers=config.splits)
                return
            except RunnerLostError:
                restarts = 1 if time.monotonic() - began > _SOUND_SECONDS else restarts + 1
                if restarts > _RUNNER_RESTARTS or not (
                    preset.is_own or end_lost_jobs(options.get_all_options())
                ):
                    raise
        console.status("the runner failed by itself: it is started again, and goes on where it stopped")


def _check_all(config: StreamConfig, runner: str, beam_args: Sequence[str]) -> tuple[Store, str]:
    """What can be wrong is said before anything is started or written.

    A mistyped input must not bind the output folder to it.

    Returns:
      (the output, id of the active release).
    """
    check_runner(runner, config.job, beam_args)
    store = open_store(config.output)
    check_apart(config.input, config.output)
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
    check_resume(store, config.splits, beam_args)
    return store, release.id


def _begin_output(store: Store, config: StreamConfig) -> None:
    fix_settings(store, config.settings)
    begin_run(store, config.source)
    finish_publications(store)
    clean_staged(store)


def write_template(config: StreamConfig, runner: str, beam_args: Sequence[str], console: Console) -> None:
    """Writes the job to where its options say, for the service to start; runs nothing.

    Raises:
      UsageError: as `run_stream` does.
    """
    store, _ = _check_all(config, runner, beam_args)
    with Lease(store, config.run), launch(runner, beam_args, console.status, config.job) as (preset, args):
        _begin_output(store, config)
        pipeline = beam.Pipeline(options=PipelineOptions(args))
        build(pipeline, config, preset.read)
        pipeline.run()


def parse(argv: Sequence[str], console: Console) -> tuple[StreamConfig, str, list[str]]:
    """Flags as (config, runner, flags for Beam); raises UsageError."""
    values, beam_args = parse_pipeline("stream", StreamOptions, argv)
    return make_config(values, beam_args, console), values.runner, beam_args


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
