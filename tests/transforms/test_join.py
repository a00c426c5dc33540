"""The join in the worker gives what an SQL join gives."""

import dataclasses
import decimal

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.schemas.key_index import find_rows
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.shop import CLASSICMODELS, Feature, RatingsTable, Shop, Table
from beamrec.transforms.join import JoinFeatures, join_features
from beamrec.transforms.validate import validate_ratings

SHOP = Shop(
    "films",
    customers=Table("viewers", "viewer", "int", (Feature("town"), Feature("money", "number"))),
    products=Table("films", "film", "string", (Feature("genre"),)),
    ratings=RatingsTable("stars", "who", "what", "stars"),
)


def films() -> RatingsRange:
    """Keys of other types in the ratings than in the tables they refer to, and other names."""
    return RatingsRange(
        ratings=pa.RecordBatch.from_pydict(
            {
                "who": pa.array([7, 1, 7, 1], pa.int16()),
                "what": ["b", "a", "a", "b"],
                "stars": pa.array([1, 2, 3, 4], pa.int8()),
            }
        ),
        customers=pa.RecordBatch.from_pydict(
            {
                "viewer": pa.array([1, 7, 9], pa.int64()),
                "town": pa.array([None, "", "x"]),
                "money": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal(2)], pa.decimal128(10, 2)),
            }
        ),
        products=pa.RecordBatch.from_pydict({"film": ["a", "b"], "genre": ["noir", None]}),
        taken_at="2026-11-22T07:00:00Z",
    )


def test_the_join_equals_the_sql_join_in_the_order_of_the_training_files() -> None:
    range_ = films()
    viewers, movies, stars = (
        pa.Table.from_batches([batch]) for batch in (range_.customers, range_.products, range_.ratings)
    )
    with duckdb.connect() as connection:
        for name, table in (("viewers", viewers), ("movies", movies), ("stars", stars)):
            connection.register(name, table)
        expected = connection.sql(
            "SELECT viewer, town, money, film, genre, stars FROM stars "
            "JOIN viewers ON who = viewer JOIN movies ON what = film ORDER BY ALL"
        ).fetchall()
    joined = join_features(range_, SHOP)
    assert joined.schema.names == ["viewer", "town", "money", "film", "genre", "stars"]
    assert joined.column("viewer").type == pa.int64()
    assert joined.column("stars").type == pa.int8()
    assert sorted((tuple(row.values()) for row in joined.to_pylist()), key=repr) == sorted(expected, key=repr)


def test_rows_keep_the_order_of_the_ratings() -> None:
    assert join_features(films(), SHOP).column("stars").to_pylist() == [1, 2, 3, 4]


def test_a_rating_without_its_customer_is_an_error_and_not_lost() -> None:
    range_ = films()
    with pytest.raises(ValueError, match="2 ratings whose who is unknown"):
        join_features(dataclasses.replace(range_, customers=range_.customers.slice(1)), SHOP)


def test_rows_that_validation_found_are_taken_as_they_are() -> None:
    """Nobody looks a key up twice: rows that lie would show here."""
    lying = dataclasses.replace(
        films(),
        customer_rows=pa.array([0, 1, 2, 2], pa.int32()),
        product_rows=pa.array([0, 0, 0, 1], pa.int32()),
    )
    joined = join_features(lying, SHOP)
    assert joined.column("town").to_pylist() == [None, "", "x", "x"]
    assert joined.column("genre").to_pylist() == ["noir", "noir", "noir", None]


def test_a_validated_range_joins_as_it_would_by_its_keys() -> None:
    valid = validate_ratings(films(), SHOP, "sqlite").valid
    by_keys = dataclasses.replace(valid, customer_rows=None, product_rows=None)
    assert join_features(valid, SHOP) == join_features(by_keys, SHOP)
    assert valid.ratings.num_rows == 4


def test_integers_are_found_across_widths_and_null_is_never_found() -> None:
    values = pa.array([5, None, -1, 2**31], pa.int64())
    keys = pa.array([1, 5], pa.uint8())
    assert find_rows(values, keys).to_pylist() == [1, None, None, None]
    assert find_rows(pa.array(["A", "a ", None]), pa.array(["a ", None])).to_pylist() == [None, 0, None]


def test_ranges_without_ratings_give_no_batch() -> None:
    empty = dataclasses.replace(films(), ratings=films().ratings.slice(0, 0))
    with TestPipeline() as pipeline:
        joined = pipeline | beam.Create([films(), empty]) | JoinFeatures(SHOP)
        assert_that(joined | beam.Map(lambda batch: batch.num_rows), equal_to([4]))


def test_classicmodels_columns_are_those_of_the_formats() -> None:
    assert ", ".join(CLASSICMODELS.training_columns) == (
        "city, state, postalCode, country, creditLimit, productCode, productLine, productScale, "
        "quantityInStock, buyPrice, MSRP, productRating"
    )
