"""Ranges, snapshots and columns: what holds for every database behind the bounded source."""

import contextlib
import dataclasses
import sqlite3
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io.backend import Access
from beamrec.io.key_ranges import KeyRange, pack_keys, ratings_condition, with_entities
from beamrec.io.sql import CHECKS, RATINGS, SNAPSHOT, ReadRatings, read_ratings
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
    *parts, last = read_ratings(Access(f"sqlite:///{path}"), SHOP, range_rows)
    assert isinstance(last, SourceSnapshot)
    return last, [part for part in parts if isinstance(part, RatingsRange)]


def test_ranges_hold_whole_keys_and_no_more_rows_than_asked() -> None:
    counts = [(1, 2), (2, 2), (3, 1), (5, 9), (6, 1), (7, 3)]
    ranges = pack_keys(counts, 4)
    assert [(each.lower, each.upper, each.rows) for each in ranges] == [
        (1, 2, 4),
        (3, 3, 1),
        (5, 5, 9),
        (6, 7, 4),
    ]


def test_null_keys_are_a_range_of_their_own_wherever_the_database_sorts_them() -> None:
    null = KeyRange(None, None, 1, with_null_entities=True)
    assert with_entities(pack_keys([(None, 1), (1, 1), (2, 1)], 9)) == [null, KeyRange(1, 2, 2)]
    assert with_entities(pack_keys([("a", 1), ("b", 1), (None, 1)], 9)) == [null, KeyRange("a", "b", 2)]
    assert with_entities(pack_keys([], 9)) == []


def test_the_range_of_one_key_is_an_equality() -> None:
    """An index of both keys serves the slices of a customer only behind it."""
    assert ratings_condition(KeyRange(103, 103, 9), "`c`", "%s") == ("`c` = %s", (103,))
    assert ratings_condition(KeyRange(103, 104, 9), "`c`", "%s") == ("`c` >= %s AND `c` <= %s", (103, 104))
    assert ratings_condition(KeyRange(None, None, 9), "`c`", "%s") == ("`c` IS NULL", ())


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
    assert null.customers.to_pylist() == [{"Viewer": None, "Town": "ghost"}]
    assert [sorted(each.customers.column(0).to_pylist()) for each in rest] == [[1], [2, 3], []]
    assert {tuple(sorted(each.products.column(0).to_pylist())) for each in rest} == {("a", "b")}
    assert sorted(rest[1].customers.column(1).to_pylist()) == ["", "Köln"]
    assert [each.counts_products for each in (null, *rest)] == [True, False, False, False]


def test_a_writer_does_not_change_a_snapshot_that_is_being_read(database: Path) -> None:
    run(database, "PRAGMA journal_mode=WAL")
    parts = read_ratings(Access(f"sqlite:///{database}"), SHOP, 1)
    first = next(parts)
    run(database, "DELETE FROM stars", "DELETE FROM viewers WHERE viewer = 3")
    rest = [first, *parts]
    ranges = [part for part in rest if isinstance(part, RatingsRange)]
    (snapshot,) = (part for part in rest if isinstance(part, SourceSnapshot))
    assert sum(each.ratings.num_rows for each in ranges) == snapshot.counts["stars"] == 6
    assert 3 in [key for each in ranges for key in each.customers.column(0).to_pylist()]


def test_a_partition_with_very_many_rows_comes_in_slices(database: Path) -> None:
    films = [f"f{number:03d}" for number in range(100)]
    run(
        database,
        "DELETE FROM stars",
        "INSERT INTO stars VALUES (1, 'a', 1), (3, 'a', 1), (2, NULL, 1), (2, NULL, 2)",
        *[f"INSERT INTO stars VALUES (2, '{film}', 4), (2, '{film}', 5)" for film in films],  # noqa: S608
    )
    snapshot, ranges = read(database, 30)
    assert snapshot.counts["stars"] == 204
    sizes = [each.ratings.num_rows for each in ranges]
    assert sizes == [1, 32, 30, 30, 30, 30, 30, 20, 1]  # the first slice has the NULLs too
    rows = [tuple(row.values()) for each in ranges for row in each.ratings.to_pylist()]
    assert sorted(row[1] for row in rows if row[0] == 2 and row[1]) == sorted(2 * films)
    slices = ranges[1:-1]
    assert all(2 in each.customers.column(0).to_pylist() for each in slices)
    assert [each.counts_customers for each in slices] == [True] + [False] * 6
    counted = [k for each in ranges if each.counts_customers for k in each.customers.column(0).to_pylist()]
    assert sorted(counted, key=repr) == [1, 2, 3, None]


@pytest.mark.parametrize("range_rows", [1, 3, 100])
def test_every_customer_is_in_one_range_also_without_a_rating(database: Path, range_rows: int) -> None:
    run(database, *[f"INSERT INTO viewers VALUES ({n}, 'x')" for n in (-5, 0, 4, 6, 8, 99)])  # noqa: S608
    for change in (
        "SELECT 1",
        "DELETE FROM stars WHERE viewer IS NULL",
        "DELETE FROM stars WHERE viewer > 0",
    ):
        run(database, change)
        if change.endswith("> 0"):
            run(database, "INSERT INTO stars VALUES (NULL, 'a', 1)")
        snapshot, ranges = read(database, range_rows)
        counting = [each.customers for each in ranges if each.counts_customers]
        keys = [key for customers in counting for key in customers.column(0).to_pylist()]
        assert sorted(keys, key=repr) == sorted([-5, 0, 4, 6, 8, 99, 1, 2, 3, None], key=repr)
        assert snapshot.counts["viewers"] == len(keys)


@pytest.mark.parametrize("column", ["viewer", "film"])
def test_columns_that_are_ordered_by_other_rules_are_refused(tmp_path: Path, column: str) -> None:
    shop = dataclasses.replace(SHOP, customers=dataclasses.replace(SHOP.customers, key_type="string"))
    rules = {"viewer": "", "film": ""} | {column: " COLLATE NOCASE"}
    path = tmp_path / "films.db"
    run(
        path,
        "CREATE TABLE viewers (viewer text, town text)",
        "CREATE TABLE films (film text, price decimal(6,2))",
        f"CREATE TABLE stars (viewer text{rules['viewer']}, film text{rules['film']}, stars int)",
        "INSERT INTO stars VALUES ('a', 'b', 3)",
    )
    with pytest.raises(UsageError, match=rf"stars\.{column} and .*compared by other rules.*view"):
        list(read_ratings(Access(f"sqlite:///{path}"), shop, 5))


def test_keys_that_the_database_holds_equal_are_joined(tmp_path: Path) -> None:
    shop = dataclasses.replace(SHOP, customers=dataclasses.replace(SHOP.customers, key_type="string"))
    path = tmp_path / "films.db"
    run(
        path,
        "CREATE TABLE viewers (viewer text COLLATE NOCASE, town text)",
        "CREATE TABLE films (film text COLLATE RTRIM, price decimal(6,2))",
        "CREATE TABLE stars (viewer text COLLATE NOCASE, film text COLLATE RTRIM, stars int)",
        "INSERT INTO viewers VALUES ('Ann', 'x'), ('bob', 'y')",
        "INSERT INTO films VALUES ('a', 1), ('b ', 2)",
        "INSERT INTO stars VALUES ('ANN', 'a  ', 1), ('ann', 'b', 2), ('Bob', 'c', 3), ('eve', 'a', 4)",
    )
    *parts, _ = read_ratings(Access(f"sqlite:///{path}"), shop, 2)
    rows = [tuple(r.values()) for e in parts if isinstance(e, RatingsRange) for r in e.ratings.to_pylist()]
    assert sorted(rows) == [("Ann", "a", 1), ("Ann", "b ", 2), ("bob", "c", 3), ("eve", "a", 4)]


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
    ],
)
def test_a_source_that_cannot_be_read_exactly_says_why(
    database: Path, change: str, error: type[Exception], message: str
) -> None:
    run(database, change)
    with pytest.raises(error, match=message):
        read(database)


@pytest.mark.parametrize(
    ("change", "table", "column", "value"),
    [
        ("UPDATE films SET price = 'dear' WHERE film = 'b'", "films", "price", "dear"),
        ("UPDATE films SET price = 1.005 WHERE film = 'b'", "films", "price", "1.005"),
        ("UPDATE stars SET stars = 3.5 WHERE film = 'b'", "stars", "stars", 3.5),
        ("UPDATE stars SET stars = 300 WHERE film = 'b'", "stars", "stars", 300),
        ("UPDATE stars SET film = CAST(x'ff' AS TEXT) WHERE film = 'b'", "stars", "film", b"\xff"),
        ("UPDATE viewers SET town = x'ff00' WHERE viewer = 3", "viewers", "Town", b"\xff\x00"),
    ],
)
def test_a_row_with_a_value_that_does_not_fit_comes_apart(
    database: Path, change: str, table: str, column: str, value: object
) -> None:
    run(database, change)
    _, ranges = read(database)
    malformed = [row for each in ranges for row in each.malformed]
    assert {(row.table, row.column, row.row[column]) for row in malformed} == {(table, column, value)}
    kept = sum(each.ratings.num_rows for each in ranges)
    assert kept == 6 - (len(malformed) if table == "stars" else 0)


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
    (range_,) = (
        e for e in read_ratings(Access(f"sqlite:///{path}"), shop, 10) if isinstance(e, RatingsRange)
    )
    assert range_.customers.to_pylist() == [{"k ey": 1, "a%b": "x"}]


def test_a_file_that_is_not_there_or_no_database_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*shop\.db"):
        read(tmp_path / "shop.db")
    (tmp_path / "shop.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(UnavailableError, match="expected an SQLite database"):
        read(tmp_path / "shop.db")


def test_the_transform_has_three_outputs(database: Path) -> None:
    with TestPipeline() as pipeline:
        outputs = pipeline | ReadRatings(Access(f"sqlite:///{database}"), SHOP, range_rows=2)
        rows = outputs[RATINGS] | beam.Map(lambda each: each.ratings.num_rows)
        counts = outputs[SNAPSHOT] | beam.Map(lambda each: (each.system, each.counts["stars"]))
        checks = outputs[CHECKS] | beam.Map(lambda each: each.digest[0])
        assert_that(rows, equal_to([1, 2, 2, 1]), label="ranges")
        assert_that(counts, equal_to([("sqlite", 6)]), label="snapshot")
        assert_that(checks, equal_to([2, 1, 1, 2, 1, 2, 2, 1, 0]), label="checks")


def test_the_transform_refuses_a_password_before_it_is_in_a_graph() -> None:
    with pytest.raises(UsageError, match="BEAMREC_SOURCE_PASSWORD"):
        ReadRatings(Access("mysql://u:secret@h/d"), SHOP)
    with pytest.raises(UsageError, match="--range-rows"):
        ReadRatings(Access("mysql://u@h/d"), SHOP, range_rows=0)
