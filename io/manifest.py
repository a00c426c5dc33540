"""The training files' manifest: what was published, from what, and whether every record has a fate."""

import dataclasses
import io
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
import pyarrow as pa

from beamrec.io.store import Store, open_store
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.version import __version__

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = [
    "MANIFEST",
    "TRAINING_FOLDER",
    "DataFile",
    "ExtraFile",
    "FileFormat",
    "LetterFile",
    "Manifest",
    "Mode",
    "Published",
    "changes_between",
    "check_standing",
    "count_published",
    "open_training",
    "pack_files",
    "read_manifest",
    "unpack_files",
]

TRAINING_FOLDER = "ratings_ml_training"
# Beside the folder, not in it: Polars 2.1 refuses a folder that holds anything but Parquet files.
MANIFEST = "_manifest.json"

FileFormat = Literal["parquet", "tfrecord"]
Mode = Literal["overwrite", "incremental"]

_FORMAT = 2
# What a second run over unchanged data writes anew: it does not make the data another.
_OF_THE_RUN = {"run", "taken_at", "mode", "changes", "extras", "drift"}
_LISTS = ("files", "dead_letters", "extras")


@dataclasses.dataclass(frozen=True, slots=True)
class DataFile:
    """One training file.

    Attributes:
      path: below the output folder.
      partition: its folder below the training folder, as in the path (`country=FR/year=2003`); may be empty.
    """

    path: str
    partition: str
    rows: int
    bytes: int
    sha256: str


def pack_files(files: Sequence[DataFile]) -> bytes:
    """Files on their way through a shuffle, which holds what it is given three times: a third of the size."""
    return zlib.compress(orjson.dumps(list(files)), 1)


def unpack_files(data: bytes) -> list[DataFile]:
    """The inverse of `pack_files`."""
    return [DataFile(**file) for file in orjson.loads(zlib.decompress(data))]


@dataclasses.dataclass(frozen=True, slots=True)
class LetterFile:
    """One file of dead letters.

    Attributes:
      rules: error_type → letters.
      content: hash of the letters without their times, so that a second run knows them again.
      table: whose rows they are; empty in manifests of format 1.
    """

    path: str
    rows: int
    bytes: int
    sha256: str
    content: str
    rules: dict[str, int]
    table: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ExtraFile:
    """A file about the data, such as the report: published with it, and no reason to publish it again."""

    path: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything about one published data set.

    Attributes:
      run: id of the run that wrote it.
      system, snapshot, taken_at, counts: the source (`schemas.ranges.SourceSnapshot`).
      records_in: `COUNT(*)` of the ratings in the snapshot; if they changed while they were read, and that
        was accepted, the rows that were read.
      partition_columns: Hive keys of the paths, outermost first; none for a flat folder.
      types: column → Arrow type, partition columns first, then in file order.
      options: the run's options, without secrets.
      buckets: how many `bucket=` folders the rows are spread over; 0 if they are not. The folder is then no
        column of the data.
      changes: partitions `added`, `rewritten`, `unchanged` and `removed` against the manifest before.
      accounts: table → `in`, `out` and `dead_letters`, each counted by itself.
      verification: how the snapshot was checked at the end of the run, in words.
      drift: column → population stability index against the report before.
    """

    run: str
    system: str
    snapshot: str
    taken_at: str
    counts: dict[str, int]
    records_in: int
    partition_columns: tuple[str, ...]
    types: dict[str, str]
    options: dict[str, Any]
    files: tuple[DataFile, ...]
    dead_letters: tuple[LetterFile, ...]
    extras: tuple[ExtraFile, ...] = ()
    file_format: FileFormat = "parquet"
    buckets: int = 0
    mode: Mode = "overwrite"
    changes: dict[str, int] = dataclasses.field(default_factory=dict)
    accounts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    verification: str = ""
    drift: dict[str, float] = dataclasses.field(default_factory=dict)
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
    def sizes(self) -> dict[str, int]:
        """Every published path, and its bytes."""
        files: tuple[DataFile | LetterFile | ExtraFile, ...] = (*self.files, *self.dead_letters, *self.extras)
        return {file.path: file.bytes for file in files}

    @property
    def paths(self) -> set[str]:
        """Every published path."""
        return set(self.sizes)

    def same_data(self, other: "Manifest") -> bool:
        """Whether the two differ in nothing but the run that wrote them."""
        return (
            self._header(_OF_THE_RUN) == other._header(_OF_THE_RUN)
            and self.files == other.files
            and self.dead_letters == other.dead_letters
            and {each.path for each in self.extras} == {each.path for each in other.extras}
        )

    def to_json(self) -> bytes:
        """The file's bytes: one line a file, after the rest."""
        # Written on, as the lines of 100,000 files are 22 MB, and joining them would hold them several times.
        text = io.BytesIO()
        text.write(json.dumps(self._header(), ensure_ascii=False, indent=1).removesuffix("\n}").encode())
        for name in _LISTS:
            text.write(b',\n "%s": [' % name.encode())
            separator = b"\n  "
            for file in getattr(self, name):
                text.write(separator)
                # The standard library took 0.2 s for 10,000 files.
                text.write(orjson.dumps(file))
                separator = b",\n  "
            text.write(b"\n ]" if getattr(self, name) else b"]")
        text.write(b"\n}\n")
        return text.getvalue()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Manifest":
        """The inverse of `to_json`; takes format 1 too.

        Raises:
          UsageError: it is not a manifest of a known format.
        """
        try:
            values = orjson.loads(data)
            if values["format"] == 1:
                values = _upgrade(values)
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']}")
            values["partition_columns"] = tuple(values["partition_columns"])
            for name, kind in zip(_LISTS, (DataFile, LetterFile, ExtraFile), strict=True):
                values[name] = tuple(kind(**file) for file in values[name])
                _check_files(values[name])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{where}: expected a manifest of format 1 or {_FORMAT}: {error}") from None

    def _header(self, without: Collection[str] = ()) -> dict[str, Any]:
        """All but the files, as it reads back from JSON: an option may hold a tuple."""
        values = {name: value for name, value in vars(self).items() if name not in {*_LISTS, *without}}
        header: dict[str, Any] = json.loads(json.dumps(values, ensure_ascii=False))
        return header


def _check_files(files: Iterable[DataFile | LetterFile | ExtraFile]) -> None:
    """A publication removes what an older manifest lists: that must lie in the output."""
    for file in files:
        if not (isinstance(file.path, str) and isinstance(file.bytes, int)):
            raise ValueError(f"a file without path and bytes: {file}")
        if file.path.startswith("/") or ".." in file.path.split("/"):
            raise ValueError(f"a path outside of the output: {file.path}")


def changes_between(previous: Manifest | None, current: Manifest) -> dict[str, int]:
    """How many partitions a data set adds to another, writes anew, has in common with it, and removes."""
    old, new = _contents(previous), _contents(current)
    same = sum(old.get(partition) == content for partition, content in new.items())
    both = len(old.keys() & new.keys())
    return {
        "added": len(new) - both,
        "rewritten": both - same,
        "unchanged": same,
        "removed": len(old) - both,
    }


class Published(NamedTuple):
    """What stands in an output folder: training rows, and dead letters by table."""

    rows: int
    letters: Counter[str]


def read_manifest(output: str) -> Manifest | None:
    """The manifest of an output folder; None if nothing was published there."""
    store = open_store(output)
    try:
        return Manifest.from_json(store.read(MANIFEST), f"{store.uri}/{MANIFEST}")
    except FileNotFoundError:
        return None


def open_training(output: str) -> "ds.Dataset":
    """The published training files as one table, exact even while a run is publishing.

    Args:
      output: what `batch --output` was given.

    Returns:
      A dataset of the training columns and, last, the partition columns in their own types. The folders of
      hash buckets are no column.

    Raises:
      UsageError: nothing was published there, or files that are not Parquet.
    """
    manifest, store = read_manifest(output), open_store(output)
    if manifest is None or not manifest.files:
        raise UsageError(
            f"{store.uri}: expected training files with a {MANIFEST}; "
            "run `beamrec batch` first, or give the folder that it wrote to (not the one inside)"
        )
    if manifest.file_format != "parquet":
        raise UsageError(
            f"{store.uri}: expected Parquet files, found {manifest.file_format}; train reads Parquet: run "
            "`beamrec batch` with --format parquet into another --output"
        )
    import pyarrow.dataset as ds  # here, since it imports pandas: a second of every command's start

    files, base = store.arrow()
    return ds.dataset(
        [f"{base}/{file.path}" for file in manifest.files],
        format="parquet",
        filesystem=files,
        partitioning=_partitioning(manifest),
        partition_base_dir=f"{base}/{TRAINING_FOLDER}",
    )


def _partitioning(manifest: Manifest) -> "ds.Partitioning | None":
    import pyarrow.dataset as ds

    if manifest.buckets or not manifest.partition_columns:
        return None
    types = {column: pa.type_for_alias(manifest.types[column]) for column in manifest.partition_columns}
    return ds.partitioning(pa.schema(types), flavor="hive")


def count_published(output: str) -> Published:
    """Rows and dead letters that stand in the output folder now.

    Every listed file is there with its size, and the lines of dead letters are counted. Training rows are
    those that were counted while each file was encoded, whose hash and size the manifest holds: to read the
    footers of 10,000 Parquet files took 2.7 s, and takes as many requests of an object store.

    Raises:
      BadDataError: a file that the manifest lists is missing or has another size.
    """
    manifest, store = read_manifest(output), open_store(output)
    if manifest is None:
        raise BadDataError(f"{store.uri}: expected a {MANIFEST} after the run, found none")
    check_standing(store, manifest.sizes)
    letters = Counter[str]()
    for file in manifest.dead_letters:
        letters[file.table] += store.read(file.path).count(b"\n")
    return Published(manifest.rows, letters)


def check_standing(store: Store, sizes: Mapping[str, int]) -> None:
    """Checks that files are in place with their sizes.

    Raises:
      BadDataError: one is missing or has another size.
    """
    found = store.sizes_of(sizes)
    for path, expected in sizes.items():
        if found.get(path) != expected:
            raise BadDataError(
                f"{store.uri}/{path}: the manifest says {expected} bytes, found {found.get(path, 'none')}; "
                "run `beamrec batch --mode overwrite` to write it again"
            )


def _contents(manifest: Manifest | None) -> dict[str, set[tuple[str, str]]]:
    """Partition → names and checksums of its files."""
    contents: dict[str, set[tuple[str, str]]] = {}
    for file in manifest.files if manifest else ():
        contents.setdefault(file.partition, set()).add((file.path, file.sha256))
    return contents


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Format 1 as format 2: one partition column, whose value alone stood at each file."""
    column = values.pop("partition_column")
    files = [{**file, "partition": f"{column}={file['partition']}"} for file in values["files"]]
    return {**values, "format": _FORMAT, "partition_columns": [column], "files": files, "extras": []}
