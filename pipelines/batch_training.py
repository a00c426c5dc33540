"""The bounded pipeline: a shop's ratings database in, partitioned training files out."""

import dataclasses
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any, get_args

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.backend import Access, SnapshotMode
from beamrec.io.formats import FileOptions, parse_partition_by
from beamrec.io.manifest import TRAINING_FOLDER, Manifest, count_published, read_manifest
from beamrec.io.partitioned import WriteTrainingFiles
from beamrec.io.publish import OutputLock
from beamrec.io.registry import backend, reject_password, scheme_of
from beamrec.io.sql import CHECKS, RATINGS, SNAPSHOT, ReadRatings, Verification
from beamrec.io.store import open_store
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.verb_options import VerbOptions
from beamrec.runners.preset import launch
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.shop import Shop, load_shop
from beamrec.schemas.summary import StageSummary
from beamrec.transforms.join import JoinFeatures
from beamrec.transforms.validate import DEAD_LETTERS, TALLIES, VALID, ValidateRatings

__all__ = ["BatchConfig", "BatchOptions", "BatchResult", "build", "main", "run", "run_batch"]


class BatchOptions(VerbOptions):
    """Flags of `beamrec batch`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--source",
            default=default("source"),
            help="shop database: sqlite:///, mysql://, postgresql:// [URI]",
        )
        add("--source-secret", help="where its password is, if not in the environment [URI]")
        add("--output", default=default("output"), help="output folder: a path, s3:// or gs:// [URI]")
        add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
        add("--runner", default="direct", help="direct, prism, or a Beam runner's own name")
        add("--readers", type=int, default=2, help="connections that read at a time [connections]")
        add("--range-rows", type=int, default=200_000, help="ratings that a worker holds at a time [rows]")
        add(
            "--snapshot",
            default="auto",
            help="how all readers see one moment: auto, shared, connection, checksums",
        )
        add("--on-change", default="fail", help="tables changed and there was no snapshot: fail, or accept")
        add("--read", default="packed", help="packed, many rows in one answer; or rows, one by one")
        add("--max-bad-fraction", type=float, default=0.01, help="more dead letters fail the run [0 to 1]")
        add("--format", default="parquet", help="parquet, or tfrecord of tf.train.Example")
        add("--compression", help="snappy (the default) or zstd; of tfrecord none (the default) or gzip")
        add(
            "--partition-by",
            help="columns that become folders, or none; the customer key if not given [A,B…]",
        )
        add(
            "--buckets", type=int, default=0, help="folders by the hash of the customer key instead [folders]"
        )
        add("--mode", default="overwrite", help="overwrite, or incremental: only partitions that changed")
        add("--catalog", help="register the files in a catalogue: glue://database/table [URI]")


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """A validated run; what `build` needs and nothing else.

    Raises:
      UsageError: at construction, for a value that is missing or out of range.
    """

    source: str
    output: str
    shop: Shop
    run: str
    max_bad_fraction: float = 0.01
    range_rows: int = 200_000
    secret: str | None = None
    readers: int = 2
    snapshot: SnapshotMode = "auto"
    on_change: str = "fail"
    read: str = "packed"
    files: FileOptions = dataclasses.field(default_factory=FileOptions)
    catalog: str | None = None

    def __post_init__(self) -> None:
        for name in ("source", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected a {'URI' if name == 'source' else 'folder'}")
        reject_password(self.source, "--source", "BEAMREC_SOURCE_PASSWORD")
        backend("tables", self.source, "--source")
        open_store(self.output)
        self.files.layout(self.shop)
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"--max-bad-fraction: expected 0 to 1, got {self.max_bad_fraction}")
        for name, value in (("range-rows", self.range_rows), ("readers", self.readers)):
            if value < 1:
                raise UsageError(f"--{name}: expected at least 1, got {value}")
        for name, value, known in (
            ("snapshot", self.snapshot, get_args(SnapshotMode)),
            ("on-change", self.on_change, ("fail", "accept")),
            ("read", self.read, ("packed", "rows")),
        ):
            if value not in known:
                raise UsageError(f"--{name}: expected one of {', '.join(known)}, got {value!r}")

    @property
    def access(self) -> Access:
        """How the source is reached."""
        return Access(self.source, self.secret, self.readers, self.snapshot, self.read == "packed")

    @property
    def recorded(self) -> dict[str, Any]:
        """What the manifest says of the options."""
        return {
            "source": self.source,
            "shop": self.shop.name,
            "max_bad_fraction": self.max_bad_fraction,
            "range_rows": self.range_rows,
        }


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """The account of a run, and the manifest that stands in the output folder after it."""

    counts: StageSummary
    manifest: Manifest
    output: str

    def to_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        paths = {"lake": f"{self.output}/{TRAINING_FOLDER}", "errors": f"{self.output}/errors"}
        return {
            **self.counts.to_dict(),
            "partitions": self.manifest.partitions,
            "reconciled": self.counts.reconciled,
            "snapshot": self.manifest.snapshot,
            "dead_letters_by_rule": dict(self.manifest.rules),
            "paths": paths,
        }


def build(pipeline: beam.Pipeline, config: BatchConfig) -> beam.PCollection[Manifest]:
    """Source to sink; one fused stage, and one small shuffle of file names before publishing."""
    read = pipeline | "ReadRatings" >> ReadRatings(config.access, config.shop, config.range_rows)
    checked = read[RATINGS] | "ValidateRatings" >> ValidateRatings(config.shop, scheme_of(config.source))
    examples = checked[VALID] | "JoinFeatures" >> JoinFeatures(config.shop)
    return {
        "examples": examples,
        "dead_letters": checked[DEAD_LETTERS],
        "tallies": checked[TALLIES],
        "snapshot": read[SNAPSHOT],
        "checks": read[CHECKS],
    } | "WriteTrainingFiles" >> WriteTrainingFiles(
        output=config.output,
        run=config.run,
        shop=config.shop,
        max_bad_fraction=config.max_bad_fraction,
        files=config.files,
        options=config.recorded,
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
    with OutputLock(config.output):
        with launch(runner, beam_args) as (_, args), beam.Pipeline(options=PipelineOptions(args)) as pipeline:
            build(pipeline, config)
        published = count_published(config.output)
    manifest = read_manifest(config.output)
    if manifest is None:
        raise BadDataError(f"{config.output}: the manifest went away during the run")
    rows, letters = published.rows, published.letters[config.shop.ratings.name]
    counts = StageSummary(manifest.records_in, rows, letters, seconds=time.monotonic() - began)
    if not counts.reconciled:
        raise BadDataError(f"the account of {config.output} does not add up: {counts.to_dict()}")
    return BatchResult(counts, manifest, open_store(config.output).uri)


def parse(argv: Sequence[str], console: Console) -> tuple[BatchConfig, str, list[str]]:
    """Flags as (config, runner, flags for Beam); raises UsageError."""
    values, beam_args = parse_pipeline("batch", BatchOptions, argv)
    config = BatchConfig(
        source=values.source,
        output=values.output,
        shop=load_shop(values.shop),
        run=console.run_id("batch"),
        max_bad_fraction=values.max_bad_fraction,
        range_rows=values.range_rows,
        secret=values.source_secret,
        readers=values.readers,
        snapshot=values.snapshot,
        on_change=values.on_change,
        read=values.read,
        files=FileOptions(
            format=values.format,
            compression=values.compression,
            partition_by=parse_partition_by(values.partition_by),
            buckets=values.buckets,
            mode=values.mode,
        ),
        catalog=values.catalog,
    )
    return config, values.runner, beam_args


def run(argv: Sequence[str], console: Console | None = None) -> dict[str, Any]:
    """`beamrec batch`: parses, runs, and returns the `--json` object."""
    console = console or Console()
    config, runner, beam_args = parse(argv, console)
    console.status(f"reading {config.shop.ratings.name} of {scheme_of(config.source)}:// …")
    result = run_batch(config, runner, beam_args)
    counts = result.counts
    console.print(
        f"{counts.out:,} of {counts.records_in:,} ratings in {result.manifest.partitions:,} partitions, "
        f"{counts.dead_letters:,} dead letters, {counts.seconds:.1f} s: {result.output}/{TRAINING_FOLDER}"
    )
    return result.to_dict()


def main() -> None:
    """`python -m beamrec.pipelines.batch_training`."""
    import sys

    from beamrec.pipelines.cli import entry

    entry(["batch", *sys.argv[1:]])


if __name__ == "__main__":
    # By its own path: classes of `__main__` would not be found on a worker.
    from beamrec.pipelines.batch_training import main as _main

    _main()
