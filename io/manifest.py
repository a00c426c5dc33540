"""The training files' manifest: what was published, from what, and whether every record has a fate."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from beamrec.io.store import open_store
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.version import __version__

__all__ = [
    "MANIFEST",
    "TRAINING_FOLDER",
    "DataFile",
    "LetterFile",
    "Manifest",
    "count_published",
    "open_training",
    "read_manifest",
]

TRAINING_FOLDER = "ratings_ml_training"
# Beside the folder, not in it: Polars 2.1 refuses a folder that holds anything but Parquet files.
MANIFEST = "_manifest.json"

_FORMAT = 1
# What a second run over unchanged data writes anew: it does not make the data another.
_OF_THE_RUN = ("run", "taken_at")


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One Parquet file: path below the output folder, partition value as in the path, rows and checksum."""

    path: str
    partition: str
    rows: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class LetterFile:
    """One file of dead letters.

    Attributes:
      rules: error_type → letters.
      content: hash of the letters without their times, so that a second run knows them again.
    """

    path: str
    rows: int
    bytes: int
    sha256: str
    content: str
    rules: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything about one published data set.

    Attributes:
      run: id of the run that wrote it.
      system, snapshot, taken_at, counts: the source (`schemas.ranges.SourceSnapshot`).
      records_in: `COUNT(*)` of the ratings in the snapshot.
      partition_column: Hive key of the paths.
      types: column → Arrow type, the partition column first, then in file order.
      options: the run's options, without secrets.
    """

    run: str
    system: str
    snapshot: str
    taken_at: str
    counts: dict[str, int]
    records_in: int
    partition_column: str
    types: dict[str, str]
    options: dict[str, Any]
    files: tuple[DataFile, ...]
    dead_letters: tuple[LetterFile, ...]
    code_version: str = __version__
    format: int = _FORMAT

    @property
    def rows(self) -> int:
        """Rows of all training files."""
        return sum(file.rows for file in self.files)

    @property
    def letters(self) -> int:
        """Dead letters of all files."""
        return sum(file.rows for file in self.dead_letters)

    @property
    def partitions(self) -> int:
        """Distinct partitions."""
        return len({file.partition for file in self.files})

    @property
    def rules(self) -> Counter[str]:
        """Dead letters by the rule that they broke."""
        return sum((Counter(file.rules) for file in self.dead_letters), Counter[str]())

    @property
    def paths(self) -> set[str]:
        """Every published path."""
        return {file.path for file in self.files} | {file.path for file in self.dead_letters}

    def same_data(self, other: "Manifest") -> bool:
        """Whether the two differ in nothing but the run that wrote them."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return all(mine[name] == theirs[name] for name in mine if name not in _OF_THE_RUN)

    def to_json(self) -> bytes:
        """The file's bytes."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
          UsageError: it is not a manifest of this format.
        """
        try:
            values = json.loads(data)
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']}")
            values["files"] = tuple(DataFile(**file) for file in values["files"])
            values["dead_letters"] = tuple(LetterFile(**file) for file in values["dead_letters"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{where}: expected a manifest of format {_FORMAT}: {error}") from None


def read_manifest(output: str) -> Manifest | None:
    """The manifest of an output folder; None if nothing was published there."""
    path = open_store(output).root / MANIFEST
    try:
        return Manifest.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def open_training(output: str) -> ds.Dataset:
    """The published training files as one table, exact even while a run is publishing.

    Args:
      output: what `batch --output` was given.

    Returns:
      A dataset of the training columns and, last, the partition column in its own type.

    Raises:
      UsageError: nothing was published there.
    """
    manifest = read_manifest(output)
    if manifest is None or not manifest.files:
        raise UsageError(f"{output}: expected training files with a {MANIFEST}; run `beamrec batch` first")
    root = open_store(output).root
    column = manifest.partition_column
    partition = pa.schema([(column, pa.type_for_alias(manifest.types[column]))])
    return ds.dataset(
        [str(root / file.path) for file in manifest.files],
        format="parquet",
        partitioning=ds.partitioning(partition, flavor="hive"),
        partition_base_dir=str(root / TRAINING_FOLDER),
    )


def count_published(output: str) -> tuple[int, int]:
    """Rows and dead letters that stand in the output folder now, by its files and not by any process.

    Raises:
      BadDataError: a file that the manifest lists is missing or has another size.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise BadDataError(f"{output}: expected a {MANIFEST} after the run, found none")
    root = open_store(output).root
    for file in manifest.files:
        _check_size(root / file.path, file.bytes)
    for letters in manifest.dead_letters:
        _check_size(root / letters.path, letters.bytes)
    lines = sum((root / letters.path).read_bytes().count(b"\n") for letters in manifest.dead_letters)
    return manifest.rows, lines


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != expected:
        raise BadDataError(
            f"{path}: the manifest says {expected} bytes, found {'none' if found is None else found}; "
            "run `beamrec batch` again"
        )
