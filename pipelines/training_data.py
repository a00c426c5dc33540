"""Published training files to examples on the disk, and their entities to the preprocessing graph."""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from beamrec.io.manifest import Manifest, open_training, read_manifest
from beamrec.model.entities import EntityCollector
from beamrec.model.examples import TABLES, Examples, ExampleWriter
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec
from beamrec.model.split import moments
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.evaluation import SplitOptions
from beamrec.schemas.shop import Feature, Shop
from beamrec.transforms.features import build_features

__all__ = ["TrainingFiles", "analyze", "prepare"]

_ROWS_A_BATCH = 131_072
_READ_AHEAD = 4


class TrainingFiles:
    """The files that `batch` published, for one shop.

    Attributes:
      manifest: of the publication.
      fingerprint: SHA-256 over its files' checksums: the same for the same data, wherever and whenever.

    Raises:
      UsageError: there are no training files, or they are not of this shop.
    """

    def __init__(self, data: str, shop: Shop) -> None:
        self._data, self._shop = data, shop
        self._dataset = open_training(data)
        wanted = {shop.partition_column, *shop.training_columns}
        missing = sorted(wanted - set(self._dataset.schema.names))
        if missing:
            raise UsageError(
                f"--data {data}: column {missing[0]} of shop {shop.name} is not in the training "
                "files; give the --shop that `beamrec batch` was given"
            )
        manifest = read_manifest(data)
        if manifest is None:
            raise UsageError(f"--data {data}: the manifest was there and is gone; run `beamrec batch` again")
        self.manifest, self.fingerprint = manifest, _fingerprint(manifest)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, some 100,000 at a time whatever the size of the files.

        Raises:
          BadDataError: another run published meanwhile.
        """
        try:
            yield from _merged(self._dataset, [self._shop.partition_column, *self._shop.training_columns])
        except FileNotFoundError as error:
            raise self._changed() from error
        current = read_manifest(self._data)
        if current is None or _fingerprint(current) != self.fingerprint:
            raise self._changed()

    def _changed(self) -> BadDataError:
        return BadDataError(
            f"--data {self._data}: the training files were replaced while they were read; run this again"
        )


def _fingerprint(manifest: Manifest) -> str:
    files = sorted((file.partition, file.sha256) for file in manifest.files)
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _merged(dataset: ds.Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A partition is often a few hundred rows: many make one batch."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in dataset.to_batches(
        columns=columns,
        batch_size=_ROWS_A_BATCH,
        batch_readahead=_READ_AHEAD,
        fragment_readahead=_READ_AHEAD,
    ):
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _ROWS_A_BATCH:
            yield _joined(waiting)
            waiting, rows = [], 0
    if rows:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()
    return batch


def prepare(files: TrainingFiles, shop: Shop, options: TrainingOptions, folder: Path) -> Examples:
    """Writes the examples of training files into a new folder.

    Raises:
      UsageError: they cannot be split as the options say.
      BadDataError: they were replaced meanwhile, or hold other rows than their manifest says.
    """
    time = shop.ratings.time if options.split == "time" else None
    writer = ExampleWriter(
        folder,
        files.manifest.rows,
        _collector(shop.customers.key, shop.user_features),
        _collector(shop.products.key, shop.item_features),
        SplitOptions(options.holdout, options.split, options.seed),
        options.validation_share,
    )
    read = 0
    with writer.scattering() as add:
        for batch in files.batches():
            times = moments(batch.column(time)) if time else np.zeros(batch.num_rows)
            add(batch, _scaled_ratings(batch, shop), times)
            read += batch.num_rows
    if read != files.manifest.rows:
        raise BadDataError(
            f"--data: the manifest says {files.manifest.rows:,} ratings, the files hold {read:,}; "
            "run `beamrec batch --mode overwrite` to write them again"
        )
    return writer.finish()


def _collector(key: str, features: tuple[Feature, ...]) -> EntityCollector:
    return EntityCollector(key, functools.partial(build_features, key=key, features=features))


def _scaled_ratings(batch: pa.RecordBatch, shop: Shop) -> npt.NDArray[np.float32]:
    """Ratings on the scale 0…1, float32 [rows]."""
    low, span = shop.ratings.min_rating, shop.ratings.max_rating - shop.ratings.min_rating
    ratings = pc.cast(batch.column(shop.ratings.rating), pa.float64()).to_numpy(zero_copy_only=False)
    scaled: npt.NDArray[np.float32] = np.clip((ratings - low) / span, 0, 1).astype(np.float32)
    return scaled


def analyze(examples: Examples, spec: FeatureSpec, scalers: Path) -> None:
    """Makes the preprocessing graph from the tables: each customer and product counts once.

    Args:
      scalers: folder that does not exist yet; it appears when it is whole.
    """
    from beamrec.model.analysis import analyze_features

    # A killed analysis leaves another process' folder behind, which only ends with the work folder.
    staging = scalers.with_name(f"{scalers.name}-{os.getpid()}")
    analyze_features(_read_tables(examples), spec, staging)
    staging.rename(scalers)


def _read_tables(examples: Examples) -> Any:
    """A source of feature batches: the customers' with NULL for the products' columns, and the reverse."""
    import apache_beam as beam

    import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)

    schema = pa.schema([*examples.users.schema, *examples.items.schema])
    paths = [str(examples.folder / name) for name in TABLES]
    return "Tables" >> beam.Create(paths) | "Features" >> beam.FlatMap(_read_table, schema).with_output_types(
        pa.RecordBatch
    )


def _read_table(path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            columns = [
                batch.column(field.name) if field.name in batch.schema.names
                else pa.nulls(batch.num_rows, field.type)
                for field in schema
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
