"""The options of `beamrec batch`, and the validated configuration that they become."""

import dataclasses
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any, get_args

from beamrec.io.backend import Access, SnapshotMode
from beamrec.io.formats import FileOptions, parse_partition_by
from beamrec.io.glue import check_catalog
from beamrec.io.registry import backend, reject_password
from beamrec.io.secrets import check_secret
from beamrec.io.store import open_store, with_beam_options
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.placement import place_job
from beamrec.pipelines.verb_options import VerbOptions
from beamrec.runners.preset import Job
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import Shop, load_shop

__all__ = ["BatchConfig", "BatchOptions", "parse"]


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
        add("--runner", default="direct", help="direct, prism, flink, dataflow, or a Beam runner's own name")
        add("--readers", type=int, default=2, help="connections that read at a time [connections]")
        add(
            "--range-rows",
            type=int,
            default=200_000,
            help="most ratings of a range; some ranges are held at a time [rows]",
        )
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
        add("--drift-warn", type=float, default=0.2, help="warn where a column drifted further [PSI]")
        add("--drift-fail", type=float, help="publish nothing where a column drifted further [PSI]")
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
    drift_warn: float | None = 0.2
    drift_fail: float | None = None
    catalog: str | None = None

    def __post_init__(self) -> None:
        for name in ("source", "output"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected a {'URI' if name == 'source' else 'folder'}")
        reject_password(self.source, "--source", "BEAMREC_SOURCE_PASSWORD")
        backend("tables", self.source, "--source")
        open_store(self.output)
        self.files.layout(self.shop)
        if self.secret is not None:
            check_secret(self.secret, "--source-secret")
        if self.catalog is not None:
            check_catalog(self.catalog, self.files.format)
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise UsageError(f"--max-bad-fraction: expected 0 to 1, got {self.max_bad_fraction}")
        for option, limit in (("drift-warn", self.drift_warn), ("drift-fail", self.drift_fail)):
            if limit is not None and not limit >= 0:
                raise UsageError(f"--{option}: expected a number from 0, got {limit}")
        for name, value in (("range-rows", self.range_rows), ("readers", self.readers)):
            if value < 1:
                raise UsageError(f"--{name}: expected at least 1, got {value}")

    def _check_choices(self) -> None:
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
    def job(self) -> Job:
        """What the runner's preset is told."""
        return place_job("batch", {"--source": self.source, "--output": self.output}, self.secret)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the manifest says of the options."""
        return {
            "source": self.source,
            "shop": self.shop.name,
            "max_bad_fraction": self.max_bad_fraction,
            "range_rows": self.range_rows,
        }


def parse(argv: Sequence[str], console: Console) -> tuple[BatchConfig, str, list[str]]:
    """Flags as (config, runner, flags for Beam); raises UsageError."""
    values, beam_args = parse_pipeline("batch", BatchOptions, argv)
    config = BatchConfig(
        source=values.source,
        output=with_beam_options(values.output, beam_args) if values.output else "",
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
        drift_warn=values.drift_warn,
        drift_fail=values.drift_fail,
        catalog=values.catalog,
    )
    return config, values.runner, beam_args
