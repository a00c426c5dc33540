"""Proposes a `Shop` from the tables and columns of an existing database, for a human to correct."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import pyarrow as pa

from beamrec.schemas.errors import UsageError
from beamrec.schemas.shop import CLASSICMODELS, EventMapping, Feature, RatingsTable, Shop, Table

__all__ = ["Tables", "event_name", "propose_shop"]

Tables = Mapping[str, Mapping[str, pa.DataType]]

_CUSTOMER = re.compile(r"customer|user|client|member|buyer|person|viewer|reader", re.IGNORECASE)
_PRODUCT = re.compile(r"product|item|article|film|movie|book|song|track|good|title", re.IGNORECASE)
_RATING = re.compile(r"rating|score|stars|grade", re.IGNORECASE)
# Columns that say who somebody is, or that no two rows share: of no use to a model, and private.
_IDENTITY = re.compile(
    r"(?i:name|phone|mail|address|password|birth|description|text|comment|image|url|html)|(_id|Id|ID|Number)$"
)
_SCALES = ((1.0, 5.0), (0.0, 5.0), (1.0, 10.0), (0.0, 10.0), (0.0, 100.0))


def propose_shop(tables: Tables, name: str, rating_range: tuple[float, float] | None = None) -> Shop:
    """The most likely shop; classicmodels itself, where its tables and columns are there.

    Args:
      tables: columns with their types, by table.
      name: what to call the shop.
      rating_range: least and greatest rating found, which choose the scale.

    Raises:
      UsageError: no table looks like ratings of products by customers.
    """
    if _has(tables, CLASSICMODELS):
        return CLASSICMODELS
    ratings, customer, product, rating = _ratings_table(tables)
    customers = _entity(tables, ratings, customer, _CUSTOMER)
    products = _entity(tables, ratings, product, _PRODUCT)
    taken = {name.lower() for name in (customers.key, *customers.columns, products.key, rating)}
    return Shop(
        name=name,
        customers=customers,
        products=dataclasses.replace(
            products,
            features=tuple(
                dataclasses.replace(f, event_field=None)
                for f in products.features
                if f.column.lower() not in taken
            ),
        ),
        ratings=RatingsTable(ratings, customer, product, rating, *_scale(rating_range)),
        events=EventMapping(customer=event_name(customer), product=event_name(product)),
    )


def event_name(column: str) -> str:
    """A column's name as events usually spell it: `creditLimit` → `credit_limit`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).replace(" ", "_").lower()


def _has(tables: Tables, shop: Shop) -> bool:
    wanted = {
        shop.customers.name: (shop.customers.key, *shop.customers.columns),
        shop.products.name: (shop.products.key, *shop.products.columns),
        shop.ratings.name: shop.ratings.columns,
    }
    found = {name.lower(): {column.lower() for column in columns} for name, columns in tables.items()}
    return all(
        {column.lower() for column in columns} <= found.get(name.lower(), set())
        for name, columns in wanted.items()
    )


def _candidates(tables: Tables) -> Iterator[tuple[str, str, str, str]]:
    for table, columns in tables.items():
        ratings = [c for c in columns if _RATING.search(c) and _is_number(columns[c])]
        # In a table called `productRatings` with a column `productRating`, the product is another column.
        keys = [c for c in columns if c not in ratings]
        customers = [c for c in keys if _CUSTOMER.search(c)]
        products = [c for c in keys if _PRODUCT.search(c) and c not in customers]
        if ratings and customers and products:
            yield table, customers[0], products[0], ratings[0]


def _ratings_table(tables: Tables) -> tuple[str, str, str, str]:
    """Of the tables that hold customer, product and rating, the one with the fewest columns."""
    found = sorted(_candidates(tables), key=lambda candidate: len(tables[candidate[0]]))
    if not found:
        raise UsageError(
            "--source: no table looks like ratings (one column each for customer, product and a numeric "
            f"rating); found {', '.join(sorted(tables)) or 'no tables'}. Run init without --source and write "
            "the names into shop.toml by hand"
        )
    return found[0]


def _entity(tables: Tables, ratings: str, link: str, role: re.Pattern[str]) -> Table:
    """The table of customers or products: it has the linking column or a plain `id`, and a fitting name."""
    others = {name: columns for name, columns in tables.items() if name != ratings}
    linked = [(name, _spelled(columns, link)) for name, columns in others.items()]
    plain = [(name, _spelled(columns, "id")) for name, columns in others.items()]
    found = [(name, key) for name, key in [*linked, *plain] if key and role.search(name)]
    if not found:
        raise UsageError(
            f"--source: no table goes with the column {link} of {ratings}: expected one named after its role "
            f"that has a column {link} or id; found {', '.join(sorted(others)) or 'no other table'}. "
            "Run init without --source and write the names into shop.toml by hand"
        )
    name, key = found[0]
    columns = {column: kind for column, kind in tables[name].items() if column != key}
    return Table(
        name=name,
        key=key,
        key_type="int" if pa.types.is_integer(tables[name][key]) else "string",
        features=tuple(_feature(c, t) for c, t in columns.items() if _is_modelled(c, t)),
    )


def _spelled(columns: Mapping[str, pa.DataType], wanted: str) -> str | None:
    return next((column for column in columns if column.lower() == wanted.lower()), None)


def _is_modelled(column: str, kind: pa.DataType) -> bool:
    return not _IDENTITY.search(column) and (_is_number(kind) or _is_text(kind))


def _feature(column: str, kind: pa.DataType) -> Feature:
    return Feature(column, kind="number" if _is_number(kind) else "category", event_field=event_name(column))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind))


def _scale(found: tuple[float, float] | None) -> tuple[float, float]:
    if found is None:
        return _SCALES[0]
    low, high = found
    return next(((a, b) for a, b in _SCALES if a <= low and high <= b), (low, high))
