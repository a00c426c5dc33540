"""`release upsert` and `gc` as the command line calls them: new products through a trained item tower."""

import contextlib
import io
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.pgvector_gc import Keep
from beamrec.model.release import ITEM_EMBEDDINGS, read_embeddings
from beamrec.pipelines.commands import release, train
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a shop, and a trained release of it that is active."""
    from beamrec.pipelines.batch_options import BatchConfig
    from beamrec.pipelines.batch_training import run_batch
    from beamrec.pipelines.generate_shop import ShopSize, generate_shop
    from beamrec.schemas.shop import CLASSICMODELS

    folder = tmp_path_factory.mktemp("home")
    source = f"sqlite:///{folder}/shop.db"
    generate_shop(source, ShopSize())
    run_batch(BatchConfig(source, f"{folder}/lake", CLASSICMODELS, "run"))
    trained = train.run(["--data", f"{folder}/lake", "--epochs", "1", "--dim", "8"], quiet(folder))
    release.run(["load", trained["release"]], quiet(folder))
    release.run(["promote", trained["release"]], quiet(folder))
    yield folder
    embedded.stop_server(folder / "pg")


def quiet(home: Path) -> Console:
    return Console(home, err=io.StringIO(), out=io.StringIO())


def copy_of_a_product(database: Path, code: str, like: str | None = None) -> str:
    """Adds a product with the features of another one, whose code is returned."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(products)")]
        chosen = "productCode = ?" if like else "? IS NULL"
        query = f"SELECT * FROM products WHERE {chosen} ORDER BY productCode LIMIT 1"  # noqa: S608
        row = dict(zip(names, connection.execute(query, [like]).fetchone(), strict=True))
        model = row["productCode"]
        marks = ", ".join("?" * len(names))
        values = list((row | {"productCode": code}).values())
        connection.execute(f"INSERT INTO products VALUES ({marks})", values)  # noqa: S608
    return str(model)


def test_products_of_today_are_found_by_the_next_search(home: Path) -> None:
    source = f"sqlite:///{home}/shop.db"
    store = ReleaseStore(f"embedded:{home}/pg")
    before = store.active()
    assert before is not None
    copy_of_a_product(home / "shop.db", "NEW_1")
    done = release.run(["upsert", "--source", source, "--reason", "of today"], quiet(home))
    json.dumps(done)
    assert (done["added"], done["changed"], done["skipped"]) == (1, 0, 0)
    assert done["in"] == done["out"] + done["known"] + done["skipped"]
    active = store.active()
    assert active is not None
    assert (active.id, active.items, active.items_version) == (before.id, before.items + 1, 1)
    catalogue = store.catalogue(active.id)
    vector = catalogue.vectors[catalogue.ids.to_pylist().index("NEW_1")]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)
    assert store.search(active.id, vector[None], 1).to_pylist()[0][0]["id"] == "NEW_1"
    again = release.run(["upsert", "--source", source], quiet(home))
    assert (again["added"], again["items_version"]) == (0, 1)
    assert store.show(active.id)["history"][-1]["why"].startswith("of today: 1 new")
    store.close()


def test_the_item_tower_gives_a_known_product_the_vector_that_it_has(home: Path, tmp_path: Path) -> None:
    """So a product from a CSV file, all text, is cleaned as training cleaned it."""
    store = ReleaseStore(f"embedded:{home}/pg")
    active = store.active()
    assert active is not None
    ids, vectors = read_embeddings(Path(active.uri) / ITEM_EMBEDDINGS, active.dim)
    with contextlib.closing(sqlite3.connect(home / "shop.db")) as connection:
        found = connection.execute("SELECT * FROM products WHERE productCode = ?", ids[:1])
        header, row = [column[0] for column in found.description], found.fetchone()
    path = tmp_path / "products.csv"
    lines = [",".join(header), ",".join('"' + str(value).replace('"', '""') + '"' for value in row)]
    path.write_text("\n".join(lines) + "\n")
    done = release.run(["upsert", "--items", str(path)], quiet(home))
    assert (done["added"], done["changed"]) == (0, 1)
    catalogue = store.catalogue(active.id)
    stored = catalogue.vectors[catalogue.ids.to_pylist().index(ids[0])]
    np.testing.assert_allclose(stored, vectors[0], atol=1e-5)
    store.close()


def test_vectors_may_be_given(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.csv"
    path.write_text('id,embedding\nGIVEN,"[1,0,0,0,0,0,0,0]"\n')
    assert release.run(["upsert", "--items", str(path)], quiet(home))["added"] == 1
    path.write_text('id,embedding\nGIVEN,"[1,0,0]"\n')
    with pytest.raises(BadDataError, match=r"expected vectors of 8 numbers, as release .* got 3"):
        release.run(["upsert", "--items", str(path)], quiet(home))
    path.write_text('\ufeff"Name","id","Embedding"\nx,GIVEN,"[0 1 0 0 0 0 0 0]"\n')
    done = release.run(["upsert", "--items", str(path)], quiet(home))
    assert (done["added"], done["changed"]) == (0, 1), "in the spellings that an import takes"
    path.write_text("productCode,nonsense\nX,1\n")
    with pytest.raises(UsageError, match=r"is missing"):
        release.run(["upsert", "--items", str(path)], quiet(home))
    with pytest.raises(UsageError, match="which products"):
        release.run(["upsert"], quiet(home))


def test_gc_removes_folders_only_when_asked(home: Path) -> None:
    active = ReleaseStore(f"embedded:{home}/pg").active()
    assert active is not None
    trained = [
        train.run(["--data", f"{home}/lake", "--epochs", "1", "--dim", "8", "--seed", seed], quiet(home))
        for seed in ("1", "2")
    ]
    ids = [entry["release"] for entry in trained]
    for release_id in ids:
        release.run(["load", release_id], quiet(home))
    stale, fresh = (home / "releases" / f".staging-{name}" for name in ("stale", "fresh"))
    for folder in (stale, fresh):
        folder.mkdir()
    os.utime(stale, (time.time() - 90_000,) * 2)
    planned = release.run(["gc", "--keep", "1", "--folders", "--dry-run"], quiet(home))
    assert (planned["dropped"], len(planned["folders"])) == ([ids[0]], 2)
    done = release.run(["gc", "--keep", "1"], quiet(home))
    json.dumps(done)
    assert (done["dropped"], done["folders"]) == ([ids[0]], [])
    assert done["kept"] == {active.id: "active", ids[1]: "newest"}
    assert (home / "releases" / ids[0]).is_dir()
    release.run(["load", ids[0]], quiet(home))
    done = release.run(["gc", "--keep", "1", "--folders"], quiet(home))
    assert done["dropped"] == [ids[1]], "it was loaded before the other one"
    assert not (home / "releases" / ids[1]).exists()
    assert (home / "releases" / ids[0]).is_dir()
    assert not stale.exists()
    assert fresh.exists()


def made_up(release_id: str) -> ReleaseContents:
    """A release of two items, by hand."""
    manifest = ReleaseManifest(
        id=release_id, created_at="2026-11-22T12:00:00Z", code_version="0", shop="test", user_key_type="int",
        item_key_type="int", dim=2, items=2, users=0, files=(),
    )  # fmt: skip
    vectors = np.eye(2, dtype=np.float32)
    return ReleaseContents(
        manifest, "/f", "0" * 64, ("1", "2"), vectors, (), np.empty((0, 2), np.float32), ("1",)
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[ReleaseStore, Path]]:
    """A store with the releases `a` and `b`, and a home with their folders."""
    store = ReleaseStore(embedded.embedded_uri(tmp_path))
    for release_id in "ab":
        store.load(made_up(release_id))
        (tmp_path / "releases" / release_id).mkdir(parents=True)
    yield store, tmp_path
    store.close()
    embedded.stop_server(tmp_path / "pg")


def test_gc_checks_its_options_before_it_drops_anything(small: tuple[ReleaseStore, Path]) -> None:
    store, home = small
    for options, message in (
        (["--folders", "--releases", "s3://bucket/releases"], "--folders: s3://bucket/releases is an object"),
        (["--retention", "nan"], "--retention: expected 0 to 36,500 days, got nan"),
        (["--retention", "1e12"], "--retention: expected 0 to 36,500 days"),
    ):
        with pytest.raises(UsageError, match=message):
            release.run(["gc", "--keep", "1", *options], quiet(home))
    assert [entry["id"] for entry in store.releases()] == ["b", "a"]


def test_folders_of_releases_that_an_earlier_gc_dropped_are_removed_by_the_next(
    small: tuple[ReleaseStore, Path],
) -> None:
    """As after one that was killed between the store and the folders; what is loaded again stays."""
    store, home = small
    assert store.collect(Keep(1)).dropped == ("a",)
    (home / "releases" / "never loaded").mkdir()
    planned = release.run(["gc", "--folders", "--dry-run"], quiet(home))
    assert planned["folders"] == [str(home / "releases" / "a")]
    store.load(made_up("a"))
    assert release.run(["gc", "--folders"], quiet(home))["folders"] == []
    assert store.collect(Keep(1)).dropped == ("b",)
    done = release.run(["gc", "--folders"], quiet(home))
    assert (done["dropped"], done["folders"]) == ([], [str(home / "releases" / "b")])
    assert sorted(path.name for path in (home / "releases").iterdir()) == ["a", "never loaded"]


def test_vectors_of_integer_keys_are_given_by_integers(
    small: tuple[ReleaseStore, Path], tmp_path: Path
) -> None:
    store, home = small
    path = tmp_path / "vectors.csv"
    path.write_text('id,embedding\n007,"[1,0]"\n')
    done = release.run(["upsert", "--release", "b", "--items", str(path)], quiet(home))
    assert done["added"] == 1
    assert store.unknown_items("b", ["7", "007"]) == ["007"]
    path.write_text('id,embedding\n99999999999999999999,"[1,0]"\n')
    with pytest.raises(BadDataError, match=r"vectors\.csv:2: expected an integer id"):
        release.run(["upsert", "--release", "b", "--items", str(path)], quiet(home))


def test_a_store_without_tables_says_that_a_release_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "vectors.csv").write_text('id,embedding\n1,"[1,0]"\n')
    try:
        for action in (["report", "x"], ["upsert", "--release", "x", "--items", f"{tmp_path}/vectors.csv"]):
            with pytest.raises(UsageError, match="release x is not loaded"):
                release.run(action, quiet(tmp_path))
    finally:
        embedded.stop_server(tmp_path / "pg")
