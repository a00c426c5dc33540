"""The bounded sink: training files, dead letters and their report, published together by one manifest."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam

from beamrec.io.account import Account, check_accounts, open_accounts
from beamrec.io.data_report import DriftLimits, stage_report
from beamrec.io.formats import FileOptions, Layout
from beamrec.io.manifest import (
    DataFile,
    ExtraFile,
    LetterFile,
    Manifest,
    pack_files,
    unpack_files,
)
from beamrec.io.partitions import BUCKET
from beamrec.io.publish import REFUSED_FOLDER, publish, resume, staging_folder
from beamrec.io.staging import StageExamples, write_dead_letters
from beamrec.io.store import open_store
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.ranges import EntityTally, SourceSnapshot, Verified
from beamrec.schemas.report import Report
from beamrec.schemas.shop import Shop

__all__ = ["BeforePublish", "WriteTrainingFiles"]

# Takes what came in as "checks", in any order, and says how the data was verified; raises to keep it from
# being published.
BeforePublish = Callable[[SourceSnapshot, Sequence[Any]], Verified]


@dataclasses.dataclass(eq=False)
class WriteTrainingFiles(beam.PTransform):  # type: ignore[misc]
    """Stages training rows and dead letters, then publishes everything at once.

    Takes `{"examples": batches of training rows, "dead_letters": lists of DeadLetter, each of one table,
    "tallies": EntityTally of the customers and products of each range, "snapshot": one SourceSnapshot,
    "report": one Report, "checks": anything that `before_publish` wants}`, the last two if there are any, and
    gives the one `Manifest` that stands in the folder afterwards.

    Attributes:
      output: path or URI of the output folder.
      run: id of the run; names its staging folder.
      shop: names of tables and columns.
      max_bad_fraction: dead letters by rows, of any table; above it nothing is published.
      files: format, partitions and mode.
      options: what the manifest says of the run's options.
      drift: how the report is compared with that of the run before; None for not at all.
      before_publish: called once everything is staged, before the account of the rows; picklable.
      check_types: called then with column → Arrow type; raises UsageError where they do not suit whoever is
        to read the files; picklable.
    """

    output: str
    run: str
    shop: Shop
    max_bad_fraction: float
    files: FileOptions = dataclasses.field(default_factory=FileOptions)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drift: DriftLimits | None = None
    before_publish: BeforePublish | None = None
    check_types: Callable[[Mapping[str, str]], None] | None = None

    def __post_init__(self) -> None:
        self._layout: Layout = self.files.layout(self.shop)

    def expand(self, inputs: Any) -> Any:
        staged = inputs["examples"] | "Stage examples" >> StageExamples(self.output, self.run, self._layout)
        files = staged | "Pack" >> beam.Map(pack_files)
        letters = inputs["dead_letters"] | "Stage dead letters" >> beam.Map(self._stage_letters)
        others = {name: inputs[name] for name in ("tallies", "snapshot")}
        optional = {name: inputs[name] for name in ("report", "checks") if name in inputs}
        parts = {"files": files, "letters": letters, **others, **optional}
        return (
            [pcoll | f"As {name}" >> beam.Map(_tagged, name) for name, pcoll in parts.items()]
            | "Parts" >> beam.Flatten()
            | "Together" >> beam.GroupByKey()
            | "All parts" >> beam.Values()
            | "Publish" >> beam.Map(self._publish)
        )

    def _stage_letters(self, letters: Sequence[DeadLetter]) -> LetterFile:
        return write_dead_letters(letters, open_store(self.output), staging_folder(self.run))

    def _publish(self, tagged: Iterable[tuple[str, Any]]) -> Manifest:
        return resume(self.output, self.run) or self._publish_first(_Parts.of(tagged))

    def _publish_first(self, parts: "_Parts") -> Manifest:
        if self.check_types:
            self.check_types(parts.snapshot.types)
        # Rows that came or went while the tables were read are no fault of the account.
        verified = self.before_publish(parts.snapshot, parts.checks) if self.before_publish else Verified("")
        accounts = parts.accounts(self.shop, verified)
        check_accounts(accounts, self.max_bad_fraction)
        extras, drift = self._report(parts.report, accounts)
        manifest = dataclasses.replace(
            self._manifest(parts, accounts), extras=extras, drift=drift, verification=verified.text
        )
        return publish(self.output, manifest)

    def _report(
        self, reports: Sequence[Report], accounts: Iterable[Account]
    ) -> tuple[tuple[ExtraFile, ...], dict[str, float]]:
        if not reports:
            return (), {}
        letters = {account.table: account.letters for account in accounts}
        store, folder = open_store(self.output), staging_folder(self.run)
        refused = f"{REFUSED_FOLDER}/{self.run}.html"
        return stage_report(reports[0], letters, self.drift, store, folder, refused)

    def _manifest(self, parts: "_Parts", accounts: Iterable[Account]) -> Manifest:
        of_tables = {account.table: account.to_dict() for account in accounts}
        snapshot, columns = parts.snapshot, self._layout.columns
        of_paths = {name: snapshot.types[name] for name in columns if name != BUCKET}
        return Manifest(
            run=self.run,
            system=snapshot.system,
            snapshot=snapshot.method,
            taken_at=snapshot.taken_at,
            counts=snapshot.counts,
            records_in=of_tables[self.shop.ratings.name]["in"],
            partition_columns=columns,
            types={**of_paths, **snapshot.types},
            options=dict(self.options),
            files=tuple(sorted(parts.files, key=lambda file: file.path)),
            dead_letters=tuple(sorted(parts.letters, key=lambda letter: letter.path)),
            file_format=self.files.format,
            buckets=self.files.buckets,
            mode=self.files.mode,
            accounts=of_tables,
        )


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Everything that a run gave, sorted by what it is."""

    snapshot: SourceSnapshot
    files: list[DataFile]
    letters: list[LetterFile]
    tallies: list[EntityTally]
    report: list[Report]
    checks: list[Any]

    @classmethod
    def of(cls, tagged: Iterable[tuple[str, Any]]) -> "_Parts":
        found: dict[str, list[Any]] = {field.name: [] for field in dataclasses.fields(cls)}
        for name, part in tagged:
            found[name] += unpack_files(part) if name == "files" else [part]
        (snapshot,) = found.pop("snapshot")
        return cls(snapshot, **found)

    def accounts(self, shop: Shop, verified: Verified) -> list[Account]:
        good = Counter(dict.fromkeys((shop.ratings.name, shop.customers.name, shop.products.name), 0))
        good[shop.ratings.name] += sum(file.rows for file in self.files)
        for tally in self.tallies:
            good[tally.table] += tally.valid
        return open_accounts(self.snapshot.counts, good, self.letters, verified.changed)


def _tagged(part: Any, name: str) -> tuple[int, tuple[str, Any]]:
    return 0, (name, part)
