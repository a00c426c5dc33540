"""Imported releases, as a user of the course's project moves over: import, load, promote, stream.

And the same release folder on an object store: published, loaded, and fetched by the workers of a stream.
"""

import argparse
import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import psycopg2
import pytest

from beamrec.io.embedded import ensure_running
from beamrec.io.release_folders import publish
from beamrec.model import release as folders
from beamrec.pipelines import release_import
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError

ITEMS = ["S10_1678", "S10_1949", "S10_2016", "S12_1099", "S12_1108", "S18_1097", "S24_2000"]
USERS = ["103", "112"]
RATINGS = [("S12_1108", 4), ("S24_2000", 3), ("S10_2016", 2), ("S10_1678", 1)]
PICKLE = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00."


def vectors() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    return tuple(random.normal(size=(rows, 8)).astype(np.float32) for rows in (len(ITEMS), len(USERS)))  # type: ignore[return-value]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder with the course's exact names, and models that no one may open: they are not readable."""
    folder = tmp_path / "course"
    (folder / "model").mkdir(parents=True)
    (folder / "scalers").mkdir()
    for file, ids, values in zip(
        (folders.ITEM_EMBEDDINGS, folders.USER_EMBEDDINGS), (ITEMS, USERS), vectors(), strict=True
    ):
        (folder / file).parent.mkdir(exist_ok=True)
        rows = [f'{key},"{json.dumps(row)}"\n' for key, row in zip(ids, values.tolist(), strict=True)]
        (folder / file).write_text("id,embedding\n" + "".join(rows))
    for file in ("model/best_model.pth", "scalers/item_std_scaler.pkl", "scalers/user_ohe.pkl"):
        (folder / file).write_bytes(PICKLE)
    lines = [f"{100 + row},{item},3\n" for item, count in RATINGS for row in range(count)]
    (tmp_path / "ratings.csv").write_text("customerNumber,productCode,productRating\n" + "".join(lines))
    return folder


@pytest.fixture
def home(tmp_path: Path, command_line: Callable[..., dict[str, Any]]) -> Iterator[Path]:
    """A home of its own; its embedded server is stopped at the end."""
    yield tmp_path / "home"
    command_line("down", home=tmp_path / "home")


def event(customer: int, *products: str) -> dict[str, Any]:
    history = [{"product_code": p, "quantity": 1, "in_shopping_cart": True} for p in products]
    return {
        "session_id": f"{customer}-{'-'.join(products)}", "customer_number": customer, "city": "Nantes",
        "country": "France", "credit_limit": 21_000, "browse_history": history,
    }  # fmt: skip


def streamed(stream_job: Callable[..., Any], home: Path, *events: dict[str, Any]) -> list[dict[str, Any]]:
    """What the stream makes of the events, in their order."""
    job = stream_job("--window-seconds=1", "--max-delay=0.5", "--stop-when-idle=4", home=home)
    (job.input / "e.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    result = job.start().finish()
    assert result["ok"], result
    found = {record["session_id"]: record for _, record in job.visible()}
    return [found[e["session_id"]] for e in events]


def ids(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["id"] for entry in entries]


def test_the_courses_folder_imports_loads_and_serves(
    course: Path,
    home: Path,
    command_line: Callable[..., dict[str, Any]],
    stream_job: Callable[..., Any],
    tmp_path: Path,
) -> None:
    made = command_line("release", "import", str(course), f"--ratings={tmp_path}/ratings.csv", home=home)
    assert made["ok"], made
    assert made["skipped"] == [
        "model/best_model.pth", "scalers/item_std_scaler.pkl", "scalers/user_ohe.pkl",
    ]  # fmt: skip
    for action in ("load", "promote"):
        done = command_line("release", action, made["release"], home=home)
        assert done["ok"], done
    known, unknown, other = streamed(
        stream_job, home, event(103, "S10_1678"), event(999, "S24_2000"), event(112)
    )
    items, users = vectors()
    scores = dict(zip(ITEMS, items @ users[0], strict=True))
    best = sorted((i for i in ITEMS if i != "S10_1678"), key=lambda i: -scores[i])[:5]
    assert known["served_by"] == other["served_by"] == "known_customer"
    assert ids(known["recommended_items"]) == best
    assert [entry["score"] for entry in known["recommended_items"]] == pytest.approx(
        [scores[i] for i in best]
    )
    assert unknown["served_by"] == "popular"
    assert ids(unknown["recommended_items"]) == ["S12_1108", "S10_2016", "S10_1678", "S10_1949", "S12_1099"]
    (similar,) = known["similar_items"]
    distances = dict(zip(ITEMS, np.linalg.norm(items - items[0], axis=1), strict=True))
    assert ids(similar["similar_items"]) == sorted(ITEMS[1:], key=lambda i: distances[i])[:5]
    assert {record["release"] for record in (known, unknown, other)} == {made["release"]}


@pytest.mark.parametrize("kind", ["training files", "parquet", "database"])
def test_popularity_is_counted_from_wherever_the_ratings_are(
    kind: str, course: Path, tmp_path: Path, home: Path, command_line: Callable[..., dict[str, Any]]
) -> None:
    made = command_line(
        "release",
        "import",
        str(course),
        f"--ratings={_ratings(kind, tmp_path, home, command_line)}",
        home=home,
    )
    assert made["ok"], made
    contents = folders.read_release(Path(made["paths"]["release"]))
    assert contents.popular == (*(item for item, _ in RATINGS), "S10_1949", "S12_1099", "S18_1097")


def _ratings(kind: str, folder: Path, home: Path, command_line: Callable[..., dict[str, Any]]) -> str:
    if kind == "parquet":
        from pyarrow import csv, parquet

        parquet.write_table(csv.read_csv(folder / "ratings.csv"), folder / "ratings.parquet")
        return f"{folder}/ratings.parquet"
    source = f"sqlite:///{folder}/shop.db"
    assert command_line("generate", "shop", f"--output={source}", home=home)["ok"]
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as shop, shop:
        customers = [row[0] for row in shop.execute("SELECT customerNumber FROM customers LIMIT 9")]
        products = [row[0] for row in shop.execute("SELECT productCode FROM products LIMIT 4")]
        shop.execute("DELETE FROM ratings")
        for (item, count), product in zip(RATINGS, products, strict=True):
            shop.execute("UPDATE products SET productCode = ? WHERE productCode = ?", (item, product))
            rows = [(customer, item, 3) for customer in customers[:count]]
            shop.executemany("INSERT INTO ratings VALUES (?, ?, ?)", rows)
    if kind == "database":
        return source
    assert command_line("batch", f"--source={source}", f"--output={folder}/lake", home=home)["ok"]
    return f"{folder}/lake"


@contextlib.contextmanager
def foreign_tables(home: Path) -> Iterator[str]:
    """The course's own tables in the embedded server of a home; gives the server's URI."""
    server = ensure_running(home / "pg")
    with (
        contextlib.closing(psycopg2.connect(server.uri)) as connection,
        connection,
        connection.cursor() as sql,
    ):
        sql.execute(
            "CREATE EXTENSION IF NOT EXISTS vector;"
            "CREATE TABLE item_emb (id varchar PRIMARY KEY, embedding vector(8));"
            "CREATE TABLE user_emb (id int PRIMARY KEY, embedding vector(8))"
        )
        for table, keys, values in zip(("item_emb", "user_emb"), (ITEMS, USERS), vectors(), strict=True):
            for key, row in zip(keys, values.tolist(), strict=True):
                sql.execute(f"INSERT INTO {table} VALUES (%s, %s)", (key, str(row)))  # noqa: S608
    yield server.uri


def test_existing_tables_import_and_are_not_touched(
    home: Path, command_line: Callable[..., dict[str, Any]]
) -> None:
    with foreign_tables(home) as uri:
        made = command_line("release", "import", uri, home=home)
        assert made["ok"], made
        contents = folders.read_release(Path(made["paths"]["release"]))
        items, users = vectors()
        assert (list(contents.item_ids), list(contents.user_ids)) == (ITEMS, USERS)
        np.testing.assert_array_equal(contents.item_vectors, items)
        np.testing.assert_array_equal(contents.user_vectors, users)
        with contextlib.closing(psycopg2.connect(uri)) as connection, connection.cursor() as sql:
            sql.execute("SELECT count(*) FROM item_emb")
            assert sql.fetchone() == (len(ITEMS),)
            sql.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'beamrec'")
            assert sql.fetchone() == (0,)


def test_our_own_views_are_no_tables_to_import(
    course: Path, home: Path, command_line: Callable[..., dict[str, Any]]
) -> None:
    made = command_line("release", "import", str(course), home=home)
    assert any("without --ratings" in warning for warning in made["warnings"])
    for action in ("load", "promote"):
        assert command_line("release", action, made["release"], home=home)["ok"]
    refused = command_line("release", "import", "embedded:", home=home)
    assert refused["exit_code"] == 2
    assert "beamrec's own view" in refused["error"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sqlite:///shop.db", "SOURCE: expected one of a path, file://, s3://, gs://, postgresql://, got"),
        ("s3x://bucket/course", "got the scheme s3x://"),
        ("postgresql://me:secret@localhost/db", "SOURCE: a postgresql:// URI must not carry a password"),
        ("postgresql://me@localhost/db?colour=red", "SOURCE: unknown option 'colour'"),
        ("nowhere", "nowhere: there is no such folder to import"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_named(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        _import(source, tmp_path)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def _import(source: str, home: Path) -> dict[str, Any]:
    """As `beamrec release import` in this process."""
    parser = argparse.ArgumentParser()
    release_import.add_arguments(parser)
    return release_import.run(parser.parse_args([source]), "", Console(home))


def test_a_bucket_without_embeddings_is_named_and_not_our_copy_of_it(
    s3: Any, course: Path, tmp_path: Path
) -> None:
    _upload(s3, "other/model/best_model.pth", course / "model/best_model.pth")
    with pytest.raises(UsageError, match=f"^s3://{s3.bucket}/other: expected a folder with embeddings/"):
        _import(s3.uri_of("other"), tmp_path)


def test_an_import_from_and_to_an_object_store(
    s3: Any,
    course: Path,
    home: Path,
    command_line: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in course.rglob("*.*"):
        _upload(s3, f"course/{path.relative_to(course)}", path)
    releases = s3.uri_of("releases")
    made = command_line("release", "import", s3.uri_of("course"), f"--releases={releases}", home=home)
    assert made["ok"], made
    assert made["skipped"][0] == "model/best_model.pth"
    assert made["paths"]["release"].startswith(f"s3://{s3.bucket}/releases/{made['release']}?")
    assert list(home.glob("releases/*")) == [], "a copy here would be taken for the release"
    loaded = command_line("release", "load", made["release"], f"--releases={releases}", home=home)
    assert loaded["ok"], loaded
    assert loaded["out"] == len(ITEMS) + len(USERS)
    # Workers elsewhere lack this environment, so the address that they get says the endpoint.
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    bare = made["paths"]["release"].partition("?")[0]
    again = command_line("release", "load", bare, home=home)
    assert again["loaded"] is False
    assert s3.endpoint in unquote(again["uri"])


def _upload(s3: Any, key: str, path: Path) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    client.upload_file(str(path), s3.bucket, key)


def test_a_stream_fetches_the_towers_from_an_object_store(
    s3: Any,
    trained: Any,
    home: Path,
    command_line: Callable[..., dict[str, Any]],
    stream_job: Callable[..., Any],
) -> None:
    uri = publish(trained.home / "releases" / trained.release, s3.uri_of("releases"))
    for argv in (("load", uri), ("promote", trained.release)):
        done = command_line("release", *argv, home=home)
        assert done["ok"], done
    contents = folders.read_release(trained.home / "releases" / trained.release)
    shutil.rmtree(home / "cache")
    with s3.faults(0.2):
        known, unknown = streamed(
            stream_job, home, event(int(contents.user_ids[0]), contents.item_ids[0]), event(-5)
        )
    assert (known["served_by"], unknown["served_by"]) == ("known_customer", "cold_customer")
    assert len(known["recommended_items"]) == len(unknown["recommended_items"]) == 5
    (copy,) = (home / "cache" / "releases").glob(f"*/{trained.release}")
    _change_a_byte(s3, f"releases/{trained.release}/{folders.USER_TOWER}/saved_model.pb")
    refused = command_line("release", "load", uri, home=home.with_name("other"))
    assert refused["exit_code"] == 3
    assert "saved_model.pb is not what the manifest says" in refused["error"]
    assert (copy / "manifest.json").is_file()


def _change_a_byte(s3: Any, key: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    data = bytearray(client.get_object(Bucket=s3.bucket, Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(data))
