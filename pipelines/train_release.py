"""Training files to a release folder: analysis on Beam, training, towers, embeddings, manifest."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from beamrec.io.manifest import open_training, read_manifest
from beamrec.model import release as folders
from beamrec.model.handler import quiet_tensorflow
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec, raw_arrays, vocabulary_sizes
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ReleaseManifest, TowerInput
from beamrec.schemas.shop import CLASSICMODELS, Shop
from beamrec.transforms.features import build_features

if TYPE_CHECKING:
    from beamrec.model.training import Ratings, TrainedModel

__all__ = ["TrainConfig", "TrainedRelease", "build_ratings", "train_release"]

_FILES_A_READ = 256  # partitions are small files: one element of the analysis reads many
_ROWS_A_BATCH = 65_536


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      data: what `batch --output` was given.
      releases: folder that gets the new release.
    """

    data: str
    releases: str
    shop: Shop = CLASSICMODELS
    options: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        for name in ("data", "releases"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected a folder")
        folders.local_folder(self.releases)


@dataclasses.dataclass(frozen=True)
class TrainedRelease:
    """A new release: its folder, manifest and how many ratings it was made from."""

    folder: Path
    manifest: ReleaseManifest
    ratings: int


def train_release(config: TrainConfig, status: Callable[[str], None] = lambda text: None) -> TrainedRelease:
    """Trains on published training files and writes a release.

    Args:
      status: told what is going on.

    Raises:
      UsageError: there are no training files, or they are not of this shop.
    """
    dataset = _open_dataset(config)
    status("loading TensorFlow")
    quiet_tensorflow()
    from beamrec.model.analysis import analyze_features
    from beamrec.model.training import train

    spec, releases = FeatureSpec.from_shop(config.shop), folders.local_folder(config.releases)
    with folders.staged_release(releases) as staging:
        scalers = staging / folders.SCALERS
        status("analysing features")
        analyze_features(_read_features(dataset, config.shop), spec, scalers)
        ratings = build_ratings(dataset, config.shop)
        model = train(
            ratings, spec, scalers, config.options,
            lambda epoch, loss: status(f"epoch {epoch} of {config.options.epochs}: loss {loss:.3f}"),
        )  # fmt: skip
        status("exporting towers and embeddings")
        _export(model, ratings, spec, staging)
        values = _manifest_values(config, spec, ratings, model, scalers)
        manifest, folder = folders.publish_release(staging, releases, values)
    return TrainedRelease(folder, manifest, len(ratings.rating))


def _open_dataset(config: TrainConfig) -> ds.Dataset:
    dataset = open_training(config.data)
    wanted = {config.shop.partition_column, *config.shop.training_columns}
    missing = sorted(wanted - set(dataset.schema.names))
    if missing:
        raise UsageError(
            f"--data {config.data}: column {missing[0]} of shop {config.shop.name} is not in the training "
            "files; give the --shop that `beamrec batch` was given"
        )
    return dataset


def _features(batch: pa.RecordBatch, shop: Shop) -> pa.RecordBatch:
    """Inputs of both towers, side by side."""
    user = build_features(batch, shop.customers.key, shop.user_features)
    item = build_features(batch, shop.products.key, shop.item_features)
    return pa.RecordBatch.from_arrays(
        [*user.columns, *item.columns], names=[*user.schema.names, *item.schema.names]
    )


def _read_features(dataset: ds.Dataset, shop: Shop) -> Any:
    """A source of feature batches for the analysis; files are read where they are counted."""
    import apache_beam as beam

    import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)

    fragments = list(dataset.get_fragments())
    groups = [fragments[start : start + _FILES_A_READ] for start in range(0, len(fragments), _FILES_A_READ)]
    return "Files" >> beam.Create(groups) | "Features" >> beam.FlatMap(
        _read_group, dataset.schema, shop
    ).with_output_types(pa.RecordBatch)


def _read_group(fragments: list[ds.Fragment], schema: pa.Schema, shop: Shop) -> Iterator[pa.RecordBatch]:
    tables = [fragment.to_table(schema=schema) for fragment in fragments]
    for batch in pa.concat_tables(tables).combine_chunks().to_batches(max_chunksize=_ROWS_A_BATCH):
        yield _features(batch, shop)


def build_ratings(dataset: ds.Dataset, shop: Shop) -> "Ratings":
    """All ratings, with each distinct customer's and product's features once; sorted by their keys.

    The order does not depend on the order of files and rows, so that the same data trains the same model.
    """
    from beamrec.model.training import Ratings

    table = dataset.to_table().combine_chunks()
    (batch,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    users, user = _distinct(build_features(batch, shop.customers.key, shop.user_features))
    items, item = _distinct(build_features(batch, shop.products.key, shop.item_features))
    low, span = shop.ratings.min_rating, shop.ratings.max_rating - shop.ratings.min_rating
    rating = pc.cast(batch.column(shop.ratings.rating), pa.float64()).to_numpy(zero_copy_only=False)
    scaled = np.clip((rating - low) / span, 0, 1).astype(np.float32)
    order = np.lexsort((scaled, item, user))
    return Ratings(users, items, user[order], item[order], scaled[order], span)


def _distinct(features: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray]:
    """One row a key (its first column), sorted by key; and for each row of `features` which one is its."""
    keys = features.column(0).dictionary_encode()
    codes = keys.indices.to_numpy()
    order = pc.sort_indices(keys.dictionary).to_numpy()
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    _, first = np.unique(codes, return_index=True)
    return features.take(pa.array(first[order])), place[codes]


def _export(model: "TrainedModel", ratings: "Ratings", spec: FeatureSpec, staging: Path) -> None:
    """Towers as SavedModels; embeddings by those, so that a file and a tower never disagree."""
    from beamrec.model.evaluation import popularity_order
    from beamrec.model.towers import export_tower

    for tower, inputs, features, folder, file in (
        (model.user_tower, spec.user, ratings.users, folders.USER_TOWER, folders.USER_EMBEDDINGS),
        (model.item_tower, spec.item, ratings.items, folders.ITEM_TOWER, folders.ITEM_EMBEDDINGS),
    ):
        export_tower(tower, inputs, staging / folders.SCALERS, staging / folder)
        vectors = _embed(staging / folder, features, inputs)
        folders.write_embeddings(staging / file, features.column(0).to_pylist(), vectors)
    order = popularity_order(ratings.item, ratings.rating, ratings.items.num_rows)
    counts = np.bincount(ratings.item, minlength=ratings.items.num_rows)[order]
    ids = ratings.items.column(0).take(pa.array(order)).to_pylist()
    folders.write_popularity(staging / folders.POPULARITY, ids, counts.tolist())


def _embed(tower: Path, features: pa.RecordBatch, inputs: tuple[TowerInput, ...]) -> np.ndarray:
    """Vectors [rows, dim] by an exported tower."""
    tf = quiet_tensorflow()
    loaded = tf.saved_model.load(str(tower))
    parts = []
    for start in range(0, features.num_rows, _ROWS_A_BATCH):
        raw = raw_arrays(features.slice(start, _ROWS_A_BATCH), inputs)
        tensors = {name: tf.constant(values) for name, values in raw.items()}
        parts.append(loaded.signatures["serving_default"](**tensors)["vector"].numpy())
    return np.concatenate(parts)


def _manifest_values(
    config: TrainConfig, spec: FeatureSpec, ratings: "Ratings", model: "TrainedModel", scalers: Path
) -> dict[str, Any]:
    tower = config.options.tower
    return {
        "shop": config.shop.name,
        "user_key_type": config.shop.customers.key_type,
        "item_key_type": config.shop.products.key_type,
        "dim": tower.dim,
        "items": ratings.items.num_rows,
        "users": ratings.users.num_rows,
        "normalized": tower.normalize,
        "has_user_tower": True,
        "has_item_tower": True,
        "user_inputs": spec.user,
        "item_inputs": spec.item,
        "vocabulary_sizes": vocabulary_sizes(scalers, spec),
        "metrics": model.metrics,
        "data_fingerprint": _fingerprint(config.data),
        "training": dataclasses.asdict(config.options) | {"ratings": len(ratings.rating)},
    }


def _fingerprint(data: str) -> str:
    """SHA-256 over the published files' checksums: the same for the same data, wherever and whenever."""
    manifest = read_manifest(data)
    files = sorted((f.partition, f.sha256) for f in manifest.files) if manifest else []
    return hashlib.sha256(repr(files).encode()).hexdigest()
