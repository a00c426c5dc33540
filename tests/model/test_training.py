"""Training end to end on the planted film shop."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamrec.io.manifest import open_training
from beamrec.model import release as folders
from beamrec.model.handler import quiet_tensorflow
from beamrec.model.options import TowerOptions, TrainingOptions
from beamrec.model.preprocessing import FeatureSpec
from beamrec.pipelines.train_release import TrainConfig, build_ratings, train_release
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS


def test_the_model_beats_popularity_and_the_mean_on_planted_data(trained: Any) -> None:
    metrics = trained.release.manifest.metrics
    assert metrics["recall_at_10"] > 1.3 * metrics["recall_at_10_popularity"]
    assert metrics["recall_at_10_popularity"] > metrics["recall_at_10_random"] > 0
    assert metrics["rmse"] < 0.8 * metrics["rmse_of_the_mean"]


def test_the_same_data_and_seed_give_the_same_metrics_and_vectors(trained: Any) -> None:
    from beamrec.model.training import train

    spec = FeatureSpec.from_shop(trained.shop)
    ratings = build_ratings(open_training(trained.data), trained.shop)
    scalers = trained.release.folder / folders.SCALERS
    runs = [train(ratings, spec, scalers, TrainingOptions(seed=seed)) for seed in (7, 7, 8)]
    assert runs[0].metrics == runs[1].metrics == trained.release.manifest.metrics
    assert runs[0].metrics != runs[2].metrics


def test_every_loss_alone_trains(trained: Any) -> None:
    from beamrec.model.training import train

    spec = FeatureSpec.from_shop(trained.shop)
    ratings = build_ratings(open_training(trained.data), trained.shop)
    scalers = trained.release.folder / folders.SCALERS
    options = TrainingOptions(seed=7, tower=TowerOptions(dim=4, normalize=False))
    only_rating = train(ratings, spec, scalers, dataclasses.replace(options, softmax_weight=0))
    only_softmax = train(ratings, spec, scalers, dataclasses.replace(options, rating_weight=0))
    assert only_rating.metrics["rmse"] < only_rating.metrics["rmse_of_the_mean"]
    assert only_softmax.metrics["recall_at_10"] > only_softmax.metrics["recall_at_10_popularity"]


def test_ratings_are_the_same_whatever_the_order_of_rows(trained: Any) -> None:
    import pyarrow.dataset as ds

    table = open_training(trained.data).to_table()
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    first, second = (build_ratings(ds.dataset(t), trained.shop) for t in (table, shuffled))
    assert first.users.equals(second.users)
    assert first.items.equals(second.items)
    for name in ("user", "item", "rating"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    rows = table.sort_by([("person id", "ascending"), ("film", "ascending")]).to_pylist()
    expected = sorted((r["person id"], str(r["film"]), r["stars"] / 10) for r in rows)
    users, items = first.users.column(0).to_pylist(), first.items.column(0).to_pylist()
    found = sorted(
        (users[u], items[i], float(s)) for u, i, s in zip(first.user, first.item, first.rating, strict=True)
    )
    assert [f[:2] for f in found] == [e[:2] for e in expected]
    np.testing.assert_allclose([f[2] for f in found], [e[2] for e in expected], atol=1e-6)


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


def test_a_tower_preprocesses_as_the_graph_alone_does(trained: Any) -> None:
    """The same raw values through the exported tower, and through the graph and then the layers."""
    tf = quiet_tensorflow()
    from beamrec.model.preprocessing import load_transform, raw_arrays
    from beamrec.model.towers import ServedTower, Tower

    spec = FeatureSpec.from_shop(trained.shop)
    ratings = build_ratings(open_training(trained.data), trained.shop)
    scalers = trained.release.folder / folders.SCALERS
    tower = Tower(spec.item, trained.release.manifest.vocabulary_sizes, TowerOptions(), seed=1)
    raw = {n: tf.constant(v) for n, v in raw_arrays(ratings.items, spec.item).items()}
    alone = tower(dict(load_transform(scalers).transform_raw_features(raw))).numpy()
    served = ServedTower(tower, spec.item, scalers).signature()
    np.testing.assert_allclose(served(**raw)["vector"].numpy(), alone, atol=1e-6)


def test_the_exported_item_tower_gives_the_stored_embeddings_one_by_one(trained: Any, tmp_path: Path) -> None:
    """Moved elsewhere, without the scalers beside it, and whatever the number of rows."""
    import shutil

    from beamrec.model.preprocessing import raw_arrays

    tf = quiet_tensorflow()
    shutil.copytree(trained.release.folder / folders.ITEM_TOWER, tmp_path / "tower")
    tower = tf.saved_model.load(str(tmp_path / "tower")).signatures["serving_default"]
    contents = folders.read_release(trained.release.folder)
    ratings = build_ratings(open_training(trained.data), trained.shop)
    stored = dict(zip(contents.item_ids, contents.item_vectors, strict=True))
    for start, rows in ((0, 1), (1, 7), (50, 50)):
        batch = ratings.items.slice(start, rows)
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


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"holdout": 1.0}, {"rating_weight": -1.0}, {"batch_size": 1}]
)
def test_options_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        TrainingOptions(**wrong)  # type: ignore[arg-type]
