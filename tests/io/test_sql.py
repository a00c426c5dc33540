"""Ranges, snapshots and columns: what holds for every database behind the bounded source."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io.sql import RATINGS, SNAPSHOT, KeyRange, ReadRatings, plan_ranges, read_ratings
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError
from beamrec.schemas.ranges import RatingsRange, SourceSnapshot
from beamrec.schemas.shop import Feature, RatingsTable, Shop, Table

SHOP = Shop(
    "films",
    customers=Table("viewers", "Viewer", "int", (Feature("Town"),)),
    products=Table("films", "film", "string", (Feature("price", "number"),)),
    ratings=RatingsTable("stars", "viewer", "film", "stars"),
)
SCHEMA = """
CREATE TABLE viewers (viewer int, town varchar(20));
CREATE TABLE films (film varchar(9), PRICE decimal(6,2));
CREATE TABLE stars (viewer int, film varchar(9), stars tinyint);
INSERT INTO viewers VALUES (3, 'Köln'), (1, NULL), (2, ''), (NULL, 'ghost');
INSERT INTO films VALUES ('b', 1.1), ('a', NULL);
INSERT INTO stars VALUES (3,'a',1), (1,'a',2), (1,'b',3), (NULL,'b',4), (2,'a',5), (7,'a',1);
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A small shop in SQLite; its column names differ from the Shop's in case."""
    path = tmp_path / "films.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
    return path


def run(path: Path, *statements: str) -> None:
    """Changes the database."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def read(path: Path, range_rows: int = 100) -> tuple[SourceSnapshot, list[RatingsRange]]:
    """Everything that the source emits."""
    first, *ranges = read_ratings(f"sqlite:///{path}", SHOP, range_rows)
    assert isinstance(first, SourceSnapshot)
    return first, [range_ for range_ in ranges if isinstance(range_, RatingsRange)]


def test_ranges_hold_whole_keys_and_no_more_rows_than_asked() -> None:
    counts = [(1, 2), (2, 2), (3, 1), (5, 9), (6, 1), (7, 3)]
    assert plan_ranges(counts, 4) == [KeyRange(1, 2), KeyRange(3, 3), KeyRange(5, 5), KeyRange(6, 7)]


def test_null_keys_are_a_range_of_their_own_wherever_the_database_sorts_them() -> None:
    null = KeyRange(None, None)
    assert plan_ranges([(None, 1), (1, 1), (2, 1)], 9) == [null, KeyRange(1, 2)]
    assert plan_ranges([("a", 1), ("b", 1), (None, 1)], 9) == [KeyRange("a", "b"), null]
    assert plan_ranges([], 9) == []


@pytest.mark.parametrize("range_rows", [1, 2, 100])
def test_every_rating_is_read_once_whatever_the_range(database: Path, range_rows: int) -> None:
    snapshot, ranges = read(database, range_rows)
    rows = [tuple(row.values()) for each in ranges for row in each.ratings.to_pylist()]
    expected = [(3, "a", 1), (1, "a", 2), (1, "b", 3), (None, "b", 4), (2, "a", 5), (7, "a", 1)]
    assert sorted(rows, key=repr) == sorted(expected, key=repr)
    assert snapshot.counts == {"stars": 6, "viewers": 4, "films": 2}


def test_columns_have_the_shops_names_and_the_databases_types(database: Path) -> None:
    snapshot, (_, range_) = read(database)
    assert range_.customers.schema.names == ["Viewer", "Town"]
    assert range_.products.schema == pa.schema([("film", pa.string()), ("price", pa.decimal128(6, 2))])
    assert range_.ratings.schema.field("stars").type == pa.int8()
    assert snapshot.types == {
        "Viewer": "int32",
        "Town": "string",
        "film": "string",
        "price": "decimal128(6, 2)",
        "stars": "int8",
    }


def test_a_range_brings_its_customers_and_all_products_ordered_by_key(database: Path) -> None:
    _, (null, *rest) = read(database, 2)
    assert null.customers.num_rows == 0
    assert [each.customers.column(0).to_pylist() for each in rest] == [[1], [2, 3], []]
    assert {tuple(each.products.column(0).to_pylist()) for each in rest} == {("a", "b")}
    assert rest[1].customers.column(1).to_pylist() == ["", "Köln"]


def test_a_writer_does_not_change_a_snapshot_that_is_being_read(database: Path) -> None:
    run(database, "PRAGMA journal_mode=WAL")
    parts: Iterator[SourceSnapshot | RatingsRange] = read_ratings(f"sqlite:///{database}", SHOP, 1)
    snapshot = next(parts)
    run(database, "DELETE FROM stars", "DELETE FROM viewers WHERE viewer = 3")
    ranges = [part for part in parts if isinstance(part, RatingsRange)]
    assert isinstance(snapshot, SourceSnapshot)
    assert sum(each.ratings.num_rows for each in ranges) == snapshot.counts["stars"] == 6
    assert 3 in [key for each in ranges for key in each.customers.column(0).to_pylist()]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("DROP TABLE films", UsageError, "expected a table films"),
        (
            "ALTER TABLE viewers RENAME COLUMN town TO place",
            UsageError,
            "expected a column Town, found only viewer, place",
        ),
        ("DELETE FROM stars", BadDataError, "holds no ratings"),
        ("INSERT INTO films VALUES ('a', 2)", BadDataError, "one row per film, found 'a' more than once"),
        ("INSERT INTO viewers VALUES (3, 'x')", BadDataError, "one row per Viewer, found 3 more than once"),
        (
            "UPDATE films SET price = 'dear'",
            BadDataError,
            "films, column price: expected values of type decimal",
        ),
        ("UPDATE films SET price = 1.005", BadDataError, "table films, column price"),
        (
            "UPDATE stars SET stars = 3.5",
            BadDataError,
            "stars, column stars: expected values of type int8",
        ),
        ("UPDATE stars SET stars = 300", BadDataError, "table stars, column stars"),
    ],
)
def test_a_source_that_cannot_be_read_exactly_says_why(
    database: Path, change: str, error: type[Exception], message: str
) -> None:
    run(database, change)
    with pytest.raises(error, match=message):
        read(database)


def test_a_key_of_another_type_than_the_shops_is_refused(database: Path) -> None:
    run(database, "DROP TABLE stars", "CREATE TABLE stars (viewer text, film text, stars int)")
    with pytest.raises(UsageError, match=r"stars\.viewer: the shop says key_type = 'int'"):
        read(database)


def test_columns_that_differ_only_in_case_are_taken_by_their_exact_name(tmp_path: Path) -> None:
    shop = Shop(
        "odd",
        customers=Table('we"ird`%s', "k ey", "int", (Feature("a%b"),)),
        products=Table("films", "film", "string", ()),
        ratings=RatingsTable("order", "group", "select", "stars"),
    )
    path = tmp_path / "odd.db"
    run(
        path,
        'CREATE TABLE "we""ird`%s" ("k ey" int, "a%b" text)',
        'INSERT INTO "we""ird`%s" VALUES (1, \'x\')',
        "CREATE TABLE films (film text)",
        "INSERT INTO films VALUES ('a')",
        'CREATE TABLE "order" ("group" int, "select" text, stars int)',
        "INSERT INTO \"order\" VALUES (1, 'a', 5)",
    )
    _, range_ = read_ratings(f"sqlite:///{path}", shop, 10)
    assert isinstance(range_, RatingsRange)
    assert range_.customers.to_pylist() == [{"k ey": 1, "a%b": "x"}]


def test_a_file_that_is_not_there_or_no_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*shop\.db"):
        read(tmp_path / "shop.db")
    (tmp_path / "shop.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(UnavailableError, match="expected an SQLite database"):
        read(tmp_path / "shop.db")


def test_the_transform_has_both_outputs(database: Path) -> None:
    with TestPipeline() as pipeline:
        outputs = pipeline | ReadRatings(f"sqlite:///{database}", SHOP, range_rows=2)
        rows = outputs[RATINGS] | beam.Map(lambda each: each.ratings.num_rows)
        counts = outputs[SNAPSHOT] | beam.Map(lambda each: (each.system, each.counts["stars"]))
        assert_that(rows, equal_to([1, 2, 2, 1]), label="ranges")
        assert_that(counts, equal_to([("sqlite", 6)]), label="snapshot")


def test_the_transform_refuses_a_password_before_it_is_in_a_graph() -> None:
    with pytest.raises(UsageError, match="BEAMREC_SOURCE_PASSWORD"):
        ReadRatings("mysql://u:secret@h/d", SHOP)
    with pytest.raises(UsageError, match="--range-rows"):
        ReadRatings("mysql://u@h/d", SHOP, range_rows=0)
