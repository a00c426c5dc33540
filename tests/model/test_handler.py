"""The handler inside RunInference, on the real SavedModel of the film shop."""

import dataclasses
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.model import release as folders
from beamrec.model.handler import ReleaseCache, TwoTowerHandler
from beamrec.model.preprocessing import FeatureSpec
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.features import build_features

ROWS = [
    {"person id": "p1", "region": "South", "age": 21.0},  # known, other spelling than in training
    {"person id": "p1", "region": None, "age": None},  # known, nothing else
    {"person id": "stranger", "region": " NORTH ", "age": 33.0},  # cold
    {"person id": "stranger", "region": "Atlantis", "age": None},  # cold, a region never seen
    {"person id": None, "region": None, "age": 1e30},  # cold, absurd number
    {"person id": "stranger", "region": "  ", "age": None},  # nothing usable
    {"person id": None, "region": None, "age": float("inf")},  # nothing usable
]
USABLE = [True, True, True, True, True, False, False]
SCHEMA = pa.schema([("person id", pa.string()), ("region", pa.string()), ("age", pa.float64())])


def stamp(folder: Path) -> dict[bytes, bytes]:
    checksum = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    return {
        b"release": folder.name.encode(),
        b"release_uri": str(folder).encode(),
        b"release_checksum": checksum.encode(),
    }


def batch_of(folder: Path, rows: list[dict[str, Any]] = ROWS) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA.with_metadata(stamp(folder)))


def infer(handler: TwoTowerHandler, cache: ReleaseCache, batch: pa.RecordBatch) -> pa.RecordBatch:
    (answer,) = handler.run_inference(batch, cache)
    return answer


@pytest.fixture(scope="module")
def handler(trained: Any) -> TwoTowerHandler:
    return TwoTowerHandler(trained.shop, build_features)


@pytest.fixture(scope="module")
def cache(handler: TwoTowerHandler) -> ReleaseCache:
    return handler.load_model()


def test_runinference_adds_a_vector_and_keeps_the_rest(trained: Any, handler: TwoTowerHandler) -> None:
    batch = batch_of(trained.release.folder)

    def check(found: list[pa.RecordBatch]) -> None:
        (answer,) = found
        assert answer.schema.metadata == batch.schema.metadata
        assert answer.drop_columns(["user_vector"]).equals(batch)
        vectors = answer.column("user_vector")
        assert vectors.type == pa.list_(pa.float32(), 32)
        assert vectors.is_valid().to_pylist() == USABLE
        norms = np.linalg.norm(vectors.drop_null().flatten().to_numpy().reshape(5, 32), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-5)

    with TestPipeline() as pipeline:
        scored = pipeline | beam.Create([batch]) | RunInference(handler)
        assert_that(scored, check)


def test_a_known_customer_with_his_own_features_gets_the_stored_vector(
    trained: Any, handler: TwoTowerHandler, cache: ReleaseCache
) -> None:
    contents = folders.read_release(trained.release.folder)
    stored = contents.user_vectors[contents.user_ids.index("p1")]
    answer = infer(handler, cache, batch_of(trained.release.folder))
    vectors = answer.column("user_vector").to_pylist()
    region_of_p1 = _training_value(trained, "p1", "region")
    own = batch_of(trained.release.folder, [{"person id": "p1", "region": region_of_p1, "age": 21.0}])
    np.testing.assert_allclose(
        infer(handler, cache, own).column("user_vector").to_pylist()[0], stored, atol=1e-6
    )
    assert not np.allclose(vectors[1], stored, atol=1e-3)
    assert not np.allclose(vectors[2], vectors[3], atol=1e-3)


def test_a_stranger_is_recommended_what_his_region_likes(
    trained: Any, handler: TwoTowerHandler, cache: ReleaseCache
) -> None:
    contents = folders.read_release(trained.release.folder)
    genres = ["drama", "comedy", "horror", "western"]
    for number, region in enumerate(["North", "South", "East", "West"]):
        rows = [{"person id": "nobody", "region": region.upper() + " ", "age": None}]
        vector = infer(handler, cache, batch_of(trained.release.folder, rows)).column("user_vector")
        top = np.argsort(-(contents.item_vectors @ np.array(vector.to_pylist()[0])))[:10]
        liked = [_training_value(trained, int(contents.item_ids[i]), "genre") == genres[number] for i in top]
        assert sum(liked) >= 7


def _training_value(trained: Any, key: Any, column: str) -> Any:
    from beamrec.io.manifest import open_training

    name = "person id" if column == "region" else "film"
    rows = open_training(trained.data).to_table(columns=[name, column]).to_pylist()
    return next(row[column] for row in rows if row[name] == key)


def test_vectors_do_not_depend_on_the_batch(
    trained: Any, handler: TwoTowerHandler, cache: ReleaseCache
) -> None:
    together = infer(handler, cache, batch_of(trained.release.folder)).column("user_vector").to_pylist()
    for row, expected in zip(ROWS, together, strict=True):
        alone = (
            infer(handler, cache, batch_of(trained.release.folder, [row])).column("user_vector")[0].as_py()
        )
        assert (alone is None) == (expected is None)
        if alone is not None:
            np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_an_empty_batch_and_one_without_anything_usable(
    trained: Any, handler: TwoTowerHandler, cache: ReleaseCache
) -> None:
    assert infer(handler, cache, batch_of(trained.release.folder, [])).num_rows == 0
    answer = infer(handler, cache, batch_of(trained.release.folder, ROWS[5:]))
    assert answer.column("user_vector").null_count == 2


def test_a_release_without_a_user_tower_gives_nulls(
    trained: Any, handler: TwoTowerHandler, cache: ReleaseCache, tmp_path: Path
) -> None:
    def without_tower(values: dict[str, Any]) -> None:
        values |= {"has_user_tower": False, "user_inputs": []}

    folder = _copied(trained.release.folder, tmp_path, "no-tower", without_tower)
    answer = infer(handler, cache, batch_of(folder))
    assert answer.column("user_vector").null_count == len(ROWS)
    assert answer.column("user_vector").type.list_size == 32


def test_an_imported_tower_knows_the_customers_of_its_embeddings(
    trained: Any, handler: TwoTowerHandler, cache: ReleaseCache, tmp_path: Path
) -> None:
    def imported(values: dict[str, Any]) -> None:
        values["origin"] = "import"
        values["files"] = [f for f in values["files"] if not f["path"].startswith(folders.SCALERS)]

    folder = _copied(trained.release.folder, tmp_path, "imported", imported)
    shutil.rmtree(folder / folders.SCALERS)
    expected = infer(handler, cache, batch_of(trained.release.folder)).column("user_vector")
    assert infer(handler, cache, batch_of(folder)).column("user_vector").equals(expected)


def test_a_changed_release_and_a_missing_stamp_are_refused(
    trained: Any, handler: TwoTowerHandler, tmp_path: Path
) -> None:
    folder = _copied(trained.release.folder, tmp_path, trained.release.folder.name, lambda values: None)
    batch = batch_of(folder)
    model = folder / folders.USER_TOWER / "saved_model.pb"
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    with pytest.raises(BadDataError, match="is not what the manifest says"):
        infer(handler, handler.load_model(), batch)
    other = batch.replace_schema_metadata({**stamp(folder), b"release_checksum": b"0" * 64})
    with pytest.raises(BadDataError, match=r"manifest.json was changed"):
        infer(handler, handler.load_model(), other)
    with pytest.raises(BadDataError, match="not stamped"):
        infer(handler, handler.load_model(), batch.replace_schema_metadata({}))


def test_a_release_of_another_shop_is_refused(trained: Any) -> None:
    cache = ReleaseCache(FeatureSpec.from_shop(CLASSICMODELS))
    marks = stamp(trained.release.folder)
    with pytest.raises(UsageError, match="was trained for shop films"):
        cache.get(marks[b"release_uri"].decode(), marks[b"release_checksum"].decode())


def test_the_cache_loads_once_and_keeps_three(trained: Any, tmp_path: Path) -> None:
    cache = ReleaseCache(FeatureSpec.from_shop(trained.shop))
    copies = [
        _copied(trained.release.folder, tmp_path, f"release-{n}", _id_of(f"release-{n}")) for n in range(4)
    ]
    marks = [(str(c), stamp(c)[b"release_checksum"].decode()) for c in copies]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get(*marks[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(release) for release in found}) == 1
    cache.get(*marks[1])
    cache.get(*marks[2])
    assert cache.get(*marks[0]) is found[0]
    cache.get(*marks[3])  # release-1 is the least recently used
    assert len(cache) == 3
    assert cache.get(*marks[0]) is found[0]


def _id_of(release: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["id"] = release

    return change


def _copied(source: Path, target: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a release whose manifest says otherwise, but truly."""
    folder = target / name
    shutil.copytree(source, folder)
    values = json.loads((folder / "manifest.json").read_bytes())
    values["id"] = name
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder


def test_the_handler_is_small_to_ship(handler: TwoTowerHandler) -> None:
    from apache_beam.internal import pickler

    copy = pickler.loads(pickler.dumps(handler))
    assert copy.should_skip_batching()
    assert dataclasses.asdict(copy._shop) == dataclasses.asdict(handler._shop)
    assert len(pickler.dumps(handler)) < 20_000
