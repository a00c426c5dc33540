"""A planted film shop, batch, train: one real release that the tests of this folder share.

Films of a genre are liked by people of one region; popularity is skewed. Regions and titles hold blanks
and other case, some values are NULL or empty, budgets are skewed, and titles are text.
"""

import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from beamrec.model.examples import Examples
from beamrec.model.options import TrainingOptions
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.batch_training import run_batch
from beamrec.pipelines.train_release import TrainConfig, TrainedRelease, train_release
from beamrec.pipelines.training_data import TrainingFiles, prepare
from beamrec.schemas.shop import Feature, RatingsTable, Shop, Table

FILMS = Shop(
    name="films",
    customers=Table(
        "people",
        "person id",
        "string",
        (
            Feature("region", event_field="region", lower=True),
            Feature("age", kind="number", event_field="age"),
            Feature("note", kind="none"),
        ),
    ),
    products=Table(
        "films",
        "film",
        "int",
        (Feature("title", kind="text"), Feature("genre"), Feature("budget", kind="number", log=True)),
    ),
    ratings=RatingsTable("stars", "person", "film id", "stars", 0, 10),
)
REGIONS, GENRES = ("North", "South", "East", "West"), ("drama", "comedy", "horror", "western")


SEVEN = TrainingOptions(seed=7)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What was trained, from what."""

    shop: Shop
    data: str
    release: TrainedRelease


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Published training files of the film shop: what `batch --output` was given."""
    folder = tmp_path_factory.mktemp("films")
    _make_shop(folder / "shop.db")
    run_batch(BatchConfig(f"sqlite:///{folder}/shop.db", str(folder / "lake"), FILMS, "run"))
    return str(folder / "lake")


@pytest.fixture(scope="session")
def trained(films: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A release of the film shop; tests must not change it."""
    releases = tmp_path_factory.mktemp("releases")
    config = TrainConfig(films, str(releases), FILMS, SEVEN)
    return Trained(FILMS, films, train_release(config))


@pytest.fixture(scope="session")
def examples(films: str, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """The film shop's examples, as the shared release was trained on them; tests must not change them."""
    return prepare(TrainingFiles(films, FILMS), FILMS, SEVEN, tmp_path_factory.mktemp("examples"))


def _make_shop(path: Path, people: int = 150, films: int = 100, ratings: int = 3_000) -> None:
    rng = np.random.default_rng(11)
    region, genre = rng.integers(4, size=people), rng.integers(4, size=films)
    popularity = 1 / (3 + rng.permutation(films))
    chances = popularity * np.where(region[:, None] == genre, 6.0, 1.0)
    pairs = rng.choice(people * films, ratings, replace=False, p=(chances / chances.sum()).ravel())
    liked = np.where(region[pairs // films] == genre[pairs % films], 8.0, 3.0) + rng.normal(0, 1.2, ratings)
    with sqlite3.connect(path) as shop:
        shop.execute('CREATE TABLE people ("person id" TEXT PRIMARY KEY, region TEXT, age REAL, note TEXT)')
        shop.execute("CREATE TABLE films (film INTEGER PRIMARY KEY, title TEXT, genre TEXT, budget REAL)")
        shop.execute(
            'CREATE TABLE stars (person TEXT, "film id" INTEGER, stars REAL, PRIMARY KEY (person, "film id"))'
        )
        shop.executemany(
            "INSERT INTO people VALUES (?, ?, ?, 'x')", [_person(i, r) for i, r in enumerate(region)]
        )
        shop.executemany("INSERT INTO films VALUES (?, ?, ?, ?)", [_film(i, g) for i, g in enumerate(genre)])
        shop.executemany(
            "INSERT INTO stars VALUES (?, ?, ?)",
            [
                (f"p{p // films}", int(p % films), float(np.clip(s, 0, 10)))
                for p, s in zip(pairs, liked, strict=True)
            ],
        )


def _person(number: int, region: int) -> tuple[str, str | None, float | None]:
    name = REGIONS[region]
    spelling = (name, f" {name.upper()}  ", name.lower())[number % 3]
    age = None if number % 10 == 3 else 20.0 + number % 50
    return f"p{number}", {5: None, 6: ""}.get(number, spelling), age


def _film(number: int, genre: int) -> tuple[int, str | None, str, float | None]:
    title = None if number == 3 else f"The {GENRES[genre]} of number-{number}, PART Two"
    return number, title, GENRES[genre], None if number % 11 == 0 else 10.0 ** (number % 8)
