"""What training files look like: format, compression, partitions; and the layout that follows for a shop."""

import dataclasses
from collections.abc import Iterator
from typing import cast, get_args

import pyarrow as pa

from beamrec.io.manifest import FileFormat, Mode
from beamrec.io.parquet_files import ParquetCompression, encode_parquet
from beamrec.io.partitions import (
    BUCKET,
    add_buckets,
    check_partition_columns,
    check_partition_types,
    split_partitions,
)
from beamrec.io.tfrecord_files import TfrecordCompression, encode_tfrecord
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import Shop

__all__ = ["FileOptions", "Layout", "parse_partition_by"]

# The first is the default.
_COMPRESSIONS: dict[str, tuple[str, ...]] = {
    "parquet": get_args(ParquetCompression),
    "tfrecord": get_args(TfrecordCompression),
}
_SUFFIXES = {
    ("parquet", "snappy"): ".parquet",
    ("parquet", "zstd"): ".parquet",
    ("tfrecord", "none"): ".tfrecord",
    ("tfrecord", "gzip"): ".tfrecord.gz",
}
_MAX_BUCKETS = 100_000
_PARTITION_BY = "--partition-by"


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """How training files are written.

    A folder per customer, the default, lets a reader fetch one customer, and a changed customer rewrites
    one file; from some ten thousand customers on the folders cost more than the rows. Buckets keep that
    number as it is: each holds the customers whose hash falls into it. A few values of another column
    (a country) suit readers that train per value. `none` is the fastest to write and to read as a whole.

    Attributes:
      format: `parquet`, or `tfrecord` with a `tf.train.Example` a row. tf.data does not read Hive paths,
        so an Example holds the partition columns too.
      compression: `snappy` or `zstd` for Parquet, `none` or `gzip` for TFRecord; the first if not given.
      partition_by: columns that become folders, outermost first; empty for none. None, the default, is the
        customer key.
      buckets: instead of columns, this many folders `bucket=NNN` by the hash of the customer key, which
        stays in the files (`io.partitions.bucket_numbers`); 0 for none.
      mode: `overwrite` writes everything, `incremental` only the partitions whose content changed.

    Raises:
      UsageError: at construction, for a value that is none of these.
    """

    format: FileFormat = "parquet"
    compression: str | None = None
    partition_by: tuple[str, ...] | None = None
    buckets: int = 0
    mode: Mode = "overwrite"

    def __post_init__(self) -> None:
        _choose("--format", self.format, get_args(FileFormat))
        _choose("--mode", self.mode, get_args(Mode))
        if self.compression is not None:
            _choose(f"--compression of {self.format}", self.compression, _COMPRESSIONS[self.format])
        if not 0 <= self.buckets <= _MAX_BUCKETS:
            raise UsageError(f"--buckets: expected 0 to {_MAX_BUCKETS}, got {self.buckets}")
        if self.buckets and self.partition_by is not None:
            raise UsageError(f"--buckets and {_PARTITION_BY}: expected one of them, got both")
        names = [name.lower() for name in self.partition_by or ()]
        if len(set(names)) < len(names):
            raise UsageError(f"{_PARTITION_BY}: expected each column once, got {','.join(names)}")

    @property
    def codec(self) -> str:
        """The compression, also if none was given."""
        return self.compression or _COMPRESSIONS[self.format][0]

    @property
    def suffix(self) -> str:
        """How file names end."""
        return _SUFFIXES[self.format, self.codec]

    def layout(self, shop: Shop) -> "Layout":
        """What the options mean for a shop.

        Raises:
          UsageError: a partition column is none of the shop's or cannot be a folder's name, or none would be
            left for the files.
        """
        key, product = shop.partition_column, shop.products.key
        known = (key, *shop.training_columns)
        if self.buckets:
            if BUCKET in (column.lower() for column in known):
                raise UsageError(f"--buckets: the shop has a column {BUCKET} already; rename it by a view")
            return Layout(self, (BUCKET,), key, product)
        columns = (key,) if self.partition_by is None else tuple(_match(n, known) for n in self.partition_by)
        check_partition_columns(columns, _PARTITION_BY)
        if set(columns) >= set(known):
            raise UsageError(f"{_PARTITION_BY}: expected a column to stay in the files, got all of them")
        return Layout(self, columns, key, product)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which rows go to which file, and as which bytes.

    Attributes:
      options: format, compression and buckets.
      columns: partition columns, outermost first, or `bucket` alone.
      customer, product: key columns; together they are unique, and rows within a file ascend by them.
    """

    options: FileOptions
    columns: tuple[str, ...]
    customer: str
    product: str

    @property
    def merges(self) -> bool:
        """Whether one partition may get rows from several ranges of customers, and has to be merged."""
        return bool(self.columns) and self.customer not in self.columns

    @property
    def order(self) -> tuple[str, str]:
        """The columns that rows ascend by within a partition."""
        return self.customer, self.product

    def partitions(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Rows by folder (`io.partitions.split_partitions`), with all columns.

        Raises:
          BadDataError: a value makes no folder.
          UsageError: a partition column has a type that a path does not give back.
        """
        if self.options.buckets:
            batch = add_buckets(batch, self.customer, self.options.buckets)
        check_partition_types(batch.schema, self.columns, _PARTITION_BY)
        return split_partitions(batch, self.columns)

    def encode(self, rows: pa.RecordBatch) -> pa.Buffer:
        """The bytes of a file with rows of one partition."""
        if self.options.format == "tfrecord":
            # A bucket is a place, not a feature.
            kept = rows.drop_columns([BUCKET]) if self.options.buckets else rows
            return pa.py_buffer(encode_tfrecord(kept, cast(TfrecordCompression, self.options.codec)))
        content = rows.drop_columns(list(self.columns)) if self.columns else rows
        return encode_parquet(content, cast(ParquetCompression, self.options.codec), {self.customer})

    def path(self, folder: str, sha256: str) -> str:
        """Where a file of that folder and content stands, below the training folder."""
        name = f"part-{sha256[:16]}{self.options.suffix}"
        return f"{folder}/{name}" if folder else name


def parse_partition_by(text: str | None) -> tuple[str, ...] | None:
    """The value of `--partition-by`: columns with commas between, `none`, or None if not given.

    Raises:
      UsageError: a name is empty.
    """
    if text is None:
        return None
    if text.strip().lower() == "none":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(f"{_PARTITION_BY}: expected columns with commas between, or none, got {text!r}")
    return names


def _choose(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option}: expected {' or '.join(choices)}, got {value!r}")


def _match(name: str, columns: tuple[str, ...]) -> str:
    """A column as the shop spells it; names are matched regardless of case."""
    found = next((column for column in columns if column.lower() == name.lower()), None)
    if found is None:
        raise UsageError(f"{_PARTITION_BY}: expected any of {', '.join(columns)}, or none, got {name!r}")
    return found
