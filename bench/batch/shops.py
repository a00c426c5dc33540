"""Shops with the classicmodels schema, made once and kept: seeded, with as many ratings as asked for.

`beamrec generate shop` makes prettier ratings but at most half of all pairs, and by INSERT; here they are
drawn a customer at a time and loaded in the order of the primary key.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from server import Server

from beamrec.pipelines.shop_tables import COLUMNS, PRIMARY_KEYS, ShopSize, make_customers, make_products

__all__ = ["BIG", "LONG", "SHOPS", "SMALL", "WIDE", "ShopSpec", "ensure_shop"]

_ROWS_PER_FILE = 5_000_000
_TSV = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")

_Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ShopSpec:
    """One generated shop.

    Attributes:
      database: name of the database it stands in.
      customers, products, ratings: rows of the tables.
      spread: deviation of the logarithm of how much a customer rates; 0 for all alike.
      seed: the same spec makes the same shop.
    """

    database: str
    customers: int
    products: int
    ratings: int
    spread: float = 0.5
    seed: int = 42

    def __post_init__(self) -> None:
        if self.ratings > self.customers * self.products:
            raise ValueError(f"{self.database}: more ratings than pairs of a customer and a product")


BIG = ShopSpec("shop5m", customers=10_000, products=5_000, ratings=5_000_000)
# 500,000 ratings each of 100 customers: the key (customer, product) asks for as many products.
LONG = ShopSpec("shop50m", customers=100, products=625_000, ratings=50_000_000, spread=0)
# `shop5m` grown tenfold as shops grow: ten times the customers, the same products.
WIDE = ShopSpec("shop50m_wide", customers=100_000, products=5_000, ratings=50_000_000)
SMALL = ShopSpec("shop_small", customers=200, products=500, ratings=20_000)
SHOPS = {spec.database: spec for spec in (BIG, LONG, WIDE, SMALL)}


def ensure_shop(server: Server, spec: ShopSpec, folder: Path) -> float:
    """Makes a shop unless it stands there already, whole and of this very spec.

    Args:
      server: where it goes.
      spec: what it is like.
      folder: where files wait to be loaded; emptied again.

    Returns:
      Seconds that it took; 0 if it was there.
    """
    wanted = repr(spec)
    server.execute("CREATE DATABASE IF NOT EXISTS bench", "CREATE TABLE IF NOT EXISTS bench.made (spec TEXT)")
    if (wanted,) in server.execute("SELECT spec FROM bench.made"):
        return 0.0
    began = time.monotonic()
    server.execute(f"DROP DATABASE IF EXISTS {spec.database}", f"CREATE DATABASE {spec.database}")
    random = np.random.default_rng(spec.seed)
    size = ShopSize(spec.customers, spec.products, ratings=1, seed=spec.seed)
    customers, products = make_customers(size, random), make_products(size, random)
    for table, batches in (
        ("customers", [customers]),
        ("products", [products]),
        ("ratings", _ratings(spec, customers, products, random)),
    ):
        _load(server, spec.database, table, batches, folder)
    server.execute(
        f"ANALYZE TABLE {', '.join(f'{spec.database}.{table}' for table in COLUMNS)}",
        f"INSERT INTO bench.made VALUES ('{wanted.replace(chr(39), chr(39) * 2)}')",  # noqa: S608
    )
    return time.monotonic() - began


def _load(
    server: Server,
    database: str,
    table: str,
    batches: "Iterator[pa.RecordBatch] | list[pa.RecordBatch]",
    folder: Path,
) -> None:
    definitions = [f"`{name}` {declared}" for name, declared in COLUMNS[table].items()]
    keys = ", ".join(f"`{name}`" for name in PRIMARY_KEYS[table])
    server.execute(
        f"CREATE TABLE {database}.{table} ({', '.join(definitions)}, PRIMARY KEY ({keys})) "
        "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{database}-{table}-{os.getpid()}.tsv"
    for batch in batches:
        _write_tsv(batch, path)
        server.execute(
            "SET unique_checks = 0, foreign_key_checks = 0",
            f"LOAD DATA INFILE '{path}' INTO TABLE {database}.{table} CHARACTER SET utf8mb4",
        )
        path.unlink()


def _write_tsv(batch: pa.RecordBatch, path: Path) -> None:
    """A batch as LOAD DATA expects it: tabs, line ends, `\\N` for NULL; the shop's text has none of these."""
    columns = [
        pc.fill_null(pc.cast(column, pa.string()), r"\N") if column.null_count else column
        for column in batch.columns
    ]
    csv.write_csv(pa.RecordBatch.from_arrays(columns, names=batch.schema.names), path, _TSV)


def _ratings(
    spec: ShopSpec, customers: pa.RecordBatch, products: pa.RecordBatch, random: np.random.Generator
) -> Iterator[pa.RecordBatch]:
    """The ratings, ascending by key, in batches of about five million rows: whole customers."""
    counts = _ratings_per_customer(spec, random)
    popularity = np.log(1 / (5 + random.permutation(spec.products))).astype(
        np.float32
    )  # Zipf, head flattened
    quality = 3.1 + 0.6 * random.standard_normal(spec.products)
    first = 0
    while first < spec.customers:
        past = int(np.searchsorted(np.cumsum(counts[first:]), _ROWS_PER_FILE, side="right"))
        last = min(spec.customers, first + max(1, past))
        product = np.concatenate([_draw(int(n), popularity, random) for n in counts[first:last]])
        score = quality[product] + 0.8 * random.standard_normal(len(product))
        customer = pa.array(np.repeat(np.arange(first, last), counts[first:last]))
        yield pa.RecordBatch.from_pydict(
            {
                "customerNumber": customers.column("customerNumber").take(customer),
                "productCode": products.column("productCode").take(pa.array(product)),
                "productRating": pa.array(np.clip(np.round(score), 1, 5).astype(np.int32)),
            }
        )
        first = last


def _ratings_per_customer(spec: ShopSpec, random: np.random.Generator) -> _Ints:
    """How many ratings each customer gives, their sum exact: [num_customers]."""
    activity = random.lognormal(0, spec.spread, spec.customers) if spec.spread else np.ones(spec.customers)
    counts = np.clip(np.round(activity / activity.sum() * spec.ratings), 1, spec.products).astype(np.int64)
    while missing := spec.ratings - int(counts.sum()):
        room = np.flatnonzero(counts < spec.products if missing > 0 else counts > 1)
        chosen = random.permutation(room)[: abs(missing)]
        counts[chosen] += np.sign(missing)
    return counts


def _draw(count: int, log_weights: npt.NDArray[np.float32], random: np.random.Generator) -> _Ints:
    """Distinct products by weight, ascending: the `count` largest of Gumbel-perturbed log weights."""
    exponential = random.standard_exponential(len(log_weights), dtype=np.float32)
    keys = log_weights - np.log(np.maximum(exponential, np.float32(1e-30)))
    if count == len(keys):
        return np.arange(count)
    return np.sort(np.argpartition(keys, len(keys) - count)[len(keys) - count :])
