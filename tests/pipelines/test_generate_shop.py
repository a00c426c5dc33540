"""The made-up shop: seeded, dirty as asked, skewed, and with something in it to learn."""

import contextlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.sparse as sp

from beamrec.model.evaluation import EvaluationOptions, ModelVectors, SplitOptions, evaluate
from beamrec.model.split import hash_keys, held_out
from beamrec.pipelines.cli import main as cli
from beamrec.pipelines.generate_shop import Oracle, ShopSize, generate_shop, make_shop, oracle
from beamrec.schemas.errors import UsageError


def test_the_default_shop_has_the_size_of_the_real_one() -> None:
    tables = make_shop(ShopSize())
    assert {name: table.num_rows for name, table in tables.items()} == {
        "customers": 120,
        "products": 110,
        "ratings": 2500,
    }
    ratings = tables["ratings"]
    pairs = ratings.select(["customerNumber", "productCode"]).to_pylist()
    assert len({tuple(pair.values()) for pair in pairs}) == 2500
    counts = {
        row["values"]: row["counts"] for row in pc.value_counts(ratings.column("productRating")).to_pylist()
    }
    assert set(counts) == {1, 2, 3, 4, 5}
    assert min(counts.values()) > 25


def test_the_same_seed_makes_the_same_shop_and_another_seed_another() -> None:
    one, two, other = (make_shop(ShopSize(ratings=100, seed=seed)) for seed in (7, 7, 8))
    assert all(one[name].equals(two[name]) for name in one)
    assert not one["ratings"].equals(other["ratings"])


def test_some_features_are_null_empty_or_untrimmed() -> None:
    customers = make_shop(ShopSize(customers=400))["customers"]
    assert 0 < customers.column("state").null_count < 400
    assert 0 < customers.column("postalCode").null_count < 60
    assert "" in customers.column("postalCode").to_pylist()
    assert {"Norway", "Norway  "} <= set(customers.column("country").to_pylist())


def test_bad_ratings_are_as_many_as_asked() -> None:
    tables = make_shop(ShopSize(bad=12))
    ratings = tables["ratings"]
    assert ratings.num_rows == 2512
    in_scale = pc.fill_null(
        pc.is_in(ratings.column("productRating"), pc.unique(np.arange(1, 6, dtype=np.int32))), False
    )
    customer = pc.is_in(ratings.column("customerNumber"), tables["customers"].column("customerNumber"))
    product = pc.is_in(ratings.column("productCode"), tables["products"].column("productCode"))
    assert pc.sum(pc.invert(in_scale)).as_py() == 4
    assert pc.sum(pc.invert(customer)).as_py() == 4
    assert pc.sum(pc.invert(product)).as_py() == 4


def test_popularity_is_skewed() -> None:
    ratings = make_shop(ShopSize(customers=2000, products=500, ratings=50_000))["ratings"]
    counts = np.sort(pc.value_counts(ratings.column("productCode")).field("counts").to_numpy())[::-1]
    assert counts[:50].sum() > 0.25 * 50_000  # a tenth of the products
    assert counts[0] > 5 * np.median(counts)


def test_ratings_follow_customer_and_product_features() -> None:
    """Knowing country, credit limit and product line explains a good part of the variance."""
    tables = make_shop(ShopSize(customers=1000, products=200, ratings=40_000))
    ratings, customers, products = (tables[name] for name in ("ratings", "customers", "products"))
    rating = ratings.column("productRating").to_numpy().astype(float)
    row = pc.index_in(ratings.column("customerNumber"), customers.column("customerNumber")).to_numpy()
    product = pc.index_in(ratings.column("productCode"), products.column("productCode")).to_numpy()
    country = (
        pc.utf8_rtrim_whitespace(customers.column("country")).dictionary_encode().indices.to_numpy()[row]
    )
    line = products.column("productLine").dictionary_encode().indices.to_numpy()[product]
    group = country * 10 + line
    means = np.bincount(group, rating) / np.maximum(np.bincount(group), 1)
    assert np.corrcoef(means[group], rating)[0, 1] > 0.4


def test_a_shop_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    uri, size = f"sqlite:///{tmp_path}/shop.db", ShopSize(ratings=50)
    assert generate_shop(uri, size)["ratings"] == 50
    with pytest.raises(UsageError, match=r"tables customers, products, ratings already.*--overwrite"):
        generate_shop(uri, ShopSize(ratings=60))
    assert generate_shop(uri, ShopSize(ratings=70), overwrite=True)["ratings"] == 70
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        assert connection.execute("SELECT COUNT(*) FROM ratings").fetchone() == (70,)


def test_a_table_that_differs_in_case_only_is_not_replaced(mariadb, source_password: str) -> None:  # type: ignore[no-untyped-def]
    """A server may hold both names for one table."""
    mariadb.execute(
        "DROP DATABASE IF EXISTS cased", "CREATE DATABASE cased", "CREATE TABLE cased.Ratings (id int)"
    )
    with pytest.raises(UsageError, match="tables Ratings already"):
        generate_shop(mariadb.uri("cased"), ShopSize(ratings=50))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"customers": 0}, "--customers: expected at least 1"),
        ({"bad": -1}, "--bad: expected at least 0"),
        ({"customers": 10, "products": 10, "ratings": 51}, "give at most 50 ratings"),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ShopSize(**size)


def test_the_densest_possible_shop_ends() -> None:
    assert make_shop(ShopSize(customers=10, products=10, ratings=50))["ratings"].num_rows == 50


def test_the_command_says_what_it_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/shop.db"
    assert cli(["generate", "shop", "--output", uri, "--ratings", "90", "--bad", "3", "--json"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result["rows"] == {"customers": 120, "products": 110, "ratings": 93}
    assert cli(["generate", "shop", "--output", "oracle://h/d"]) == 2
    assert "expected one of sqlite://, mysql://" in capfd.readouterr().err


SHOP = ShopSize(customers=2_000, products=1_000, ratings=60_000, seed=3)


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, pa.RecordBatch], Oracle]:
    return make_shop(SHOP), oracle(SHOP)


def _positions(tables: dict[str, pa.RecordBatch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ratings = tables["ratings"]
    customer = pc.index_in(ratings.column("customerNumber"), tables["customers"].column("customerNumber"))
    product = pc.index_in(ratings.column("productCode"), tables["products"].column("productCode"))
    return customer.to_numpy(), product.to_numpy(), ratings.column("productRating").to_numpy()


def test_the_oracle_knows_how_often_what_is_rated_and_liked(
    planted: tuple[dict[str, pa.RecordBatch], Oracle],
) -> None:
    """Pairs in ten classes of equally much expectation: what happened is in proportion, but for the head.

    A product is rated once by a customer, so the surest pairs happen less often than in proportion.
    """
    tables, truth = planted
    customer, product, rating = _positions(tables)
    expected = truth.scores(truth.customers, truth.products)
    liked = np.zeros(expected.shape)
    liked[customer, product] = rating > 3
    order = np.argsort(expected, axis=None)
    shares = np.cumsum(expected.ravel()[order])
    bounds = np.searchsorted(shares, shares[-1] * np.arange(1, 10) / 10)
    happened = np.array([part.sum() for part in np.split(liked.ravel()[order], bounds)])
    assert (happened > 0).all()
    tail = happened[:4] / happened[:4].mean()
    assert abs(tail - 1).max() < 0.2
    assert happened[-1] < happened[0]


def test_the_oracle_recommends_better_than_popularity_and_als_but_not_perfectly(
    planted: tuple[dict[str, pa.RecordBatch], Oracle],
) -> None:
    tables, truth = planted
    ratings = tables["ratings"]
    customer, product, rating = _positions(tables)
    split = SplitOptions(0.1, seed=1)
    held = held_out(
        hash_keys(ratings.column("customerNumber")), hash_keys(ratings.column("productCode")), split
    )
    training, rest = (
        sp.csr_matrix(
            ((rating[rows] - 1).astype(np.float32) / 4, (customer[rows], product[rows])),
            shape=(SHOP.customers, SHOP.products),
        )
        for rows in (~held, held)
    )
    random = np.random.default_rng(0)
    chance = ModelVectors(random.random((SHOP.customers, 8)), random.random((SHOP.products, 8)))
    scores = truth.scores(truth.customers, truth.products)
    options = EvaluationOptions(resamples=100)
    found = evaluate(training, rest, chance, split, options, lambda rows: scores[rows])
    metrics = {
        system: found.systems[system]["recall@10"] for system in ("oracle", "als", "item_knn", "popularity")
    }
    assert 0.6 > metrics["oracle"].low > max(metrics["als"].high, metrics["item_knn"].high)
    assert metrics["oracle"].value > 1.8 * metrics["popularity"].value
    assert metrics["als"].value > 1.2 * metrics["popularity"].value


def test_features_show_a_part_of_the_liking_only(planted: tuple[dict[str, pa.RecordBatch], Oracle]) -> None:
    """Within one segment of one country and credit band, customers differ by a taste that is in no column."""
    truth = planted[1].preferences
    groups = np.unique(truth.group[truth.segment == np.bincount(truth.segment).argmax()])
    likings = np.stack([truth.liking(int(group)) for group in groups])
    between = likings.var(0).mean()
    assert 0.25 < between / likings.var() < 0.75


def test_the_oracle_refuses_keys_of_another_shop() -> None:
    truth = oracle(ShopSize())
    with pytest.raises(ValueError, match="its own shop only"):
        truth.scores(truth.customers, pa.array(["S0_0"]))
    some = truth.scores(truth.customers.slice(5, 2), truth.products.slice(7, 3))
    np.testing.assert_array_equal(some, truth.scores(truth.customers, truth.products)[5:7, 7:10])
