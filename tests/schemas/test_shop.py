"""A shop is read from TOML whole or not at all."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS, EventMapping, Feature, Shop, Table

TOML = """
name = "films"
[customers]
name = "viewers"
key = "login"
key_type = "string"
features = [
  { column = "joined", min = 1990-01-01, max = 2030-12-31T23:00:00 },
  { column = "plan", values = ["a", "b"] },
]
[products]
name = "films"
key = "id"
key_type = "int"
features = [{ column = "year", kind = "number", min = 1888, nullable = false }]
[ratings]
name = "stars"
customer = "who"
product = "film"
rating = "stars"
"""


def read(tmp_path: Path, text: str) -> Shop:
    """The shop of a TOML text."""
    path = tmp_path / "shop.toml"
    path.write_text(text)
    return Shop.from_toml(path)


def test_rules_are_read_with_toml_dates_as_text(tmp_path: Path) -> None:
    shop = read(tmp_path, TOML)
    assert shop.customers.features == (
        Feature("joined", min="1990-01-01", max="2030-12-31T23:00:00"),
        Feature("plan", values=("a", "b")),
    )
    assert shop.products.features == (Feature("year", kind="number", min=1888, nullable=False),)
    assert (shop.ratings.min_rating, shop.ratings.max_rating) == (1, 5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "films"\n[c', "name = 5\n[c", "shop: name: expected text, got 5"),
        ('key = "login"', "key = 5", "table viewers: key: expected a column or table name"),
        ('key_type = "int"', 'key_type = "float"', "key_type: expected one of int, string, got 'float'"),
        ('key_type = "int"', "key_type = 1", "key_type: expected one of int, string, got 1"),
        ('name = "stars"', 'name = "Films"', "counted by their tables' names, got viewers, films, Films"),
        ('rating = "stars"', 'rating = "stars"\nmin_rating = "1"', "min_rating: expected a finite number"),
        ('rating = "stars"', 'rating = "stars"\nmax_rating = inf', "max_rating: expected a finite number"),
        ('rating = "stars"', 'rating = "stars"\nmin_rating = 5', "min_rating must be below max_rating"),
        ('rating = "stars"', "", "rating"),
        ("nullable = false", 'nullable = "no"', "feature year: nullable: expected true or false"),
        ("nullable = false", "nulable = false", "products.features[0]: unknown key 'nulable'"),
        ("min = 1888", "min = 07:00:00", "feature year: min: expected a finite number"),
        ('column = "year"', "column = 1990-01-01", "feature column: expected a column or table name"),
        ('"a", "b"', "1", "feature plan: values: expected text, got 1"),
        ('["a", "b"]', '"a"', "feature plan: values: expected a list"),
        ('[ratings]', "[events]\nshape = 1\n[ratings]", "events: shape: expected text, got 1"),
        ('[ratings]', "[events]\nquantity = []\n[ratings]", "events: quantity: expected text"),
        ('[ratings]', "[events]\nhistory_length = -1\n[ratings]", "from 0 to 100, got -1"),
        ('[ratings]', "[events]\nhistory_length = 101\n[ratings]", "from 0 to 100, got 101"),
        ('[ratings]', f"[events]\nhistory_length = {10**40}\n[ratings]", "expected a whole number from 0"),
        ('[ratings]', "[events]\nhistory_length = 2.0\n[ratings]", "expected a whole number from 0"),
        ('[ratings]', "[events]\nhistory_length = true\n[ratings]", "expected a whole number from 0"),
        ('[ratings]', '[events]\nhistory_length = "5"\n[ratings]', "expected a whole number from 0"),
        ('[ratings]', "[evens]\n[ratings]", "unknown key 'evens'; known are customers, events, name"),
        ("features = [{ c", "features = 5\nx = [{ c", "expected an array of tables"),
        ('name = "films"\n[c', "name = \n[c", "not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_no_shop_is_refused_with_the_file_and_the_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert TOML.count(old) == 1
    with pytest.raises(UsageError) as caught:
        read(tmp_path, TOML.replace(old, new))
    assert str(caught.value).startswith(f"--shop {tmp_path}/shop.toml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_click_may_be_served_with_none_or_many_before_it(tmp_path: Path, length: int) -> None:
    shop = read(tmp_path, TOML.replace("[ratings]", f"[events]\nhistory_length = {length}\n[ratings]"))
    assert shop.events.history_length == length


def test_what_is_built_in_code_is_checked_too() -> None:
    features: Any = [Feature("a")]
    with pytest.raises(UsageError, match="expected a tuple of features"):
        Table("t", "k", "int", features)
    with pytest.raises(UsageError, match="expected a tuple of features"):
        Table("t", "k", "int", ("a",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="columns must be distinct regardless of case"):
        Table("t", "k", "int", (Feature("K"),))
    with pytest.raises(UsageError, match="customer: expected text, got None"):
        EventMapping(customer=None)  # type: ignore[arg-type]


def test_the_built_in_shop_has_no_rules_that_its_rows_might_break() -> None:
    rules = {(f.min, f.max, f.values, f.nullable) for f in CLASSICMODELS.customers.features}
    rules |= {(f.min, f.max, f.values, f.nullable) for f in CLASSICMODELS.products.features}
    assert rules == {(None, None, None, True)}


def test_a_shop_survives_a_round_trip_through_plain_values() -> None:
    assert Shop.from_dict(dataclasses.asdict(CLASSICMODELS)) == CLASSICMODELS
