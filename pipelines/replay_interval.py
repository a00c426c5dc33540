"""A past interval again, scored with another release into another output folder, and what differs."""

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beamrec.io.apart import check_apart
from beamrec.io.begun import begin_run
from beamrec.io.event_interval import bounded_sources
from beamrec.io.events import ReadEvents, identity
from beamrec.io.gaps import Gap, read_gaps
from beamrec.io.lease import Lease
from beamrec.io.ledger import Account, Settings, account, fix_settings, stored_settings
from beamrec.io.recommended_events import RecommendedEvents
from beamrec.io.release_folders import FetchRelease
from beamrec.io.shard_log import finish_publications
from beamrec.io.store import Store, clean_staged, open_store, with_beam_options
from beamrec.model.release import verify_release
from beamrec.pipelines.active_release import named_release
from beamrec.pipelines.console import Console
from beamrec.pipelines.job import run_job
from beamrec.pipelines.placement import place_job
from beamrec.pipelines.record_difference import difference
from beamrec.pipelines.replay_options import parse_time, stream_values
from beamrec.pipelines.stream_options import StreamConfig, make_config
from beamrec.pipelines.streaming_recommend import recommend_events
from beamrec.runners.preset import Job, ReadSettings, check_runner, launch
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.events import rfc3339
from beamrec.transforms.list_difference import Difference
from beamrec.transforms.parse import ParseEvents
from beamrec.transforms.replayed import ParseReplayed

__all__ = ["IntervalReplay", "Rescored", "build", "parse", "replay_interval"]

_OLD = "--recommendations"


@dataclasses.dataclass(frozen=True)
class IntervalReplay:
    """A validated replay of an interval.

    Attributes:
      stream: the job, with the release that scores, and without the serving table.
      begin, end: the interval, from the one on and before the other.
      recommendations: URI of what a stream wrote then, if it is given.
      from_input: whether the events come from the input, and not from those recommendations.
    """

    stream: StreamConfig
    begin: datetime
    end: datetime
    recommendations: str | None
    from_input: bool

    def __post_init__(self) -> None:
        if not self.begin < self.end:
            raise UsageError(f"--to: expected a time after --from, got {rfc3339(self.end)}")
        if self.end > datetime.now(UTC):
            raise UsageError(f"--to: expected a time that is over, got {rfc3339(self.end)}")

    @property
    def settings(self) -> Settings:
        """What must not change in the output folder: a replay that was killed goes on with the same."""
        config = self.stream
        events = identity(config.input) if self.from_input else f"recommendations of {self.recommendations}"
        span = f"from {rfc3339(self.begin)} to {rfc3339(self.end)}"
        return config.settings_of(f"{events} {span} with release {config.release}")

    @property
    def job(self) -> Job:
        """What the runner's preset is told."""
        config = self.stream
        places = {"--output": config.output, "--vector-db": config.vector_db, _OLD: self.recommendations}
        return place_job("stream", {**places, "--input": config.input if self.from_input else None})


@dataclasses.dataclass(frozen=True)
class Rescored:
    """What a replay of an interval did.

    Attributes:
      difference: from the recommendations that were given; None without them.
      gaps: where the input had lost events of the interval.
    """

    account: Account
    output: str
    difference: Difference | None
    gaps: tuple[Gap, ...] = ()


def parse(values: Namespace, beam_args: Sequence[str], console: Console) -> IntervalReplay:
    """The options as a replay.

    Raises:
      UsageError: one is missing, or its value wrong.
    """
    begin, end = parse_time(values.begin, "--from"), parse_time(values.end, "--to")
    if begin is None or end is None:
        raise UsageError(f"--{'from' if begin is None else 'to'} is missing: expected a time of the interval")
    if not values.input and not values.recommendations:
        raise UsageError(f"expected --input or {_OLD}: where the events of the interval are")
    old = values.recommendations and with_beam_options(values.recommendations, beam_args, _OLD)
    own = stream_values(values)
    own.input = values.input or values.recommendations
    config = make_config(own, beam_args, console, "replay")
    config = dataclasses.replace(config, release=values.release, serving=False)
    if old and open_store(old, _OLD).uri == open_store(config.output).uri:
        raise UsageError(f"--output: expected another folder than {_OLD}")
    return IntervalReplay(config, begin, end, old or None, bool(values.input))


def build(pipeline: beam.Pipeline, replay: IntervalReplay, read: ReadSettings | None = None) -> None:
    """Events of the interval to files: a stream's pipeline with another source, and no serving table."""
    read = read or ReadSettings()
    config = replay.stream
    options = config.shop, config.dedupe_key, config.future_tolerance
    if replay.from_input:
        sources = bounded_sources(config.input, config.source, replay.begin, replay.end)
        parsing: beam.PTransform = ParseEvents(*options)
    else:
        places = replay.recommendations or "", replay.begin, replay.end
        sources, parsing = [RecommendedEvents(config.source, *places)], ParseReplayed(*options)
    parsed = pipeline | "ReadEvents" >> ReadEvents(sources, *read.parts) | "ParseEvents" >> parsing
    recommend_events(parsed, config)


def replay_interval(
    replay: IntervalReplay, runner: str, beam_args: Sequence[str], console: Console
) -> Rescored:
    """Runs a replay to its end and compares; one that was killed goes on, one that is done compares only.

    Raises:
      UsageError: the release is not loaded or of another shop, the output folder is another job's.
      BadDataError: the release's folder is not what was loaded, or the account does not add up.
      BeamrecError: the job failed.
    """
    config = replay.stream
    store, old = _check_all(replay, runner, beam_args)
    with Lease(store, config.run):
        fix_settings(store, replay.settings)
        begin_run(store, config.source)
        finish_publications(store)
        clean_staged(store)
        with launch(runner, beam_args, console.status, replay.job) as (preset, args):
            pipeline = beam.Pipeline(options=PipelineOptions(args))
            build(pipeline, dataclasses.replace(replay, stream=config.on(preset)), preset.read)
            readers = config.splits if replay.from_input else 1
            run_job(pipeline, store, config.run, console, readers=readers)
        finish_publications(store)
        found = account(store)
    if not found.reconciled:
        raise BadDataError(
            f"the account of {store.uri} does not add up: {found.counts.to_dict()}; {'; '.join(found.faults)}"
        )
    console.status("comparing")
    compared = old and difference(old, store, replay.begin, replay.end, config.items)
    return Rescored(found, store.uri, compared or None, tuple(read_gaps(store)))


def _check_all(replay: IntervalReplay, runner: str, beam_args: Sequence[str]) -> tuple[Store, Store | None]:
    """What can be wrong is said before anything is started or written."""
    config = replay.stream
    check_runner(runner, replay.job, beam_args)
    store = open_store(config.output)
    old = open_store(replay.recommendations, _OLD) if replay.recommendations else None
    if old is not None:
        stored_settings(old)
    if replay.from_input:
        check_apart(config.input, config.output)
        bounded_sources(config.input, config.source, replay.begin, replay.end)
    release = named_release(config.vector_db, config.shop, config.release or "")
    check_runner(runner, Job("stream", {f"the release {release.id}": release.uri}), beam_args)
    if release.has_user_tower:
        verify_release(FetchRelease(config.cache)(release.uri, release.checksum), release.checksum)
    store.check()
    return store, old
