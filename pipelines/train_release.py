"""Training files to a release folder: examples, analysis on Beam, training, towers, evaluation, manifest."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.io.evaluation_page import render_evaluation
from beamrec.model import release as folders
from beamrec.model.handler import quiet_tensorflow
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec, raw_arrays, vocabulary_sizes
from beamrec.pipelines.training_data import TrainingFiles, analyze, prepare
from beamrec.pipelines.training_folder import training_folder, writing
from beamrec.pipelines.training_progress import ProgressLine
from beamrec.schemas.errors import UsageError
from beamrec.schemas.evaluation import Evaluation
from beamrec.schemas.releases import ReleaseManifest, TowerInput
from beamrec.schemas.shop import CLASSICMODELS, Shop
from beamrec.schemas.version import __version__

if TYPE_CHECKING:
    from beamrec.model.examples import Examples
    from beamrec.model.training import TrainedModel

__all__ = ["TrainConfig", "TrainedRelease", "train_release"]

EVALUATION, EVALUATION_PAGE = "evaluation.json", "evaluation.html"

_FORMAT = 2  # of the work folder
_ROWS_A_BATCH = 65_536


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      data: what `batch --output` was given.
      releases: folder that gets the new release.
      work: folder of unfinished trainings; `training` beside the releases if it is empty.
    """

    data: str
    releases: str
    shop: Shop = CLASSICMODELS
    options: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)
    work: str = ""

    def __post_init__(self) -> None:
        for name in ("data", "releases"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: expected a folder")
        folders.local_folder(self.releases)
        if self.options.split == "time" and not self.shop.ratings.time:
            raise UsageError(
                f"--split time: shop {self.shop.name} names no column for the time of a rating; give "
                "ratings.time in its TOML, or split by interactions"
            )

    @property
    def named_options(self) -> dict[str, Any]:
        """Every option by its name, those of the towers first."""
        values = dataclasses.asdict(self.options)
        tower: dict[str, Any] = values.pop("tower")
        return tower | values

    @property
    def work_folder(self) -> Path:
        """Where unfinished trainings are kept."""
        return Path(self.work) if self.work else folders.local_folder(self.releases).parent / "training"


@dataclasses.dataclass(frozen=True)
class TrainedRelease:
    """A new release.

    Attributes:
      folder, manifest: what was written.
      ratings: how many ratings it was made from.
      evaluation: what was measured on those held out.
    """

    folder: Path
    manifest: ReleaseManifest
    ratings: int
    evaluation: Evaluation


def train_release(
    config: TrainConfig,
    status: Callable[[str], None] = lambda text: None,
    progress_seconds: float = 30.0,
) -> TrainedRelease:
    """Trains on published training files and writes a release; goes on with a training that was killed.

    Args:
      status: told what is going on.
      progress_seconds: between two lines of progress within an epoch.

    Raises:
      UsageError: there are no training files, or they are not of this shop, or another process trains on
        them with the same options.
      BadDataError: the training files were replaced meanwhile.
      UnavailableError: there is no room for the work folder or the release.
    """
    files = TrainingFiles(config.data, config.shop)
    status("loading TensorFlow")
    quiet_tensorflow()
    from beamrec.model.training import train

    spec, options = FeatureSpec.from_shop(config.shop), config.options
    with training_folder(config.work_folder, _work_name(config, files)) as work:
        with writing(work):
            examples = _examples(files, config, work, status)
            scalers = work / folders.SCALERS
            if not scalers.is_dir():
                status("analysing features")
                analyze(examples, spec, scalers)
            report = ProgressLine(status, progress_seconds)
            model = train(examples, spec, scalers, options, work / "checkpoints", report, status)
        status("evaluating")
        evaluation = _evaluate(model, examples, config)
        status("exporting towers and embeddings")
        return _publish(config, files, spec, examples, scalers, model, evaluation)


def _work_name(config: TrainConfig, files: TrainingFiles) -> str:
    """The same for the same data, shop, options and code: what a training is made of."""
    content = (_FORMAT, __version__, files.fingerprint, config.shop, config.options)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _examples(
    files: TrainingFiles, config: TrainConfig, work: Path, status: Callable[[str], None]
) -> "Examples":
    """The examples in the work folder: those that stand there, else new ones."""
    from beamrec.model.examples import open_examples

    folder = work / "examples"
    try:
        examples = open_examples(folder)
        status("going on with the training that was interrupted")
    except (FileNotFoundError, ValueError, KeyError, pa.ArrowInvalid):
        status(f"reading {files.manifest.rows:,} ratings")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        examples = prepare(files, config.shop, config.options, folder)
    return examples


def _publish(
    config: TrainConfig,
    files: TrainingFiles,
    spec: FeatureSpec,
    examples: "Examples",
    scalers: Path,
    model: "TrainedModel",
    evaluation: Evaluation,
) -> TrainedRelease:
    releases = folders.local_folder(config.releases)
    with writing(releases), folders.staged_release(releases) as staging:
        _copy(scalers, staging / folders.SCALERS)
        _export(model, examples, spec, staging)
        (staging / EVALUATION).write_bytes(evaluation.to_json())
        page = render_evaluation(evaluation, training=config.named_options)
        (staging / EVALUATION_PAGE).write_text(page, encoding="utf-8")
        values = _manifest_values(config, spec, examples, model, scalers) | {
            "metrics": evaluation.headline(),
            "data_fingerprint": files.fingerprint,
        }
        manifest, folder = folders.publish_release(staging, releases, values)
    return TrainedRelease(folder, manifest, sum(examples.rows.values()), evaluation)


def _copy(folder: Path, target: Path) -> None:
    """As `shutil.copytree`, whose error does not say that the disk is full."""
    for path in folder.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _evaluate(model: "TrainedModel", examples: "Examples", config: TrainConfig) -> Evaluation:
    from beamrec.model.evaluation import EvaluationOptions, ModelVectors, SplitOptions, evaluate
    from beamrec.model.evaluation_data import entries, sampled_ratings

    options, scale = config.options, config.shop.ratings
    ratings = sampled_ratings(examples, options.seed)
    users = model.user_vectors[ratings.users]
    rows, items = entries(ratings.held)
    predicted = model.predict(users[rows], model.item_vectors[items])
    return evaluate(
        ratings.training, ratings.held, ModelVectors(users, model.item_vectors, predicted),
        SplitOptions(options.holdout, options.split, options.seed),
        EvaluationOptions(
            customers=options.evaluation_users,
            rating_span=scale.max_rating - scale.min_rating,
            seed=options.seed,
        ),
        sampled_from=examples.users.num_rows if len(users) < examples.users.num_rows else None,
    )  # fmt: skip


def _export(model: "TrainedModel", examples: "Examples", spec: FeatureSpec, staging: Path) -> None:
    """Towers as SavedModels; embeddings by those, so that a file and a tower never disagree."""
    from beamrec.model.towers import export_tower

    for tower, inputs, table, folder, file in (
        (model.user_tower, spec.user, examples.users, folders.USER_TOWER, folders.USER_EMBEDDINGS),
        (model.item_tower, spec.item, examples.items, folders.ITEM_TOWER, folders.ITEM_EMBEDDINGS),
    ):
        export_tower(tower, inputs, staging / folders.SCALERS, staging / folder)
        vectors = _embed(staging / folder, table, inputs)
        folders.write_embeddings(staging / file, table.column(0).to_pylist(), vectors)
    ids, counts = _by_popularity(examples)
    folders.write_popularity(staging / folders.POPULARITY, ids, counts)


def _by_popularity(examples: "Examples") -> tuple[Sequence[str], Sequence[int]]:
    """Products and their ratings by falling number of ratings, then mean rating, then key."""
    counts = examples.item_counts.sum(1)
    means = examples.item_sums / np.maximum(counts, 1)
    order = np.lexsort((np.arange(len(counts)), -means, -counts))
    return examples.items.column(0).take(pa.array(order)).to_pylist(), counts[order].tolist()


def _embed(tower: Path, features: pa.RecordBatch, inputs: tuple[TowerInput, ...]) -> npt.NDArray[np.float32]:
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
    config: TrainConfig, spec: FeatureSpec, examples: "Examples", model: "TrainedModel", scalers: Path
) -> dict[str, Any]:
    tower = config.options.tower
    return {
        "shop": config.shop.name,
        "user_key_type": config.shop.customers.key_type,
        "item_key_type": config.shop.products.key_type,
        "dim": tower.dim,
        "items": examples.items.num_rows,
        "users": examples.users.num_rows,
        "normalized": tower.normalize,
        "has_user_tower": True,
        "has_item_tower": True,
        "user_inputs": spec.user,
        "item_inputs": spec.item,
        "vocabulary_sizes": vocabulary_sizes(scalers, spec),
        "training": dataclasses.asdict(config.options)
        | {
            "ratings": sum(examples.rows.values()),
            "rows": examples.rows,
            "batch_size": model.batch_size,
            "losses": model.progress.losses,
            "validation_losses": model.progress.validation,
        },
    }
