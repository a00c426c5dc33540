"""The bounded sink: training files, dead letters and their report, published together by one manifest."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import apache_beam as beam

from beamrec.io.account import Account, check_accounts, open_accounts
from beamrec.io.formats import FileOptions, Layout
from beamrec.io.manifest import DataFile, FileFormat, LetterFile, Manifest, Mode
from beamrec.io.partitions import BUCKET
from beamrec.io.publish import publish, staging_folder
from beamrec.io.staging import StageExamples, write_dead_letters
from beamrec.io.store import open_store
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.ranges import EntityTally, SourceSnapshot
from beamrec.schemas.shop import Shop

__all__ = ["BeforePublish", "WriteTrainingFiles"]

# Takes what came in as "checks", in any order, and says for the manifest how the data was verified; raises
# to keep it from being published.
BeforePublish = Callable[[SourceSnapshot, Sequence[Any]], str]


@dataclasses.dataclass(eq=False)
class WriteTrainingFiles(beam.PTransform):  # type: ignore[misc]
    """Stages training rows and dead letters, then publishes everything at once.

    Takes `{"examples": batches of training rows, "dead_letters": lists of DeadLetter, each of one table,
    "tallies": EntityTally of the customers and products of each range, "snapshot": one SourceSnapshot,
    "checks": anything that `before_publish` wants}`, the last one if there is one, and gives the one
    `Manifest` that stands in the folder afterwards.

    Attributes:
      output: path or URI of the output folder.
      run: id of the run; names its staging folder.
      shop: names of tables and columns.
      max_bad_fraction: dead letters by rows, of any table; above it nothing is published.
      files: format, partitions and mode.
      options: what the manifest says of the run's options.
      before_publish: called once everything is staged and every row has its fate; picklable.
    """

    output: str
    run: str
    shop: Shop
    max_bad_fraction: float
    files: FileOptions = dataclasses.field(default_factory=FileOptions)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before_publish: BeforePublish | None = None

    def __post_init__(self) -> None:
        self._layout: Layout = self.files.layout(self.shop)

    def expand(self, inputs: Any) -> Any:
        files = inputs["examples"] | "Stage examples" >> StageExamples(self.output, self.run, self._layout)
        letters = inputs["dead_letters"] | "Stage dead letters" >> beam.Map(self._stage_letters)
        others = {name: inputs[name] for name in ("tallies", "snapshot", "checks") if name in inputs}
        parts = {"files": files, "letters": letters, **others}
        return (
            [pcoll | f"As {name}" >> beam.Map(_tagged, name) for name, pcoll in parts.items()]
            | "Parts" >> beam.Flatten()
            | "Together" >> beam.GroupByKey()
            | "All parts" >> beam.Values()
            | "Publish" >> beam.Map(self._publish, with_tallies="tallies" in inputs)
        )

    def _stage_letters(self, letters: Sequence[DeadLetter]) -> LetterFile:
        return write_dead_letters(letters, open_store(self.output), staging_folder(self.run))

    def _publish(self, tagged: Iterable[tuple[str, Any]], with_tallies: bool) -> Manifest:
        parts = _by_name(tagged)
        (snapshot,) = parts["snapshot"]
        files: list[DataFile] = [file for staged in parts["files"] for file in staged]
        accounts = self._accounts(snapshot, files, parts, with_tallies)
        check_accounts(accounts, self.max_bad_fraction)
        verification = self.before_publish(snapshot, parts["checks"]) if self.before_publish else ""
        return publish(self.output, self._manifest(snapshot, files, parts["letters"], accounts, verification))

    def _accounts(
        self,
        snapshot: SourceSnapshot,
        files: Iterable[DataFile],
        parts: Mapping[str, list[Any]],
        with_tallies: bool,
    ) -> list[Account]:
        ratings = self.shop.ratings.name
        good = Counter({ratings: sum(file.rows for file in files)})
        letters: list[LetterFile] = parts["letters"]
        if not with_tallies:
            return open_accounts(snapshot.counts, good, [each for each in letters if each.table == ratings])
        for table in (self.shop.customers.name, self.shop.products.name):
            good[table] += 0
        tally: EntityTally
        for tally in parts["tallies"]:
            good[tally.table] += tally.valid
        return open_accounts(snapshot.counts, good, letters)

    def _manifest(
        self,
        snapshot: SourceSnapshot,
        files: Iterable[DataFile],
        letters: Iterable[LetterFile],
        accounts: Iterable[Account],
        verification: str,
    ) -> Manifest:
        columns = self._layout.columns
        of_paths = {name: snapshot.types[name] for name in columns if name != BUCKET}
        return Manifest(
            run=self.run,
            system=snapshot.system,
            snapshot=snapshot.method,
            taken_at=snapshot.taken_at,
            counts=snapshot.counts,
            records_in=snapshot.counts[self.shop.ratings.name],
            partition_columns=columns,
            types={**of_paths, **snapshot.types},
            options=dict(self.options),
            files=tuple(sorted(files, key=lambda file: file.path)),
            dead_letters=tuple(sorted(letters, key=lambda letter: letter.path)),
            file_format=cast(FileFormat, self.files.format),
            buckets=self.files.buckets,
            mode=cast(Mode, self.files.mode),
            accounts={account.table: account.to_dict() for account in accounts},
            verification=verification,
        )


def _tagged(part: Any, name: str) -> tuple[int, tuple[str, Any]]:
    return 0, (name, part)


def _by_name(tagged: Iterable[tuple[str, Any]]) -> Mapping[str, list[Any]]:
    parts: dict[str, list[Any]] = {name: [] for name in ("files", "letters", "tallies", "snapshot", "checks")}
    for name, part in tagged:
        parts[name].append(part)
    return parts
