"""`beamrec init`: files that can be used at once, and a shop proposed from a real database."""

import dataclasses
import json
import re
import sqlite3
import tomllib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.pipelines import cli, commands
from beamrec.pipelines.config_file import expand
from beamrec.pipelines.proposal import event_name, propose_shop
from beamrec.pipelines.templates import config_toml, shop_toml, toml_value
from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS, Feature, Shop

FILMS = """
CREATE TABLE users (userId INTEGER PRIMARY KEY, age INTEGER, occupation VARCHAR(20), email VARCHAR(80));
CREATE TABLE movies (movieId INTEGER PRIMARY KEY, genre VARCHAR(20), releaseYear INTEGER, age INTEGER,
                     poster BLOB, title VARCHAR(80), titleName VARCHAR(80));
CREATE TABLE ratings (userId INTEGER, movieId INTEGER, rating DOUBLE, PRIMARY KEY (userId, movieId));
CREATE TABLE settings (name VARCHAR(20), value VARCHAR(20));
INSERT INTO users VALUES (1, 30, 'baker', 'a@b');
INSERT INTO movies VALUES (7, 'noir', 1944, 12, NULL, 't', 't');
INSERT INTO ratings VALUES (1, 7, 0.5);
"""


@pytest.fixture
def films(tmp_path: Path) -> str:
    """A film database that looks nothing like classicmodels."""
    path = tmp_path / "films.db"
    connection = sqlite3.connect(path)
    connection.executescript(FILMS)
    connection.close()
    return f"sqlite:///{path}"


def _columns(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.string())


def test_init_writes_classicmodels_and_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", f"--output={tmp_path / 'new'}", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)["paths"]
    assert Shop.from_toml(paths["shop"]) == CLASSICMODELS
    assert tomllib.loads(Path(paths["config"]).read_text())["shop"] == paths["shop"]


def test_rules_survive_the_shop_file_which_explains_them(tmp_path: Path) -> None:
    rules = (
        Feature("joined", kind="none", min="1990-01-01", max="2026-11-22T07:00:00"),
        Feature("plan", values=('say "free"', "C:\\", "")),
        Feature("money", kind="number", min=-0.5, max=10**20, nullable=False),
    )
    shop = dataclasses.replace(
        CLASSICMODELS, customers=dataclasses.replace(CLASSICMODELS.customers, features=rules)
    )
    path = tmp_path / "shop.toml"
    path.write_text(shop_toml(shop))
    assert Shop.from_toml(path) == shop
    (example,) = re.findall(r"# For example: (\{.*\})", path.read_text())
    assert Feature(**tomllib.loads(f"feature = {example}")["feature"]).nullable is False


def test_init_replaces_nothing_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.toml").write_text("mine")
    assert cli.main(["init", f"--output={tmp_path}"]) == 2
    assert "give --force to replace" in capsys.readouterr().err
    assert (tmp_path / "shop.toml").read_text() == "mine"
    assert not (tmp_path / "beamrec.toml").exists()
    assert cli.main(["init", f"--output={tmp_path}", "--force"]) == 0
    assert Shop.from_toml(tmp_path / "shop.toml") == CLASSICMODELS


def test_a_folder_that_cannot_be_written_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["init", f"--output={tmp_path / 'file' / 'x'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_film_database_is_proposed_with_its_own_names(
    films: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", f"--source={films}", f"--output={tmp_path}"]) == 0
    shop = Shop.from_toml(tmp_path / "shop.toml")
    assert (shop.name, shop.customers.name, shop.products.name) == ("films", "users", "movies")
    assert (shop.customers.key, shop.products.key, shop.ratings.rating) == ("userId", "movieId", "rating")
    assert [(f.column, f.kind, f.event_field) for f in shop.customers.features] == [
        ("age", "number", "age"),
        ("occupation", "category", "occupation"),
    ]
    assert [(f.column, f.kind) for f in shop.products.features] == [
        ("genre", "category"),
        ("releaseYear", "number"),
        ("title", "category"),
    ], "without the blob, the name, and the `age` that the customers have too"
    assert (shop.ratings.min_rating, shop.ratings.max_rating) == (0.0, 5.0), "0.5 is below 1"
    assert (shop.events.customer, shop.events.product) == ("user_id", "movie_id")
    text = (tmp_path / "shop.toml").read_text()
    assert '#   { column = "email" }' in text, "left out, but said so"
    assert f'source = "{films}"' in (tmp_path / "beamrec.toml").read_text()
    assert "shop 'films'" in capsys.readouterr().out


def test_classicmodels_in_mariadb_is_recognised(mariadb, source_password: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mariadb.execute(
        "DROP DATABASE IF EXISTS init_shop",
        "CREATE DATABASE init_shop",
        "USE init_shop",
        "CREATE TABLE customers (customerNumber INT PRIMARY KEY, phone VARCHAR(50), city VARCHAR(50), "
        "state VARCHAR(50), postalCode VARCHAR(15), country VARCHAR(50), creditLimit DECIMAL(10,2))",
        "CREATE TABLE products (productCode VARCHAR(15) PRIMARY KEY, productLine VARCHAR(50), "
        "productScale VARCHAR(10), quantityInStock SMALLINT, buyPrice DECIMAL(10,2), MSRP DECIMAL(10,2))",
        "CREATE TABLE ratings (customerNumber INT, productCode VARCHAR(15), productRating INT)",
    )
    uri = mariadb.uri("init_shop")
    assert cli.main(["init", f"--source={uri}", f"--output={tmp_path}"]) == 0
    assert Shop.from_toml(tmp_path / "shop.toml") == CLASSICMODELS


def test_tables_are_proposed_as_mariadb_spells_them(mariadb, source_password: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mariadb.execute(
        "DROP DATABASE IF EXISTS init_films",
        "CREATE DATABASE init_films",
        "USE init_films",
        "CREATE TABLE Users (userId INT PRIMARY KEY, age INT, home GEOMETRY)",
        "CREATE TABLE Movies (movieId INT PRIMARY KEY, genre ENUM('war (1939)', 'noir'))",
        "CREATE TABLE Ratings (userId INT, movieId INT, rating INT)",
    )
    assert cli.main(["init", f"--source={mariadb.uri('init_films')}", f"--output={tmp_path}"]) == 0
    shop = Shop.from_toml(tmp_path / "shop.toml")
    assert (shop.customers.name, shop.products.name, shop.ratings.name) == ("Users", "Movies", "Ratings")
    assert (shop.customers.columns, shop.products.columns) == (("age",), ("genre",))


def test_a_database_without_ratings_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sqlite3.connect(tmp_path / "x.db").executescript("CREATE TABLE orders (a INTEGER)").connection.close()
    assert cli.main(["init", f"--source=sqlite:///{tmp_path / 'x.db'}", f"--output={tmp_path}"]) == 2
    assert "no table looks like ratings" in (shown := capsys.readouterr().err)
    assert "orders" in shown
    assert not (tmp_path / "shop.toml").exists()


def test_a_source_that_is_not_there_is_unavailable_or_wrong(tmp_path: Path) -> None:
    assert cli.main(["init", "--source=mysql://nobody@127.0.0.1:1/x", f"--output={tmp_path}"]) == 4
    assert cli.main(["init", "--source=oracle://x/y", f"--output={tmp_path}"]) == 2


def test_ratings_without_their_entities_are_refused() -> None:
    tables = {"ratings": {**_columns("user_id", "item_id"), "rating": pa.int64()}}
    with pytest.raises(UsageError, match="no table goes with the column user_id of ratings"):
        propose_shop(tables, "x")


def test_a_plain_id_is_taken_as_the_key_of_a_table_named_after_its_role() -> None:
    tables = {
        "app_users": {"id": pa.int64(), "town": pa.string()},
        "items": {"item_id": pa.string(), "colour": pa.string()},
        "scores": {"user_id": pa.int64(), "item_id": pa.string(), "score": pa.int32()},
    }
    shop = propose_shop(tables, "x", (1, 10))
    assert (shop.customers.name, shop.customers.key, shop.customers.key_type) == ("app_users", "id", "int")
    assert (shop.products.key, shop.products.key_type) == ("item_id", "string")
    assert shop.ratings.max_rating == 10
    assert shop.ratings.customer == "user_id"


def test_event_names_are_in_snake_case() -> None:
    names = ("creditLimit", "customerNumber", "MSRP", "city", "postal code")
    assert [event_name(name) for name in names] == [
        "credit_limit",
        "customer_number",
        "msrp",
        "city",
        "postal_code",
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}") == {"x": text}


@given(
    name=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=20
    ),
    shape=st.sampled_from(["session", "click"]),
    log=st.booleans(),
)
def test_any_shop_survives_its_file(name: str, shape: str, log: bool) -> None:
    shop = dataclasses.replace(
        CLASSICMODELS,
        name=name,
        customers=dataclasses.replace(
            CLASSICMODELS.customers,
            name=name,
            features=tuple(
                dataclasses.replace(f, log=log, trim=log, lower=not log)
                for f in CLASSICMODELS.customers.features
            ),
        ),
        events=dataclasses.replace(CLASSICMODELS.events, shape=shape),
    )
    assert Shop.from_dict(tomllib.loads(shop_toml(shop, {name: ["left", "out"]}))) == shop


@pytest.mark.parametrize("verb", ["batch", "stream", "doctor", "init"])
def test_every_line_of_the_configuration_names_an_option(verb: str) -> None:
    everything = re.sub(r"^# (?=\w+ = )", "", config_toml("shop.toml", "sqlite:///x.db"), flags=re.MULTILINE)
    data = tomllib.loads(everything)
    assert data["stream"]["window_seconds"] == 60
    assert data["source"] == "sqlite:///x.db"
    expand(data, "x", verb, [], commands.available(), lambda name: commands.load(name).parser())
