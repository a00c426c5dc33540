"""The report of a shop equals what SQL says of its joined rows, however they were divided into ranges."""

import dataclasses
import decimal
import pickle
import random
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beamrec.io.backend import Access
from beamrec.io.sql import read_ratings
from beamrec.pipelines.generate_shop import ShopSize, generate_shop, make_shop
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.report import Categories, ColumnProfile, EntityProfile, Numbers, Report
from beamrec.schemas.shop import CLASSICMODELS, Feature, RatingsTable, Shop, Table
from beamrec.transforms.join import find_rows
from beamrec.transforms.profile import ProfileRatings, merge_profiles, profile_range, report_of
from beamrec.transforms.validate import validate_ratings

TAKEN_AT = "2026-11-22T07:00:00.000+00:00"
SHOP = Shop(
    name="films",
    customers=Table(
        "members",
        "member",
        "string",
        (Feature("town"), Feature("balance", kind="number"), Feature("year", kind="none")),
    ),
    products=Table("films", "film", "int", (Feature("genre"), Feature("length", kind="number"))),
    ratings=RatingsTable("votes", "member", "film", "stars", 0.5, 5),
)
MEMBERS = pa.RecordBatch.from_pydict(
    {
        "member": ["Ann", "Bo", "Cy", "Dá", "Eve"],
        "town": ["Zürich", "", None, "Zürich", "<b>"],
        "balance": pa.array(
            [
                decimal.Decimal("-10.50"),
                decimal.Decimal("0.10"),
                None,
                decimal.Decimal(7),
                decimal.Decimal(1),
            ],
            pa.decimal128(10, 2),
        ),
        "year": pa.array([1990, 1990, 2001, None, 2020], pa.int16()),
    }
)
FILMS = pa.RecordBatch.from_pydict(
    {
        "film": pa.array([1, 2, 3, 4], pa.int32()),
        "genre": ["noir", None, "noir", "camp"],
        "length": pa.array([90.5, float("nan"), 120.0, 80.0], pa.float32()),
    }
)
VOTES: list[tuple[str, int, str]] = [
    ("Ann", 1, "0.5"),
    ("Ann", 2, "4.5"),
    ("Bo", 1, "5.0"),
    ("Bo", 2, "4.5"),
    ("Bo", 3, "4.5"),
    ("Cy", 1, "3.0"),
    ("Dá", 2, "1.0"),
]


def votes_range(votes: list[tuple[str, int, str]], members: list[str], **options: Any) -> RatingsRange:
    """A validated range with these votes and the rows of these members."""
    kept = MEMBERS.filter(pa.array([name in members for name in MEMBERS.column(0).to_pylist()]))
    columns = [list(column) for column in zip(*votes, strict=True)] if votes else [[], [], []]
    stars = [decimal.Decimal(value) for value in columns[2]]
    ratings = pa.RecordBatch.from_arrays(
        [
            pa.array(columns[0], pa.string()),
            pa.array(columns[1], pa.int32()),
            pa.array(stars, pa.decimal128(3, 1)),
        ],
        names=["member", "film", "stars"],
    )
    return RatingsRange(
        ratings=ratings,
        customers=kept,
        products=FILMS,
        taken_at=TAKEN_AT,
        customer_rows=find_rows(ratings.column(0), kept.column(0)),
        product_rows=find_rows(ratings.column(1), FILMS.column(0)),
        **options,
    )


def whole_range() -> RatingsRange:
    return votes_range(VOTES, ["Ann", "Bo", "Cy", "Dá", "Eve"], counts_products=True)


def divided() -> list[RatingsRange]:
    """The same in five ranges: Bo comes in three slices, and Dá and Eve are packed together."""
    return [
        votes_range(VOTES[:2], ["Ann"]),
        votes_range(VOTES[2:3], ["Bo"]),
        votes_range(VOTES[3:4], ["Bo"], counts_customers=False),
        votes_range(VOTES[4:6], ["Bo", "Cy"], counts_customers=False, counts_products=True),
        votes_range(VOTES[6:], ["Dá", "Eve"]),
        votes_range([], ["Cy"]),
    ]


def report(*ranges: RatingsRange) -> Report:
    return report_of(merge_profiles([profile_range(each, SHOP) for each in ranges]), SHOP)


def columns(found: Report) -> dict[str, ColumnProfile]:
    return {column.name: column for column in found.columns}


def sql(query: str) -> list[tuple[Any, ...]]:
    """An answer about the joined rows `rows`, and about `members`, `films` and `votes`."""
    with duckdb.connect() as connection:
        for name, batch in (("members", MEMBERS), ("films", FILMS), ("votes", whole_range().ratings)):
            connection.register(name, pa.table(batch))
        connection.execute(
            "CREATE VIEW rows AS FROM votes JOIN members USING (member) JOIN films USING (film)"
        )
        return connection.execute(query).fetchall()


def test_every_training_column_is_there_in_file_order() -> None:
    found = report(whole_range())
    assert [column.name for column in found.columns] == list(SHOP.training_columns)
    assert [column.table for column in found.columns] == ["members"] * 3 + ["films"] * 3 + ["votes"]
    assert {column.rows for column in found.columns} == {len(VOTES)}
    assert (found.shop, found.taken_at, found.ratings) == ("films", TAKEN_AT, len(VOTES))


@pytest.mark.parametrize("column", ["town", "film", "genre"])
def test_categories_are_what_sql_counts(column: str) -> None:
    found = columns(report(whole_range()))[column]
    counted = sql(
        f"SELECT {column}::varchar, count(*) n FROM rows WHERE {column} IS NOT NULL "  # noqa: S608
        f"GROUP BY 1 ORDER BY n DESC, encode({column}::varchar)"
    )
    assert isinstance(found.distribution, Categories)
    assert found.distribution == Categories(len(counted), 1.0, tuple(counted))
    missing = sql(
        f"SELECT count(*) FILTER ({column} IS NULL), count(*) FILTER ({column}::varchar = '') FROM rows"  # noqa: S608
    )
    assert [(found.nulls, found.empty)] == missing


@pytest.mark.parametrize("column", ["balance", "year", "length", "stars"])
def test_numbers_are_what_sql_computes(column: str) -> None:
    found = columns(report(whole_range()))[column]
    finite = f"FILTER ({column} IS NOT NULL AND isfinite({column}::double))"
    expected = sql(
        f"SELECT count(*) FILTER ({column} IS NULL), count(*) FILTER (isnan({column}::double)), "  # noqa: S608
        f"min({column}::double) {finite}, max({column}::double) {finite}, "
        f"avg({column}::double) {finite}, count(*) {finite} FROM rows"
    )[0]
    assert isinstance(found.distribution, Numbers)
    assert (found.nulls, found.not_finite) == expected[:2]
    assert (found.distribution.minimum, found.distribution.maximum) == expected[2:4]
    assert found.distribution.mean == pytest.approx(expected[4], rel=1e-15)
    assert sum(rows for _, rows in found.distribution.buckets) == expected[5]


def test_ratings_are_counted_by_value() -> None:
    assert list(report(whole_range()).rating_histogram) == sql(
        "SELECT stars::double, count(*) FROM votes GROUP BY 1 ORDER BY 1"
    )


def test_coverage_and_long_tail() -> None:
    found = report(whole_range())
    # Votes by member: 2, 3, 1, 1; by film: 3, 3, 1.
    assert dataclasses.replace(found.customers, curve=()) == EntityProfile(
        "members", total=5, rated=4, most=3, median=1, gini=pytest.approx(0.25), curve=()
    )
    assert dataclasses.replace(found.products, curve=()) == EntityProfile(
        "films", total=4, rated=3, most=3, median=3, gini=pytest.approx(4 / 21), curve=(), unrated_sample=(4,)
    )
    curve = found.customers.curve
    assert len(curve) == 100
    assert [curve[24], curve[49], curve[74], curve[99]] == pytest.approx([3 / 7, 5 / 7, 6 / 7, 1])
    assert curve[0] == pytest.approx(3 / 7 / 25)


def test_the_gini_coefficient_is_the_mean_difference_by_twice_the_mean() -> None:
    votes = [
        (name, film, "1.0")
        for name, films in (("Ann", 4), ("Bo", 2), ("Cy", 1))
        for film in range(1, films + 1)
    ]
    found = report(votes_range(votes, ["Ann", "Bo", "Cy"], counts_products=True)).customers
    counts = np.array([4, 2, 1])
    assert found.gini == pytest.approx(np.abs(counts[:, None] - counts).mean() / (2 * counts.mean()))


def test_a_customer_in_several_ranges_is_one_customer() -> None:
    assert report(*divided()) == report(whole_range())


@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_and_grouping_of_the_ranges_change_nothing(chance: random.Random, cut: int) -> None:
    profiles = [profile_range(each, SHOP) for each in divided()]
    chance.shuffle(profiles)
    grouped = [merge_profiles(profiles[:cut]), merge_profiles(profiles[cut:])]
    assert report_of(merge_profiles(grouped), SHOP).to_json() == report(whole_range()).to_json()


def test_no_more_than_a_hundred_ratings_are_counted_by_value() -> None:
    film = pa.RecordBatch.from_pydict(
        {"film": pa.array(range(300)), "genre": ["x"] * 300, "length": [1.0] * 300}
    )
    ranges = []
    for start in (0, 60):
        rows = pa.array(range(start, start + 60), pa.int32())
        ratings = pa.RecordBatch.from_arrays(
            [pa.array(["Ann"] * 60), rows, pa.array(np.arange(start, start + 60) / 100)],
            names=["member", "film", "stars"],
        )
        ranges.append(
            dataclasses.replace(
                votes_range([], ["Ann"], counts_products=start == 0),
                ratings=ratings,
                products=film,
                product_rows=rows,
                customer_rows=pa.array([0] * 60, pa.int32()),
            )
        )
    assert len(report(ranges[0]).rating_histogram) == 60
    many = report(*ranges)
    assert many.rating_histogram == ()
    assert many.products.unrated == 180
    assert many.products.unrated_sample == tuple(range(120, 140))


def test_a_profile_is_small_once_pickled() -> None:
    profiles = [profile_range(each, SHOP) for each in divided()]
    merged = merge_profiles(profiles * 40)
    assert len(pickle.dumps(merged)) < 2 * len(pickle.dumps(merge_profiles(profiles)))


def test_a_range_must_be_validated() -> None:
    with pytest.raises(ValueError, match="validate before the profile"):
        profile_range(dataclasses.replace(whole_range(), product_rows=None), SHOP)


def test_ranges_of_different_products_are_refused() -> None:
    other = dataclasses.replace(votes_range(VOTES[:1], ["Ann"]), products=FILMS.slice(0, 2))
    with pytest.raises(ValueError, match=r"the same products, got some with \[2, 4\]"):
        merge_profiles([profile_range(other, SHOP), profile_range(whole_range(), SHOP)])


def test_without_the_products_there_is_no_report() -> None:
    with pytest.raises(ValueError, match="expected one range with counts_products"):
        report(votes_range(VOTES, ["Ann", "Bo", "Cy", "Dá"]))


def test_a_range_without_ratings_has_a_report() -> None:
    found = report(votes_range([], ["Ann", "Bo"], counts_products=True))
    assert (found.ratings, found.rating_histogram) == (0, ())
    assert (found.customers.total, found.customers.rated, found.products.unrated) == (2, 0, 4)
    assert [column.distribution for column in found.columns] == [None] * 7
    assert Report.from_json(found.to_json(), "") == found


@pytest.mark.parametrize("range_rows", [25, 100_000])
def test_the_report_of_a_database_is_that_of_its_tables(tmp_path: Path, range_rows: int) -> None:
    size = ShopSize(customers=30, products=100, ratings=900, bad=12, seed=5)
    source = f"sqlite:///{tmp_path}/shop.db"
    generate_shop(source, size)
    parts = [
        validate_ratings(element, CLASSICMODELS, "sqlite").valid
        for element in read_ratings(Access(source), CLASSICMODELS, range_rows)
        if isinstance(element, RatingsRange)
    ]
    found = report_of(merge_profiles([profile_range(each, CLASSICMODELS) for each in parts]), CLASSICMODELS)
    tables = make_shop(size)
    with duckdb.connect() as connection:
        for name, batch in tables.items():
            connection.register(name, pa.table(batch))
        connection.execute(
            "CREATE VIEW rows AS SELECT * FROM ratings JOIN customers USING (customerNumber) "
            "JOIN products USING (productCode) WHERE productRating BETWEEN 1 AND 5"
        )
        by_customer = connection.execute(
            "SELECT count(*) FROM rows GROUP BY customerNumber ORDER BY 1"
        ).fetchall()
        cities = connection.execute(
            "SELECT city, count(*) n FROM rows GROUP BY 1 ORDER BY n DESC, 1"
        ).fetchall()
        credit = connection.execute(
            "SELECT min(creditLimit), max(creditLimit), count(*) FROM rows"
        ).fetchall()
    assert (found.ratings, found.customers.rated, found.customers.total) == (900, len(by_customer), 30)
    assert found.customers.most == by_customer[-1][0] > range_rows or range_rows > 900
    assert found.customers.median == by_customer[(len(by_customer) - 1) // 2][0]
    city, *_, credit_limit = (column.distribution for column in found.columns[:5])
    assert isinstance(city, Categories)
    assert isinstance(credit_limit, Numbers)
    assert list(city.top) == cities
    assert (credit_limit.minimum, credit_limit.maximum) == tuple(float(value) for value in credit[0][:2])
    assert len(parts) > 30 if range_rows == 25 else len(parts) == 1


@pytest.mark.parametrize("copies", [1, 20])
def test_the_transform_gives_one_report_of_all_ranges(copies: int) -> None:
    empty = [votes_range([], ["Ann"], counts_customers=False)] * (3 * copies)
    with TestPipeline() as pipeline:
        found = pipeline | beam.Create([*divided(), *empty], reshuffle=False) | ProfileRatings(SHOP)
        assert_that(found, equal_to([report(whole_range())]))


def test_the_transform_gives_an_empty_report_of_no_range() -> None:
    with TestPipeline() as pipeline:
        found = pipeline | beam.Create([]) | ProfileRatings(SHOP) | beam.Map(lambda each: each.to_dict())
        assert_that(found, equal_to([report_of(None, SHOP).to_dict()]))
