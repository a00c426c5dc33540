"""Every rule sends the rows that break it, and only those, to the dead letters."""

import dataclasses
import decimal
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.schemas.ranges import EntityTally, MalformedRow, RatingsRange
from beamrec.schemas.shop import CLASSICMODELS, Feature, Table
from beamrec.transforms.rejects import canonical_json
from beamrec.transforms.validate import (
    DEAD_LETTERS,
    TALLIES,
    VALID,
    Validated,
    ValidateRatings,
    validate_ratings,
)

TAKEN_AT = "2026-11-22T07:00:00.000+00:00"
Row = tuple[int | None, str | None, int | None]


def ratings_range(*rows: Row, rating_type: pa.DataType | None = None) -> RatingsRange:
    """A range of customers 103 and 112 and products S1 and S2."""
    customer, product, rating = zip(*rows, strict=True) if rows else ((), (), ())
    return RatingsRange(
        ratings=pa.RecordBatch.from_pydict(
            {
                "customerNumber": pa.array(customer, pa.int32()),
                "productCode": pa.array(product, pa.string()),
                "productRating": pa.array(rating, rating_type or pa.int32()),
            }
        ),
        customers=pa.RecordBatch.from_pydict({"customerNumber": pa.array([103, 112], pa.int64())}),
        products=pa.RecordBatch.from_pydict({"productCode": ["S1", "S2"]}),
        taken_at=TAKEN_AT,
    )


def check(*rows: Row) -> tuple[list[Row], list[tuple[str, Row]]]:
    """Valid rows, and (rule, row) of each dead letter."""
    validated = validate_ratings(ratings_range(*rows), CLASSICMODELS, "sqlite")
    bad = [
        (letter.error_type, tuple(json.loads(letter.payload).values()))
        for letters in validated.dead_letters
        for letter in letters
    ]
    return [tuple(row.values()) for row in validated.valid.ratings.to_pylist()], bad


RULES = dataclasses.replace(
    CLASSICMODELS,
    customers=Table("customers", "customerNumber", "int", (Feature("creditLimit", "number", min=0),)),
    products=Table(
        "products", "productCode", "string", (Feature("quantityInStock", "number", nullable=False),)
    ),
)


def with_rules(range_: RatingsRange, credit: dict[int, int], stock: dict[str, int | None]) -> RatingsRange:
    """A range with the columns that `RULES` has rules for."""
    return dataclasses.replace(
        range_,
        customers=pa.RecordBatch.from_pydict(
            {"customerNumber": pa.array(credit, pa.int32()), "creditLimit": pa.array(credit.values())}
        ),
        products=pa.RecordBatch.from_pydict(
            {"productCode": pa.array(stock), "quantityInStock": pa.array(stock.values(), pa.int16())}
        ),
    )


def rating(customer: int, product: str) -> dict[str, Any]:
    """A row of the ratings without its rating."""
    return {"customerNumber": customer, "productCode": product}


def rules_of(validated: Validated) -> dict[str, list[str]]:
    """Rules of the dead letters by table."""
    return {
        letters[0].source["name"]: [letter.error_type for letter in letters]
        for letters in validated.dead_letters
    }


def test_valid_ratings_come_out_ordered_by_customer_and_product() -> None:
    valid, bad = check((112, "S1", 5), (103, "S2", 1), (103, "S1", 3))
    assert valid == [(103, "S1", 3), (103, "S2", 1), (112, "S1", 5)]
    assert bad == []


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        ("null_key", (None, "S1", 3)),
        ("null_key", (103, None, 3)),
        ("unknown_customer", (104, "S1", 3)),
        ("unknown_product", (103, "S3", 3)),
        ("unknown_product", (103, "s1", 3)),
        ("unknown_product", (103, "", 3)),
        ("null_rating", (103, "S1", None)),
        ("rating_out_of_range", (103, "S1", 0)),
        ("rating_out_of_range", (103, "S1", 6)),
        ("rating_out_of_range", (103, "S1", -(2**31))),
    ],
)
def test_a_row_that_breaks_a_rule_is_a_dead_letter_with_that_rule(rule: str, row: Row) -> None:
    valid, bad = check(row, (112, "S2", 4))
    assert valid == [(112, "S2", 4)]
    assert bad == [(rule, row)]


def test_of_several_broken_rules_the_first_is_reported() -> None:
    assert check((None, "S9", 77))[1] == [("null_key", (None, "S9", 77))]
    assert check((999, "S9", 77))[1] == [("unknown_customer", (999, "S9", 77))]


def test_of_rows_with_one_key_the_lowest_rating_stays_in_whatever_order_they_come() -> None:
    rows: list[Row] = [(103, "S1", 5), (103, "S1", 2), (103, "S1", 9), (103, "S2", 2), (112, "S1", 2)]
    forward, backward = check(*rows), check(*reversed(rows))
    assert forward == backward
    assert forward[0] == [(103, "S1", 2), (103, "S2", 2), (112, "S1", 2)]
    assert ("duplicate_key", (103, "S1", 5)) in forward[1]
    assert ("rating_out_of_range", (103, "S1", 9)) in forward[1]


def test_the_lowest_rating_is_the_least_number_and_not_the_least_text() -> None:
    shop = dataclasses.replace(
        CLASSICMODELS, ratings=dataclasses.replace(CLASSICMODELS.ratings, max_rating=10)
    )
    validated = validate_ratings(ratings_range((103, "S1", 10), (103, "S1", 9)), shop, "sqlite")
    assert validated.valid.ratings.column("productRating").to_pylist() == [9]


def test_customers_and_products_of_any_number_are_told_apart() -> None:
    """Each pair once, of 300 customers and 7 products, in an order of its own."""
    keys = [(customer, product) for product in range(7) for customer in range(300)]
    range_ = RatingsRange(
        ratings=pa.RecordBatch.from_pydict(
            {
                "customerNumber": pa.array([customer for customer, _ in keys], pa.int32()),
                "productCode": [f"S{product}" for _, product in keys],
                "productRating": pa.array([3] * len(keys), pa.int32()),
            }
        ),
        customers=pa.RecordBatch.from_pydict({"customerNumber": pa.array(range(300), pa.int32())}),
        products=pa.RecordBatch.from_pydict({"productCode": [f"S{product}" for product in range(7)]}),
        taken_at=TAKEN_AT,
    )
    validated = validate_ratings(range_, CLASSICMODELS, "sqlite")
    assert validated.dead_letters == ()
    rows = validated.valid.ratings.to_pylist()
    assert [(row["customerNumber"], int(row["productCode"][1:])) for row in rows] == sorted(keys)


def test_an_invalid_row_does_not_make_a_valid_one_a_duplicate() -> None:
    valid, bad = check((103, "S1", 0), (103, "S1", 4))
    assert valid == [(103, "S1", 4)]
    assert bad == [("rating_out_of_range", (103, "S1", 0))]


def test_ratings_that_are_not_numbers_are_out_of_range() -> None:
    bad = [(103, "S1", float(text)) for text in ("nan", "inf", "-inf")]
    range_ = ratings_range(*bad, (103, "S2", 4.5), rating_type=pa.float64())  # type: ignore[arg-type]
    validated = validate_ratings(range_, CLASSICMODELS, "sqlite")
    (letters,) = validated.dead_letters
    assert validated.valid.ratings.column("productRating").to_pylist() == [4.5]
    assert [letter.error_type for letter in letters] == ["rating_out_of_range"] * 3
    payloads = [json.loads(letter.payload)["productRating"] for letter in letters]
    assert payloads == ["-inf", "inf", "nan"]


def test_a_decimal_rating_may_be_the_end_of_the_scale() -> None:
    top = decimal.Decimal("21000.35")  # of which Arrow's own cast makes 21000.350000000002
    scale = dataclasses.replace(CLASSICMODELS.ratings, max_rating=21000.35)
    shop = dataclasses.replace(CLASSICMODELS, ratings=scale)
    range_ = ratings_range((103, "S1", top), rating_type=pa.decimal128(10, 2))  # type: ignore[arg-type]
    assert validate_ratings(range_, shop, "sqlite").dead_letters == ()


def test_a_text_key_that_is_empty_names_no_partition() -> None:
    customers = dataclasses.replace(CLASSICMODELS.customers, key_type="string")
    shop = dataclasses.replace(CLASSICMODELS, customers=customers)
    range_ = dataclasses.replace(
        ratings_range(),
        ratings=pa.RecordBatch.from_pydict(
            {"customerNumber": ["", "a"], "productCode": ["S1", "S1"], "productRating": [3, 3]}
        ),
        customers=pa.RecordBatch.from_pydict({"customerNumber": ["", "a"]}),
    )
    validated = validate_ratings(range_, shop, "mysql")
    assert validated.valid.ratings.column(0).to_pylist() == ["a"]
    assert validated.valid.customers.column(0).to_pylist() == ["a"]
    assert rules_of(validated) == {"ratings": ["empty_key"], "customers": ["empty_key"]}


def test_an_empty_range_is_valid() -> None:
    assert check() == ([], [])


def test_a_dead_letter_says_where_the_row_is_what_was_expected_and_what_came() -> None:
    ((letter,),) = validate_ratings(ratings_range((103, "S1", 9)), CLASSICMODELS, "mysql").dead_letters
    assert letter.stage == "validate"
    assert letter.error_message == "expected productRating from 1 to 5, got 9"
    assert letter.payload == b'{"customerNumber":103,"productCode":"S1","productRating":9}'
    assert letter.source == {
        "system": "mysql",
        "name": "ratings",
        "position": {"customerNumber": 103, "productCode": "S1"},
    }
    assert letter.first_seen == TAKEN_AT


def test_a_rating_whose_customer_or_product_is_a_dead_letter_says_so() -> None:
    """Distinct from one whose customer or product was never there."""
    rows: list[Row] = [(103, "S1", 3), (112, "S1", 3), (103, "S2", 3), (104, "S1", 3), (103, "S9", 3)]
    range_ = dataclasses.replace(
        with_rules(ratings_range(*rows), credit={103: 0, 112: -1}, stock={"S1": 1, "S2": None}),
        counts_products=True,
    )
    validated = validate_ratings(range_, RULES, "sqlite")
    assert validated.valid.ratings.to_pylist() == [
        {"customerNumber": 103, "productCode": "S1", "productRating": 3}
    ]
    by_row = {
        tuple(letter.source["position"].values()): letter.error_type
        for letters in validated.dead_letters
        for letter in letters
    }
    assert by_row == {
        (112, "S1"): "invalid_customer",
        (104, "S1"): "unknown_customer",
        (103, "S2"): "invalid_product",
        (103, "S9"): "unknown_product",
        (112,): "out_of_range",
        ("S2",): "null_value",
    }
    messages = {letter.error_type: letter.error_message for letter in validated.dead_letters[0]}
    assert messages["invalid_customer"] == (
        "expected a customerNumber of table customers whose row keeps every rule, got 112"
    )
    assert messages["unknown_customer"] == "expected a customerNumber of table customers, got 104"


def test_a_customer_with_one_good_row_of_two_is_valid() -> None:
    customers = pa.RecordBatch.from_pydict(
        {"customerNumber": pa.array([103, 112, 103], pa.int32()), "creditLimit": [-1, 1, 5]}
    )
    base = with_rules(ratings_range((103, "S1", 3), (103, "S1", 9)), credit={}, stock={"S1": 1})
    validated = validate_ratings(dataclasses.replace(base, customers=customers), RULES, "sqlite")
    assert rules_of(validated) == {"ratings": ["rating_out_of_range"], "customers": ["out_of_range"]}
    assert validated.valid.ratings.num_rows == 1
    assert validated.valid.customers.column("creditLimit").to_pylist() == [5, 1]


def test_rows_that_fit_no_batch_are_dead_letters_of_their_tables() -> None:
    malformed = (
        MalformedRow("ratings", "productRating", "int32", {**rating(103, "S1"), "productRating": "five"}),
        MalformedRow("customers", "creditLimit", "int32", {"customerNumber": 104, "creditLimit": "x"}),
        MalformedRow("products", "productCode", "string", {"productCode": b"\xff", "quantityInStock": 1}),
    )
    range_ = dataclasses.replace(
        ratings_range((104, "S1", 3), (103, "S2", 3)), malformed=malformed, counts_products=True
    )
    validated = validate_ratings(range_, CLASSICMODELS, "sqlite")
    assert rules_of(validated) == {
        "ratings": ["bad_type", "invalid_customer"],
        "customers": ["bad_type"],
        "products": ["bad_type"],
    }
    assert validated.valid.malformed == ()
    letter = validated.dead_letters[0][0]
    assert letter.error_message == "expected productRating of type int32, got 'five'"
    assert letter.payload == b'{"customerNumber":103,"productCode":"S1","productRating":"five"}'


@pytest.mark.parametrize("counts_customers", [True, False])
@pytest.mark.parametrize("counts_products", [True, False])
def test_a_range_accounts_for_the_tables_that_it_counts_and_filters_all(
    counts_customers: bool, counts_products: bool
) -> None:
    range_ = dataclasses.replace(
        with_rules(
            ratings_range((103, "S1", 3), (112, "S1", 3)),
            credit={103: 1, 112: -1},
            stock={"S1": 5, "S2": None},
        ),
        malformed=(
            MalformedRow("customers", "creditLimit", "int32", {"customerNumber": 7, "creditLimit": "x"}),
            MalformedRow("products", "quantityInStock", "int32", {"productCode": "S7"}),
        ),
        counts_customers=counts_customers,
        counts_products=counts_products,
    )
    validated = validate_ratings(range_, RULES, "sqlite")
    assert validated.valid.ratings.column("customerNumber").to_pylist() == [103]
    assert validated.valid.customers.column("customerNumber").to_pylist() == [103]
    assert validated.valid.products.column("productCode").to_pylist() == ["S1"]
    counted = {"customers": counts_customers, "products": counts_products}
    tables = {name for name, counts in counted.items() if counts}
    assert {(each.table, each.valid) for each in validated.tallies} == {(name, 1) for name in tables}
    rules = rules_of(validated)
    assert set(rules) == {"ratings", *tables}
    assert all(len(rules[name]) == 2 for name in tables)


def test_each_valid_rating_has_its_rows_of_customers_and_products() -> None:
    range_ = dataclasses.replace(
        ratings_range((112, "S2", 5), (112, "S1", 9), (103, "S2", 1), (103, "S1", None)),
        customers=pa.RecordBatch.from_pydict({"customerNumber": pa.array([112, 109, 103], pa.int64())}),
        products=pa.RecordBatch.from_pydict({"productCode": ["S2", "S0", "S1"]}),
    )
    valid = validate_ratings(range_, CLASSICMODELS, "sqlite").valid
    assert valid.ratings.column("productRating").to_pylist() == [1, 5]
    assert valid.customers.column(0).to_pylist() == [103, 109, 112]
    assert valid.products.column(0).to_pylist() == ["S0", "S1", "S2"]
    assert valid.customer_rows is not None
    assert valid.product_rows is not None
    assert valid.customer_rows.equals(pa.array([0, 2], pa.int32()))
    assert valid.product_rows.equals(pa.array([2, 2], pa.int32()))


def test_ratings_in_order_are_not_copied() -> None:
    range_ = ratings_range((103, "S1", 5), (103, "S2", 1), (112, "S1", 3))
    valid = validate_ratings(range_, CLASSICMODELS, "sqlite").valid
    assert valid.ratings is range_.ratings


class _SharesProducts(beam.DoFn):  # type: ignore[misc]
    """For each range, whether one before it came with the very same batch of products."""

    def __init__(self) -> None:
        self._seen: list[pa.RecordBatch] = []

    def process(self, range_: RatingsRange) -> Iterator[tuple[bool, int]]:
        yield any(range_.products is seen for seen in self._seen), range_.products.num_rows
        self._seen.append(range_.products)


def test_products_are_checked_once_for_all_ranges_that_share_them() -> None:
    # Out of order, so that a second check would give a second batch.
    shared = pa.RecordBatch.from_pydict({"productCode": ["S2", "S1", "S2"]})
    other = pa.RecordBatch.from_pydict({"productCode": ["S2", "S1", "S0"]})
    base = ratings_range((103, "S1", 3))
    with TestPipeline() as pipeline:
        shares = (
            pipeline
            | beam.Create([0])
            # By one element, so that the ranges reach the next stage as the objects they are.
            | beam.FlatMap(
                lambda _: [dataclasses.replace(base, products=each) for each in (shared, shared, other)]
            )
            | ValidateRatings(CLASSICMODELS, "sqlite")
        )[VALID] | beam.ParDo(_SharesProducts())
        assert_that(shares, equal_to([(False, 2), (True, 2), (False, 3)]))


def test_canonical_json_sorts_keys_and_keeps_decimals_exact() -> None:
    row: dict[str, Any] = pa.RecordBatch.from_pydict(
        {
            "b": pa.array(["1.10"]).cast(pa.decimal128(10, 2)),
            "a": pa.array([b"\xff"]),
            "d": pa.array(["2026-11-22"]).cast(pa.date32()),
            "é": [None],
        }
    ).to_pylist()[0]
    assert canonical_json(row) == '{"a":"ff","b":"1.10","d":"2026-11-22","é":null}'.encode()


def test_the_transform_has_all_outputs() -> None:
    with TestPipeline() as pipeline:
        outputs = (
            pipeline
            | beam.Create(
                [
                    ratings_range((103, "S1", 3), (103, "S2", 8)),
                    dataclasses.replace(ratings_range((112, "S1", 1)), counts_products=True),
                ]
            )
            | ValidateRatings(CLASSICMODELS, "sqlite")
        )
        valid = outputs[VALID] | beam.FlatMap(lambda each: each.ratings.column(2).to_pylist())
        rules = outputs[DEAD_LETTERS] | beam.FlatMap(lambda letters: [each.error_type for each in letters])
        assert_that(valid, equal_to([3, 1]), label="valid")
        assert_that(rules, equal_to(["rating_out_of_range"]), label="dead letters")
        tallies = [EntityTally("customers", 2), EntityTally("customers", 2), EntityTally("products", 2)]
        assert_that(outputs[TALLIES], equal_to(tallies), label="tallies")
