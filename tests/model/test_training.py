"""Training end to end on the planted film shop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamrec.io.manifest import open_training
from beamrec.model import release as folders
from beamrec.model.batches import in_order
from beamrec.model.checkpoints import Checkpoints
from beamrec.model.evaluation import EvaluationOptions, ModelVectors, SplitOptions, evaluate
from beamrec.model.evaluation_data import sampled_ratings
from beamrec.model.examples import Examples
from beamrec.model.handler import quiet_tensorflow
from beamrec.model.learner import Learner
from beamrec.model.options import TowerOptions, TrainingOptions
from beamrec.model.preprocessing import FeatureSpec
from beamrec.model.training import Report, TrainedModel, train
from beamrec.pipelines.train_release import TrainConfig, train_release
from beamrec.pipelines.training_data import TrainingFiles, prepare
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.evaluation import Evaluation
from beamrec.schemas.shop import CLASSICMODELS

SEVEN = TrainingOptions(seed=7)


def _train(
    trained: Any,
    examples: Examples,
    options: TrainingOptions,
    checkpoints: Path,
    report: Callable[[Report], None] = lambda report: None,
    checkpoint_seconds: float = 60.0,
) -> TrainedModel:
    scalers = trained.release.folder / folders.SCALERS
    spec = FeatureSpec.from_shop(trained.shop)
    return train(examples, spec, scalers, options, checkpoints, report, checkpoint_seconds=checkpoint_seconds)


def _same(one: TrainedModel, other: TrainedModel) -> bool:
    return bool(
        one.progress.losses == other.progress.losses
        and one.progress.validation == other.progress.validation
        and (one.user_vectors == other.user_vectors).all()
        and (one.item_vectors == other.item_vectors).all()
    )


def _errors(model: TrainedModel, examples: Examples) -> tuple[float, float]:
    """RMSE of the predictions and of the training ratings' mean on the held-out ratings."""
    held = np.concatenate(list(examples.read("held")))
    predicted = model.predict(model.user_vectors[held["user"]], model.item_vectors[held["item"]])
    errors = (predicted - held["rating"], examples.mean_rating - held["rating"])
    return tuple(float(np.sqrt(np.mean(error**2))) for error in errors)  # type: ignore[return-value]


def test_the_model_beats_popularity_and_the_mean_on_planted_data(trained: Any) -> None:
    metrics = trained.release.manifest.metrics
    assert metrics["recall_at_10"] > 1.3 * metrics["recall_at_10_popularity"]
    assert metrics["recall_at_10_popularity"] > metrics["recall_at_10_random"] > 0
    assert metrics["rmse"] < 0.8 * metrics["rmse_of_the_mean"]


def test_the_evaluation_is_written_into_the_release(trained: Any) -> None:
    written = (trained.release.folder / "evaluation.json").read_bytes()
    evaluation = Evaluation.from_json(written)
    assert evaluation == trained.release.evaluation
    assert evaluation.headline() == dict(trained.release.manifest.metrics)
    assert {"model", "popularity", "random", "item_knn", "als", "mean"} == set(evaluation.systems)
    rows = trained.release.manifest.training["rows"]
    assert evaluation.counts.held_out == rows["held"]
    assert evaluation.counts.training == rows["training"] + rows["validation"]


def test_the_same_data_and_seed_give_the_same_metrics_and_vectors(
    trained: Any, examples: Examples, tmp_path: Path
) -> None:
    config = TrainConfig(trained.data, str(tmp_path / "releases"), trained.shop, SEVEN)
    again = train_release(config)
    assert again.evaluation.to_json() == trained.release.evaluation.to_json()
    for name in (folders.ITEM_EMBEDDINGS, folders.USER_EMBEDDINGS, folders.POPULARITY):
        assert (again.folder / name).read_bytes() == (trained.release.folder / name).read_bytes()
    other = _train(trained, examples, dataclasses.replace(SEVEN, seed=8), tmp_path / "other")
    same = _train(trained, examples, SEVEN, tmp_path / "same")
    assert _same(same, _train(trained, examples, SEVEN, tmp_path / "again"))
    assert not _same(same, other)


def test_every_loss_alone_trains(trained: Any, examples: Examples, tmp_path: Path) -> None:
    options = TrainingOptions(seed=7, tower=TowerOptions(dim=4, normalize=False))
    only_rating = dataclasses.replace(options, softmax_weight=0)
    rmse, of_the_mean = _errors(_train(trained, examples, only_rating, tmp_path / "rating"), examples)
    assert rmse < of_the_mean
    only_softmax = _train(trained, examples, dataclasses.replace(options, rating_weight=0), tmp_path / "soft")
    ratings = sampled_ratings(examples, 7)
    vectors = ModelVectors(only_softmax.user_vectors, only_softmax.item_vectors)
    found = evaluate(ratings.training, ratings.held, vectors, SplitOptions(seed=7), EvaluationOptions())
    assert found.headline()["recall_at_10"] > found.headline()["recall_at_10_popularity"]


class _KilledError(Exception):
    """Stands for the end of the process, at a place that the test chooses."""


@pytest.mark.parametrize("reports", [1, 3, 5])
def test_a_training_that_was_interrupted_ends_as_an_undisturbed_one(
    trained: Any, examples: Examples, tmp_path: Path, reports: int
) -> None:
    """Within an epoch and between two, twice in a row; every call into TensorFlow leaves a checkpoint."""
    options = dataclasses.replace(SEVEN, epochs=8)
    undisturbed = _train(trained, examples, options, tmp_path / "undisturbed")
    for _ in range(2):
        interrupt = _Interrupt(reports)
        with pytest.raises(_KilledError):
            _train(trained, examples, options, tmp_path / "killed", interrupt, checkpoint_seconds=0)
    resumed: list[Report] = []
    model = _train(trained, examples, options, tmp_path / "killed", resumed.append)
    assert _same(model, undisturbed)
    assert (resumed[0].epoch, resumed[0].done) > (1, 0.05), "it began anew"


class _Interrupt:
    def __init__(self, reports: int) -> None:
        self._left = reports

    def __call__(self, report: Report) -> None:
        self._left -= 1
        if not self._left:
            raise _KilledError


def test_early_stopping_keeps_the_best_epoch(trained: Any, examples: Examples, tmp_path: Path) -> None:
    options = dataclasses.replace(SEVEN, epochs=60, patience=3, embedding_rate=0.3)
    model = _train(trained, examples, options, tmp_path / "early")
    validation = model.progress.validation
    best = validation.index(min(validation))
    assert len(validation) == best + 1 + options.patience < options.epochs
    learner = Learner(
        examples, FeatureSpec.from_shop(trained.shop), trained.release.folder / "scalers", options
    )
    Checkpoints(tmp_path / "early", learner.state, pytest.fail).restore(model.progress.best)
    batches = in_order(examples.files("validation"), learner.batch_size, options.seed)
    assert float(learner.loss(batches)) == pytest.approx(min(validation), rel=1e-6)
    np.testing.assert_array_equal(learner.vectors()[1], model.item_vectors)


def test_without_patience_every_epoch_and_every_rating_is_trained(
    trained: Any, films: str, tmp_path: Path
) -> None:
    options = dataclasses.replace(SEVEN, epochs=3, patience=0)
    (tmp_path / "examples").mkdir()
    whole = prepare(TrainingFiles(films, trained.shop), trained.shop, options, tmp_path / "examples")
    assert whole.rows["validation"] == 0
    model = _train(trained, whole, options, tmp_path / "work")
    assert (len(model.progress.losses), model.progress.validation, model.progress.best) == (3, (), -1)


def test_too_few_ratings_are_refused(trained: Any, examples: Examples, tmp_path: Path) -> None:
    few = dataclasses.replace(examples, rows={"training": 1, "validation": 0, "held": 1})
    with pytest.raises(UsageError, match="too few"):
        _train(trained, few, SEVEN, tmp_path)


def test_the_release_is_what_the_towers_say(trained: Any) -> None:
    contents = folders.read_release(trained.release.folder)
    manifest = contents.manifest
    assert (manifest.items, manifest.users, manifest.dim, manifest.shop) == (100, 150, 32, "films")
    assert (manifest.user_key_type, manifest.item_key_type) == ("string", "int")
    assert len(manifest.data_fingerprint) == 64
    np.testing.assert_allclose(np.linalg.norm(contents.item_vectors, axis=1), 1, atol=1e-5)
    table = open_training(trained.data).to_table().group_by("film").aggregate([("film", "count")])
    counts = {str(r["film"]): r["film_count"] for r in table.to_pylist()}
    assert [counts[i] for i in contents.popular] == sorted(counts.values(), reverse=True)


def test_a_tower_preprocesses_as_the_graph_alone_does(trained: Any, examples: Examples) -> None:
    """The same raw values through the exported tower, and through the graph and then the layers."""
    tf = quiet_tensorflow()
    from beamrec.model.preprocessing import load_transform, raw_arrays
    from beamrec.model.towers import ServedTower, Tower

    spec = FeatureSpec.from_shop(trained.shop)
    scalers = trained.release.folder / folders.SCALERS
    tower = Tower(spec.item, trained.release.manifest.vocabulary_sizes, TowerOptions(), seed=1)
    raw = {n: tf.constant(v) for n, v in raw_arrays(examples.items, spec.item).items()}
    alone = tower(dict(load_transform(scalers).transform_raw_features(raw))).numpy()
    served = ServedTower(tower, spec.item, scalers).signature()
    np.testing.assert_allclose(served(**raw)["vector"].numpy(), alone, atol=1e-6)


def test_the_exported_item_tower_gives_the_stored_embeddings_one_by_one(
    trained: Any, examples: Examples, tmp_path: Path
) -> None:
    """Moved elsewhere, without the scalers beside it, and whatever the number of rows."""
    import shutil

    from beamrec.model.preprocessing import raw_arrays

    tf = quiet_tensorflow()
    shutil.copytree(trained.release.folder / folders.ITEM_TOWER, tmp_path / "tower")
    tower = tf.saved_model.load(str(tmp_path / "tower")).signatures["serving_default"]
    contents = folders.read_release(trained.release.folder)
    stored = dict(zip(contents.item_ids, contents.item_vectors, strict=True))
    for start, rows in ((0, 1), (1, 7), (50, 50)):
        batch = examples.items.slice(start, rows)
        raw = raw_arrays(batch, contents.manifest.item_inputs)
        vectors = tower(**{n: tf.constant(v) for n, v in raw.items()})["vector"].numpy()
        expected = np.stack([stored[i] for i in batch.column(0).to_pylist()])
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_other_training_files_are_refused(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"column .* of shop classicmodels is not in the training files"):
        train_release(TrainConfig(trained.data, str(tmp_path), CLASSICMODELS))
    with pytest.raises(UsageError, match="run `beamrec batch` first"):
        train_release(TrainConfig(str(tmp_path), str(tmp_path), CLASSICMODELS))
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_release_keeps_the_training(
    trained: Any, disk: Callable[[str], Path], tmp_path: Path
) -> None:
    """Neither for the preprocessing graph, nor for a tower behind it."""
    sizes = {path: path.stat().st_size for path in trained.release.folder.rglob("*") if path.is_file()}
    scalers = sum(size for path, size in sizes.items() if folders.SCALERS in path.parts)
    config = TrainConfig(trained.data, str(disk("size=64k")), trained.shop, SEVEN, str(tmp_path / "work"))
    said: list[str] = []
    for room in ("64k", f"{scalers // 1024 + 128}k"):
        disk(f"size={room}")
        with pytest.raises(UnavailableError, match="No space left on device; make room there"):
            train_release(config, said.append)
    assert list(Path(config.releases).iterdir()) == []
    disk("size=200m")
    checkpoints = _checkpoints(tmp_path / "work")
    again = train_release(config, said.append)
    assert said.count("going on with the training that was interrupted") == 2
    assert checkpoints
    assert again.manifest.metrics == trained.release.manifest.metrics
    assert not (tmp_path / "work").exists()


def _checkpoints(work: Path) -> list[str]:
    return [path.name for path in work.glob("*/checkpoints/[0-9]*")]
