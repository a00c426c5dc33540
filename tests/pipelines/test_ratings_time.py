"""The time of a rating: from the database into the training files, and into a split by time."""

import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beamrec.io.manifest import open_training
from beamrec.model.options import TrainingOptions
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.batch_training import run_batch
from beamrec.pipelines.templates import shop_toml
from beamrec.pipelines.train_release import TrainConfig
from beamrec.pipelines.training_data import TrainingFiles, prepare
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import Feature, RatingsTable, Shop, Table

SHOP = Shop(
    "films",
    Table("people", "person", "string", (Feature("region", event_field="region"),)),
    Table("films", "film", "int", (Feature("genre"),)),
    RatingsTable("stars", "person", "film", "stars", 1, 5, time="Given At"),
)
PEOPLE, FILMS = 20, 10


@pytest.fixture(params=["datetime", "date", "integer", "double"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every person rates every film; one rating in seven has no time."""
    with sqlite3.connect(tmp_path / "shop.db") as shop:
        shop.execute("CREATE TABLE people (person varchar(9) PRIMARY KEY, region text)")
        shop.execute("CREATE TABLE films (film int PRIMARY KEY, genre text)")
        shop.execute(
            f'CREATE TABLE stars (person varchar(9), film int, stars int, "given at" {request.param}, '
            "PRIMARY KEY (person, film))"
        )
        shop.executemany("INSERT INTO people VALUES (?, 'North')", [(f"p{p:02}",) for p in range(PEOPLE)])
        shop.executemany("INSERT INTO films VALUES (?, 'drama')", [(f,) for f in range(FILMS)])
        order = np.random.default_rng(4).permutation(PEOPLE * FILMS).tolist()
        shop.executemany(
            "INSERT INTO stars VALUES (?, ?, ?, ?)",
            [
                (f"p{n // FILMS:02}", n % FILMS, 1 + n % 5, _time(request.param, moment))
                for n, moment in enumerate(order)
            ],
        )
    return f"sqlite:///{tmp_path}/shop.db"


def _time(kind: str, moment: int) -> str | float | None:
    if moment % 7 == 0:
        return None
    day = str(np.datetime64("2026-01-01") + moment)
    return {"datetime": f"{day} 12:30:00", "date": day, "integer": 1_700_000_000 + moment}.get(
        kind, moment / 8
    )


def _training(source: str, tmp_path: Path) -> pa.Table:
    run_batch(BatchConfig(source, str(tmp_path / "lake"), SHOP, "run"))
    return open_training(str(tmp_path / "lake")).to_table()


def test_the_time_is_the_last_training_column_and_may_be_unknown(source: str, tmp_path: Path) -> None:
    table = _training(source, tmp_path).sort_by([("person", "ascending"), ("film", "ascending")])
    assert table.schema.names == ["region", "film", "genre", "stars", "Given At", "person"]
    with sqlite3.connect(source.removeprefix("sqlite:///")) as shop:
        rows = shop.execute('SELECT person, film, stars, "given at" FROM stars ORDER BY 1, 2').fetchall()
    columns = [table.column(name).to_pylist() for name in ("person", "film", "stars", "Given At")]
    found = [(*row[:3], str(row[3])) for row in zip(*columns, strict=True)]
    assert found == [(*row[:3], str(row[3])) for row in rows]
    assert table.column("Given At").null_count == 29


def test_a_split_by_time_holds_out_the_latest(source: str, tmp_path: Path) -> None:
    table = _training(source, tmp_path)
    (tmp_path / "examples").mkdir()
    files = TrainingFiles(str(tmp_path / "lake"), SHOP)
    examples = prepare(files, SHOP, TrainingOptions(holdout=0.1, split="time"), tmp_path / "examples")
    held = np.concatenate(list(examples.read("held")))
    users, items = (t.column(0).to_pylist() for t in (examples.users, examples.items))
    found = {(users[row["user"]], items[row["item"]]) for row in held}
    known = table.filter(table.column("Given At").is_valid()).sort_by([("Given At", "descending")])
    rows = zip(*(known.column(name).to_pylist()[:20] for name in ("person", "film")), strict=True)
    assert found == {(person, str(film)) for person, film in rows}


def test_without_a_time_a_split_by_time_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    timeless = dataclasses.replace(SHOP, ratings=dataclasses.replace(SHOP.ratings, time=None))
    with pytest.raises(UsageError, match=r"--split time: shop films names no column"):
        TrainConfig(str(tmp_path / "no data"), str(tmp_path), timeless, TrainingOptions(split="time"))


def test_a_text_is_no_time(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as shop:
        shop.execute("CREATE TABLE people (person varchar(9) PRIMARY KEY, region text)")
        shop.execute("CREATE TABLE films (film int PRIMARY KEY, genre text)")
        shop.execute(
            'CREATE TABLE stars (person varchar(9), film int, stars int, "Given At" varchar(20), '
            "PRIMARY KEY (person, film))"
        )
    with pytest.raises(
        UsageError, match=r"stars\.Given At: expected dates, timestamps or numbers, got string"
    ):
        run_batch(BatchConfig(f"sqlite:///{path}", str(tmp_path / "lake"), SHOP, "run"))


def test_the_shop_file_keeps_the_time(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(shop_toml(SHOP), encoding="utf-8")
    assert Shop.from_toml(tmp_path / "shop.toml") == SHOP
    assert '"Given At"  # its column with the time' in shop_toml(SHOP)
    timeless = dataclasses.replace(SHOP, ratings=dataclasses.replace(SHOP.ratings, time=None))
    (tmp_path / "shop.toml").write_text(shop_toml(timeless), encoding="utf-8")
    assert Shop.from_toml(tmp_path / "shop.toml") == timeless


@pytest.mark.parametrize(
    ("time", "message"), [("STARS", "a column of its own"), ("", "stars"), ("genre", "genre")]
)
def test_the_time_is_a_column_of_its_own(time: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SHOP, ratings=dataclasses.replace(SHOP.ratings, time=time))
