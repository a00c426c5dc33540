"""The bounded pipeline: a shop's ratings database in, partitioned training files out."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.data_report import REPORT_PAGE, DriftLimits
from beamrec.io.glue import check_access, check_types, register
from beamrec.io.manifest import (
    TRAINING_FOLDER,
    Manifest,
    changes_between,
    count_published,
    read_manifest,
)
from beamrec.io.partitioned import WriteTrainingFiles
from beamrec.io.publish import OutputLock
from beamrec.io.registry import scheme_of
from beamrec.io.sql import CHECKS, RATINGS, SNAPSHOT, ReadRatings, Verification
from beamrec.io.store import open_store
from beamrec.pipelines.batch_options import BatchConfig, parse
from beamrec.pipelines.console import Console
from beamrec.runners.preset import check_runner, find_preset, launch
from beamrec.schemas.errors import BadDataError, BeamrecError
from beamrec.schemas.summary import StageSummary
from beamrec.transforms.drift import check_drift, drift
from beamrec.transforms.join import JoinFeatures
from beamrec.transforms.profile import ProfileRatings
from beamrec.transforms.validate import DEAD_LETTERS, TALLIES, VALID, ValidateRatings

__all__ = ["BatchResult", "build", "main", "run", "run_batch", "write_template"]


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """The account of a run, and the manifest that stands in the output folder after it."""

    counts: StageSummary
    manifest: Manifest
    output: str

    def to_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        paths = {
            "lake": f"{self.output}/{TRAINING_FOLDER}",
            "errors": f"{self.output}/errors",
            "report": f"{self.output}/{REPORT_PAGE}",
        }
        return {
            **self.counts.to_dict(),
            "partitions": self.manifest.partitions,
            "reconciled": self.counts.reconciled,
            "changes": dict(self.manifest.changes),
            "accounts": dict(self.manifest.accounts),
            "snapshot": self.manifest.snapshot,
            "verification": self.manifest.verification,
            "drift": dict(self.manifest.drift),
            "dead_letters_by_rule": dict(self.manifest.rules),
            "paths": paths,
        }


def build(pipeline: beam.Pipeline, config: BatchConfig) -> beam.PCollection[Manifest]:
    """Source to sink; one fused stage, and one small shuffle of file names before publishing."""
    read = pipeline | "ReadRatings" >> ReadRatings(config.access, config.shop, config.range_rows)
    checked = read[RATINGS] | "ValidateRatings" >> ValidateRatings(config.shop, scheme_of(config.source))
    examples = checked[VALID] | "JoinFeatures" >> JoinFeatures(config.shop)
    report = checked[VALID] | "ProfileRatings" >> ProfileRatings(config.shop)
    return {
        "examples": examples,
        "dead_letters": checked[DEAD_LETTERS],
        "tallies": checked[TALLIES],
        "snapshot": read[SNAPSHOT],
        "report": report,
        "checks": read[CHECKS],
    } | "WriteTrainingFiles" >> WriteTrainingFiles(
        output=config.output,
        run=config.run,
        shop=config.shop,
        max_bad_fraction=config.max_bad_fraction,
        files=config.files,
        options=config.recorded,
        drift=DriftLimits(drift, check_drift, config.drift_warn, config.drift_fail),
        check_types=check_types if config.catalog is not None else None,
        before_publish=Verification(config.access, config.shop, config.on_change == "accept"),
    )


def run_batch(config: BatchConfig, runner: str = "direct", beam_args: Sequence[str] = ()) -> BatchResult:
    """Runs the pipeline and counts what stands in the output folder afterwards.

    Raises:
      BadDataError: too many bad ratings (nothing is published), or the account does not add up.
      BeamrecError: the source or the output is not usable; on a runner with workers elsewhere the error
        may arrive as the runner's own, with this one in its text.
    """
    began = time.monotonic()
    check_runner(runner, config.job, beam_args)
    if config.catalog is not None:
        check_access(config.catalog)
    with OutputLock(config.output, config.run):
        with (
            launch(runner, beam_args, job=config.job) as (_, args),
            beam.Pipeline(options=PipelineOptions(args)) as pipeline,
        ):
            build(pipeline, config)
        published = count_published(config.output)
        manifest = read_manifest(config.output)
        if manifest is None:
            raise BadDataError(f"{config.output}: the manifest went away during the run")
        if manifest.run != config.run:
            # The data is the same as before, and so is its manifest.
            manifest = dataclasses.replace(manifest, changes=changes_between(manifest, manifest))
        if config.catalog is not None:
            _register(config.catalog, manifest, open_store(config.output).uri)
    rows, letters = published.rows, published.letters[config.shop.ratings.name]
    counts = StageSummary(manifest.records_in, rows, letters, seconds=time.monotonic() - began)
    if not counts.reconciled:
        raise BadDataError(f"the account of {config.output} does not add up: {counts.to_dict()}")
    return BatchResult(counts, manifest, open_store(config.output).uri)


def write_template(config: BatchConfig, runner: str, beam_args: Sequence[str]) -> None:
    """Writes the job to where its options say, for the service to start; runs nothing.

    Raises:
      BeamrecError: the source or the output is not usable.
    """
    check_runner(runner, config.job, beam_args)
    # Who let itself in last may publish: the job, which has this run's id.
    with OutputLock(config.output, config.run), launch(runner, beam_args, job=config.job) as (_, args):
        pipeline = beam.Pipeline(options=PipelineOptions(args))
        build(pipeline, config)
        pipeline.run()


def _register(catalog: str, manifest: Manifest, location: str) -> None:
    try:
        register(catalog, manifest, location)
    except BeamrecError as error:
        raise type(error)(
            f"the files are published in {location}, but the catalogue does not show them: {error}. "
            "Run the same command again to register them"
        ) from None


def run(argv: Sequence[str], console: Console | None = None) -> dict[str, Any]:
    """`beamrec batch`: parses, runs, and returns the `--json` object."""
    console = console or Console()
    config, runner, beam_args = parse(argv, console)
    template = find_preset(runner).template(beam_args)
    if template:
        write_template(config, runner, beam_args)
        console.print(f"the job is written to {template}")
        return {"template": template}
    console.status(f"reading {config.shop.ratings.name} of {scheme_of(config.source)}:// …")
    result = run_batch(config, runner, beam_args)
    counts, changes = result.counts, result.manifest.changes
    told = ", ".join(f"{number:,} {name}" for name, number in changes.items() if number)
    console.print(
        f"{counts.out:,} of {counts.records_in:,} ratings in {result.manifest.partitions:,} partitions "
        f"({told}), {_dead_letters(result)}, {counts.seconds:.1f} s: {result.output}/{TRAINING_FOLDER}"
    )
    return result.to_dict()


def _dead_letters(result: BatchResult) -> str:
    """How many, of which tables, and where they are."""
    letters = {table: account["dead_letters"] for table, account in result.manifest.accounts.items()}
    if not any(letters.values()):
        return "no dead letters"
    told = ", ".join(f"{number:,} of {table}" for table, number in letters.items() if number)
    return f"dead letters: {told} in {result.output}/errors"


def main() -> None:
    """`python -m beamrec.pipelines.batch_training`."""
    import sys

    from beamrec.pipelines.cli import entry

    entry(["batch", *sys.argv[1:]])


if __name__ == "__main__":
    # By its own path: classes of `__main__` would not be found on a worker.
    from beamrec.pipelines.batch_training import main as _main

    _main()
