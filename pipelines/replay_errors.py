"""Dead letters again, after a fix: the same pipeline behind another source, into the same output folder."""

import collections
import dataclasses
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beamrec.io.begun import begin_run
from beamrec.io.dead_letters import EXPIRED, LetterFile, Wanted, parse_place
from beamrec.io.events import ReadEvents
from beamrec.io.lease import Lease
from beamrec.io.ledger import Account, account, check_settings, is_output, stored_settings
from beamrec.io.mended_settings import check_mapping, mend_settings
from beamrec.io.replay_source import DeadLetters, replayed_batch
from beamrec.io.replays import Chosen, choose, keep, unfinished
from beamrec.io.shard_log import finish_publications
from beamrec.io.store import Store, clean_staged, open_store, with_beam_options
from beamrec.pipelines.active_release import active_release
from beamrec.pipelines.console import Console
from beamrec.pipelines.job import run_job
from beamrec.pipelines.placement import place_job
from beamrec.pipelines.replay_options import parse_time, stream_values
from beamrec.pipelines.stream_options import StreamConfig, make_config
from beamrec.pipelines.streaming_recommend import recommend_events
from beamrec.runners.preset import Job, ReadSettings, check_runner, launch
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.transforms.replayed import ParseReplayed, parse_replayed

__all__ = ["ErrorsReplay", "Replayed", "build", "dry_run", "parse", "replay_errors"]

# What was replayed has come in time or too late once already; that is not asked again.
_NEVER_LATE_SECONDS = math.inf


@dataclasses.dataclass(frozen=True)
class ErrorsReplay:
    """A validated replay of dead letters.

    Attributes:
      stream: as the job that made them, with what was mended.
      wanted: which dead letters.
    """

    stream: StreamConfig
    wanted: Wanted

    @property
    def job(self) -> Job:
        """What the runner's preset is told."""
        places = {"--errors": self.stream.output, "--vector-db": self.stream.vector_db}
        more = {f"--also {number}": uri for number, uri in enumerate(self.stream.also, start=1)}
        return place_job("stream", {**places, **more})


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What one replay did.

    Attributes:
      fates: records by the fate that they have now.
      account: of the output folder, over all its runs.
      mended: names of what changed in the folder's mapping of events.
    """

    fates: Mapping[str, int]
    account: Account
    mended: tuple[str, ...]
    output: str

    @property
    def letters(self) -> int:
        """How many dead letters got another fate."""
        return sum(self.fates.values())


def parse(values: Namespace, beam_args: Sequence[str], console: Console) -> ErrorsReplay:
    """The options as a replay.

    Raises:
      UsageError: a value is wrong, or the folder is not one of a stream.
    """
    output, place = _place(values.errors, beam_args)
    stages = frozenset(values.stage or ())
    if place.stages and stages and place.stages != stages:
        raise UsageError(f"--stage: --errors names the stage {', '.join(place.stages)} already")
    begin, end = parse_time(values.begin, "--from"), parse_time(values.end, "--to")
    wanted = Wanted(
        stages=place.stages | stages,
        begin=max(filter(None, (begin, place.begin)), default=None),
        end=min(filter(None, (end, place.end)), default=None),
        error_types=frozenset(values.error_type or ()),
    )
    store = open_store(with_beam_options(output, beam_args, "--errors"), "--errors")
    settings = stored_settings(store)
    _check_stages(store, values.errors, place.stages)
    own = stream_values(values)
    own.output, own.input, own.dedupe_key = output, settings.input, settings.dedupe_key
    own.shards, own.format = settings.shards, settings.format
    own.output_shape = settings.output_shape or own.output_shape
    own.explain = own.explain or settings.explain
    return ErrorsReplay(make_config(own, beam_args, console, "replay"), wanted)


def _check_stages(store: Store, uri: str, stages: frozenset[str]) -> None:
    """A stage of a stream in which nothing has failed yet has no folder either."""
    known = {"parse", EXPIRED, *store.names("errors")}
    if not stages <= known:
        raise UsageError(f"--errors {uri}: no such folder; below errors/ are {', '.join(sorted(known))}")


def _place(uri: str, beam_args: Sequence[str]) -> tuple[str, Wanted]:
    """An output folder may itself lie below one that is called errors."""
    if is_output(open_store(with_beam_options(uri, beam_args, "--errors"), "--errors")):
        return uri, Wanted()
    return parse_place(uri)


def build(
    pipeline: beam.Pipeline, config: StreamConfig, numbers: Sequence[int], read: ReadSettings | None = None
) -> None:
    """Dead letters to sinks: a stream's pipeline with another source and nothing that expires."""
    read = read or ReadSettings()
    source = DeadLetters(config.source, tuple(numbers))
    parsed = (
        pipeline
        | "ReadLetters" >> ReadEvents([source], *read.parts)
        | "ParseReplayed" >> ParseReplayed(config.shop, config.dedupe_key, config.future_tolerance)
    )
    recommend_events(parsed, config, _NEVER_LATE_SECONDS)


def replay_errors(replay: ErrorsReplay, runner: str, beam_args: Sequence[str], console: Console) -> Replayed:
    """Runs a replay to its end; what an earlier one has left comes first.

    Raises:
      UsageError: another job writes there, shop or options do not fit the folder, no release is active.
      BadDataError: the account does not add up any more.
      BeamrecError: the job failed.
    """
    config = replay.stream
    check_runner(runner, replay.job, beam_args)
    store = open_store(config.output, "--errors")
    active_release(config.vector_db, config.shop)
    store.check()
    with Lease(store, config.run):
        _check_folder(store, config)
        mended = mend_settings(store, config.shop.name, config.event_mapping)
        finish_publications(store)
        clean_staged(store)
        before = account(store)
        numbers = _select(store, replay, console)
        if numbers:
            begin_run(store, config.source)
            with launch(runner, beam_args, console.status, replay.job) as (preset, args):
                pipeline = beam.Pipeline(options=PipelineOptions(args))
                build(pipeline, config.on(preset), numbers, preset.read)
                run_job(pipeline, store, config.run, console, readers=1)
            finish_publications(store)
        after = account(store)
    _check(store, before, after)
    return Replayed(_difference(before, after), after, mended, store.uri)


def _select(store: Store, replay: ErrorsReplay, console: Console) -> list[int]:
    """Numbers of the selections to be replayed, the new one last."""
    left = unfinished(store)
    if left:
        console.status("an earlier replay was not finished: it goes on")
    found = _worth_it(store, replay)
    new = keep(store, (Chosen(f, tuple(n for n, _, _ in tried)) for f, tried in found))
    chosen = [*left, *([new] if new else [])]
    count = sum(sum(selection.sources.values()) for selection in chosen)
    console.status(f"{count:,} dead letters are replayed" if chosen else "no dead letters to replay")
    return [selection.number for selection in chosen]


def _worth_it(
    store: Store, replay: ErrorsReplay
) -> Iterator[tuple[LetterFile, list[tuple[int, DeadLetter, str]]]]:
    """Letters to be replayed, each with its line and the error type that it would have now.

    One that has died in a replay before and would die the same way is left alone: else each replay would make
    another letter of it, and none would ever have nothing to do.
    """
    for file, letters in choose(store, replay.wanted):
        tried = [
            (line, letter, error_type)
            for (line, letter), error_type in zip(
                letters, _try([letter for _, letter in letters], replay.stream), strict=True
            )
            if letter.attempt == 1 or error_type != letter.error_type
        ]
        if tried:
            yield file, tried


def _difference(before: Account, after: Account) -> dict[str, int]:
    """What this replay gave: the account counts all that there ever were."""
    given: collections.Counter[str] = collections.Counter()
    for key, count in after.replays.items():
        given[key.partition("/")[2]] += count - before.replays.get(key, 0)
    return {fate: count for fate, count in given.items() if count}


def _check(store: Store, before: Account, after: Account) -> None:
    """Records that a stream has read and not written yet are its own matter, before and after."""
    new = [fault for fault in after.faults if fault not in before.faults]
    if new or (not after.faults and not after.reconciled):
        raise BadDataError(
            f"the account of {store.uri} does not add up: {after.counts.to_dict()}; "
            f"{'; '.join(new) or 'sums differ'}"
        )


def dry_run(replay: ErrorsReplay) -> list[dict[str, Any]]:
    """What would become of the dead letters, by what they are; nothing is written, nobody is kept out.

    Returns:
      By stage and error type: how many `letters`, how many are `good` now, and the `bad` by error type.

    Raises:
      UsageError: the shop does not fit the folder.
    """
    config = replay.stream
    store = open_store(config.output, "--errors")
    _check_folder(store, config)
    found: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for _, tried in _worth_it(store, replay):
        for _, letter, error_type in tried:
            found[letter.stage, letter.error_type][error_type] += 1
    return [
        {
            "stage": stage,
            "error_type": error_type,
            "letters": counts.total(),
            "good": counts.pop("", 0),
            "bad": dict(counts),
        }
        for (stage, error_type), counts in sorted(found.items())
    ]


def _check_folder(store: Store, config: StreamConfig) -> None:
    """Refuses what the folder cannot take: a mapping that changes ids, records that are not like its own."""
    mended, _ = check_mapping(store, config.shop.name, config.event_mapping)
    check_settings(mended, config.settings_of(mended.input))


def _try(letters: Sequence[DeadLetter], config: StreamConfig) -> list[str]:
    """The error type that each letter would have now; "" if it would have none."""
    batch: pa.RecordBatch = replayed_batch("replay:", letters)
    _, dead = parse_replayed(batch, config.shop, config.dedupe_key, config.future_tolerance)
    types = [""] * len(letters)
    lines = dead.column("line").to_pylist()
    for position, line in zip(dead.column("position").to_pylist(), lines, strict=True):
        types[position - 1] = DeadLetter.from_json(line).error_type
    return types
