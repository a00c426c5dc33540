"""`beamrec generate shop`: a made-up shop database, seeded and at any scale."""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.io.registry import backend, known_schemes, reject_password
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.pipelines.shop_preferences import Floats, Preferences, plant_preferences
from beamrec.pipelines.shop_ratings import make_ratings
from beamrec.pipelines.shop_tables import COLUMNS, PRIMARY_KEYS, ShopSize, make_customers, make_products
from beamrec.schemas.errors import UsageError

__all__ = ["HELP", "Oracle", "ShopSize", "add_arguments", "generate_shop", "make_shop", "oracle", "run"]

HELP = "makes a shop database with the schema of classicmodels"

_ROWS_PER_BATCH = 200_000


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A recommender that knows what was planted: the most that any could reach on a made-up shop.

    Attributes:
      customers, products: their keys, in the order of the preferences' rows and columns.
    """

    customers: pa.Array
    products: pa.Array
    preferences: Preferences

    def scores(self, customers: pa.Array, products: pa.Array) -> Floats:
        """Expected likes, the higher the sooner recommended: [customers, products].

        Args:
          customers, products: their keys, also as text.

        Raises:
          ValueError: a key is not of this shop.
        """
        rows, columns = (
            pc.index_in(wanted, pc.cast(known, wanted.type))
            for wanted, known in ((customers, self.customers), (products, self.products))
        )
        if rows.null_count or columns.null_count:
            raise ValueError("the oracle knows its own shop only: give the seed and sizes that made it")
        return self.preferences.expected_likes(rows.to_numpy().astype(np.int64))[:, columns.to_numpy()]


def make_shop(size: ShopSize) -> dict[str, pa.RecordBatch]:
    """The tables by name: customers, products, ratings."""
    customers, products, preferences, random = _start(size)
    return {
        "customers": customers,
        "products": products,
        "ratings": make_ratings(size, customers, products, preferences, random),
    }


def oracle(size: ShopSize) -> Oracle:
    """What the generator alone knows of the shop that `make_shop` makes of the same size and seed."""
    customers, products, preferences, _ = _start(size)
    return Oracle(customers.column("customerNumber"), products.column("productCode"), preferences)


def _start(size: ShopSize) -> tuple[pa.RecordBatch, pa.RecordBatch, Preferences, np.random.Generator]:
    random = np.random.default_rng(size.seed)
    customers, products = make_customers(size, random), make_products(size, random)
    return customers, products, plant_preferences(customers, products, random), random


def generate_shop(uri: str, size: ShopSize, overwrite: bool = False) -> dict[str, int]:
    """Makes a shop and writes it into a database.

    Args:
      uri: `sqlite:///path`, or `mysql://` or `postgresql://` with `user@host:port/db`.
      overwrite: whether tables of these names may be replaced.

    Returns:
      Rows by table.

    Raises:
      UsageError: a table is there already, or the URI is not one that can be written.
      UnavailableError: the database cannot be reached.
    """
    reject_password(uri, "--output", "BEAMREC_SOURCE_PASSWORD")
    module = backend("tables", uri, "--output")
    with module.connect_for_writing(uri) as connection:
        existing = sorted(name for name in module.table_names(connection) if name.lower() in COLUMNS)
        if existing and not overwrite:
            raise UsageError(
                f"--output {uri}: there are tables {', '.join(existing)} already; "
                "give another database, or --overwrite to replace them"
            )
        tables = make_shop(size)
        for name, table in tables.items():
            module.write_table(connection, name, COLUMNS[name], PRIMARY_KEYS[name], _slices(table))
    return {name: table.num_rows for name, table in tables.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `generate shop`."""
    size = ShopSize()
    add = parser.add_argument
    add("--output", required=True, help=f"database to write: {', '.join(known_schemes('tables'))} [URI]")
    add("--customers", type=int, default=size.customers, help="rows of the table")
    add("--products", type=int, default=size.products, help="rows of the table")
    add("--ratings", type=int, default=size.ratings, help="valid ratings")
    add("--bad", type=int, default=size.bad, help="ratings beyond these that break a rule")
    add("--seed", type=int, default=default("seed"), help="the same seed makes the same shop")
    add("--overwrite", action="store_true", help="replace tables that are there already")


def run(values: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Makes the shop and returns the `--json` object."""
    size = ShopSize(values.customers, values.products, values.ratings, values.bad, values.seed)
    console.status(f"making {size.ratings:,} ratings of {size.products:,} products …")
    rows = generate_shop(values.output, size, values.overwrite)
    console.print(f"{', '.join(f'{count:,} {name}' for name, count in rows.items())}: {values.output}")
    return {"rows": rows, "paths": {"shop": values.output}}


def _slices(table: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, table.num_rows, _ROWS_PER_BATCH):
        yield table.slice(start, _ROWS_PER_BATCH)
