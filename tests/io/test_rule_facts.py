"""Facts for business rules: as new as said, the last known ones in an outage, and no batch waits for long."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io.rule_facts import FactsSource, RuleFacts
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.rules import Facts, ProductFacts, PurchasesTable
from beamrec.schemas.shop import CLASSICMODELS

SmallShop = Callable[..., str]
PURCHASES = PurchasesTable("ratings", "customerNumber", "productCode")


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def uri(request: pytest.FixtureRequest, small_shop: SmallShop, tmp_path: Path, source_password: str) -> str:
    """The small shop in each kind of database."""
    return small_shop(
        tmp_path,
        request.param,
        (
            "UPDATE products SET quantityInStock = 0, productLine = NULL WHERE productCode = 'P2'",
            "DELETE FROM ratings WHERE customerNumber > 2 OR productCode IN ('P1', 'P2', 'P3')",
        ),
    )


def source(uri: str, refresh_seconds: float = 0.2, **changes: Any) -> FactsSource:
    wanted = {"columns": ("quantityInStock", "productLine"), "purchases": PURCHASES, **changes}
    return FactsSource(uri, CLASSICMODELS, refresh_seconds=refresh_seconds, **wanted)


def customers(*keys: int | None) -> pa.Array:
    return pa.array(keys, pa.int64())


def pairs(facts: Facts) -> list[tuple[int, str]]:
    return sorted(zip(facts.rows.tolist(), facts.bought.to_pylist(), strict=True))


def stock(facts: Facts, *products: str) -> list[Any]:
    assert facts.products is not None
    found = facts.products.of(pa.array(products, pa.string())).column("quantityInStock").to_pylist()
    return [None if value is None else int(value) for value in found]


def execute(uri: str, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as shop:
        shop.execute(statement)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_facts_are_those_of_the_database(uri: str) -> None:
    wanted = source(uri)
    wanted.check()
    facts = RuleFacts(wanted).of(customers(2, None, 1, 4, 2, -(2**62)))
    assert stock(facts, "P2", "P1", "no such", "P2") == [0, 7, None, 0]
    assert facts.products is not None
    assert facts.products.of(pa.array(["P2", "P3"])).column("productLine").to_pylist() == [None, "Ships"]
    assert pairs(facts) == [(row, product) for row in (0, 2, 4) for product in ("P4", "P5")]


def test_no_customer_and_no_purchases_are_none(uri: str) -> None:
    assert pairs(RuleFacts(source(uri)).of(customers(None, None))) == []
    assert pairs(RuleFacts(source(uri)).of(customers())) == []
    facts = RuleFacts(source(uri, columns=(), purchases=None)).of(customers(1))
    assert (facts.products, pairs(facts)) == (None, [])


@pytest.fixture
def shop(small_shop: SmallShop, tmp_path: Path) -> str:
    """The small shop in a file."""
    return small_shop(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ("stock",)}, "expected a column stock, .*; name the right one in --rules"),
        (
            {"purchases": PurchasesTable("orders", "who", "what")},
            "expected a table orders .*; name the right one in --rules",
        ),
    ],
)
def test_what_is_not_there_is_said_at_the_start(shop: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, UnavailableError), match=message):
        source(shop, **changes).check()


def test_what_changes_is_seen_within_the_refresh(shop: str) -> None:
    facts = RuleFacts(source(shop), patience_seconds=120)
    assert stock(facts.of(customers(1)), "P1") == [7]
    execute(shop, "UPDATE products SET quantityInStock = 0 WHERE productCode = 'P1'")
    execute(shop, "DELETE FROM ratings WHERE customerNumber = 1")
    wait_until(lambda: stock(facts.of(customers(1)), "P1") == [0])
    wait_until(lambda: pairs(facts.of(customers(1))) == [])
    assert facts.take_counts() == (0, 0)


def test_facts_younger_than_the_refresh_are_not_read_again(shop: str) -> None:
    facts = RuleFacts(source(shop, refresh_seconds=1e6))
    before = pairs(facts.of(customers(1)))
    execute(shop, "UPDATE products SET quantityInStock = 0")
    execute(shop, "DELETE FROM ratings")
    again = facts.of(customers(1, 2))
    assert stock(again, "P1") == [7]
    # Who was not asked about before is asked about now.
    assert pairs(again) == before


def test_after_a_quiet_time_a_batch_waits_for_new_facts(shop: str) -> None:
    facts = RuleFacts(source(shop, refresh_seconds=0.05), patience_seconds=120)
    assert stock(facts.of(customers()), "P1") == [7]
    execute(shop, "UPDATE products SET quantityInStock = 0")
    time.sleep(0.2)
    assert stock(facts.of(customers()), "P1") == [0]


@contextlib.contextmanager
def gone(uri: str) -> Iterator[None]:
    """The file is away while in the `with` block."""
    path = Path(uri.removeprefix("sqlite:///"))
    hidden = path.rename(path.with_suffix(".away"))
    yield
    hidden.rename(path)


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Nobody can read the file while in the `with` block; who tries hangs for half a minute."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        yield
        writer.execute("ROLLBACK")


@pytest.mark.parametrize("outage", [gone, locked])
def test_in_an_outage_the_last_known_facts_hold_and_it_is_counted_and_said(
    shop: str, outage: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = RuleFacts(source(shop), patience_seconds=120, retry_seconds=0.3)
    before = facts.of(customers(1))
    with outage(shop), monkeypatch.context() as during:
        # Only now: before and after, a machine that is merely busy must not look like an outage.
        during.setattr(facts, "_patience", 0.3)
        time.sleep(0.3)
        failures = 0
        while not failures:
            now = facts.of(customers(1, 2))
            assert stock(now, "P1", "P2") == [7, 7]
            assert pairs(now) == pairs(before)
            failures, unknown = facts.take_counts()
            assert unknown > 0
    assert "the last known facts hold" in caplog.text
    assert "answers again" not in caplog.text
    execute(shop, "UPDATE products SET quantityInStock = 1")
    wait_until(lambda: stock(facts.of(customers(1, 2)), "P1") == [1])
    wait_until(lambda: len(pairs(facts.of(customers(1, 2)))) == 10)
    assert caplog.text.count("the last known facts hold") <= 2
    assert "answers again" in caplog.text


def test_a_database_that_is_away_at_first_is_waited_for(shop: str) -> None:
    facts = RuleFacts(source(shop), patience_seconds=0.2, retry_seconds=0.1)
    with locked(shop):
        found: list[Facts] = []
        thread = threading.Thread(target=lambda: found.append(facts.of(customers(1))), daemon=True)
        thread.start()
        time.sleep(1)
        assert thread.is_alive()
    thread.join(300)
    assert stock(found[0], "P1") == [7]


def test_an_answer_that_nobody_waits_for_any_more_is_remembered(shop: str) -> None:
    never = 1e6
    facts = RuleFacts(source(shop, never, columns=()), patience_seconds=0.2, retry_seconds=never)
    with locked(shop):
        assert pairs(facts.of(customers(1))) == []
    wait_until(lambda: len(pairs(facts.of(customers(1)))) == 5)


class _Breaks(FactsSource):
    """Read once, and then a driver raises an error of its own."""

    def read_products(self) -> ProductFacts:
        try:
            return super().read_products()
        finally:
            type(self).read_products = _raise  # type: ignore[method-assign]


def _raise(self: FactsSource) -> ProductFacts:
    raise ValueError("a date of the year 0")


def test_an_error_of_a_driver_leaves_the_last_known_facts(shop: str) -> None:
    facts = RuleFacts(_Breaks(shop, CLASSICMODELS, ("quantityInStock",), None, 0.05), patience_seconds=120)
    assert stock(facts.of(customers()), "P1") == [7]
    failures = 0
    while not failures:
        time.sleep(0.2)
        assert stock(facts.of(customers()), "P1") == [7]
        failures += facts.take_counts()[0]


def test_a_table_that_is_not_there_at_first_ends_the_job(shop: str) -> None:
    with pytest.raises(UsageError, match="stock"):
        RuleFacts(source(shop, columns=("stock",))).of(customers())


def test_a_key_that_no_database_takes_is_no_customers(small_shop: SmallShop, tmp_path: Path) -> None:
    uri = small_shop(tmp_path, key="varchar(20)")
    found = source(uri).read_purchases(["c1", "a\0b", "no such"])
    assert {key: len(products) for key, products in found.items()} == {"c1": 5, "a\0b": 0, "no such": 0}
