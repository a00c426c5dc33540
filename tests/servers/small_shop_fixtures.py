"""A shop of 4 customers, 5 products and all 20 ratings, small enough to be made anew for every test.

No table has a key of its own: rows may be repeated, dangle or lack what they should have.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

DATABASE = "small"
PRIVATE = "PRIVATE-4711"
"""The postal code of every customer, a personal value: it belongs in no message."""

_TABLES = """
customers (customerNumber {key}, city varchar(50), state varchar(50), postalCode varchar(15), \
country varchar(50), creditLimit decimal(10,2))
products (productCode varchar(15), productLine varchar(50), productScale varchar(10), \
quantityInStock smallint, buyPrice decimal(10,2), MSRP decimal(10,2))
ratings (customerNumber {key}, productCode varchar(15), productRating int)
"""
_CUSTOMERS = ("Oslo", "Lyon", "Nantes", "Boston")
_PRODUCTS = ("P1", "P2", "P3", "P4", "P5")


def _statements(key: str) -> list[str]:
    """The tables; `key` is the type of the customers' key, whose values are 1 to 4 (text: 'c1' to 'c4')."""
    keys = [f"'c{n}'" if key != "int" else str(n) for n in range(1, 5)]
    customers = (
        f"({k}, '{city}', NULL, '{PRIVATE}', 'Somewhere', 21000.50)"
        for k, city in zip(keys, _CUSTOMERS, strict=True)
    )
    products = (f"('{code}', 'Ships', '1:10', 7, 10.25, 20.75)" for code in _PRODUCTS)
    ratings = (f"({k}, '{code}', {1 + n % 5})" for n, k in enumerate(keys) for code in _PRODUCTS)
    rows = {"customers": customers, "products": products, "ratings": ratings}
    inserts = [f"INSERT INTO {table} VALUES {', '.join(values)}" for table, values in rows.items()]  # noqa: S608
    return [*(f"CREATE TABLE {table}" for table in _TABLES.format(key=key).splitlines() if table), *inserts]


def _on_sqlite(folder: Path, statements: Sequence[str], options: str) -> str:
    path = folder / "shop.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (options or "PRAGMA encoding", "BEGIN", *statements, "COMMIT"):
            connection.execute(statement)
    return f"sqlite:///{path}"


def _on_mariadb(server: Any, statements: Sequence[str], options: str) -> str:
    password = os.environ["BEAMREC_SOURCE_PASSWORD"]
    server.execute(
        f"DROP DATABASE IF EXISTS {DATABASE}",
        f"CREATE DATABASE {DATABASE} {options or 'CHARACTER SET utf8mb4'}",
        f"CREATE OR REPLACE USER reader@'%' IDENTIFIED BY '{password}'",
    )
    server.execute(*statements, database=DATABASE)
    uri: str = server.uri(DATABASE)
    return uri


def _on_postgresql(server: Any, statements: Sequence[str], options: str) -> str:
    server.create_database(DATABASE, options)
    server.execute_as_shop(*statements, database=DATABASE)
    uri: str = server.uri(DATABASE)
    return uri


@pytest.fixture(scope="session")
def small_shop(request: pytest.FixtureRequest) -> Callable[..., str]:
    """`small_shop(folder, system, changes, options, key)`: makes the shop, changes it; returns its URI.

    `changes` are statements, run as root, in PostgreSQL as the owner; `options` are those of the database
    (SQLite: a pragma). The user `reader` may do nothing unless they say so.
    """

    def make(
        folder: Path, system: str = "sqlite", changes: Sequence[str] = (), options: str = "", key: str = "int"
    ) -> str:
        statements = [*_statements(key), *changes]
        if system == "sqlite":
            return _on_sqlite(folder, statements, options)
        on_server = {"mariadb": _on_mariadb, "postgresql": _on_postgresql}[system]
        return on_server(request.getfixturevalue(system), statements, options)

    return make
