"""A made-up shop with the schema of classicmodels: seeded, at any scale, with a pattern to learn.

What its customers like, and how much of it shows in these tables: `shop_preferences`.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.schemas.errors import UsageError

__all__ = ["COLUMNS", "PRIMARY_KEYS", "ShopSize", "make_customers", "make_products"]

# Declared as in the public dump; ratings may dangle or be NULL, as data from the outside may.
COLUMNS: dict[str, dict[str, str]] = {
    "customers": {
        "customerNumber": "int(11) NOT NULL",
        "customerName": "varchar(50) NOT NULL",
        "contactLastName": "varchar(50) NOT NULL",
        "contactFirstName": "varchar(50) NOT NULL",
        "phone": "varchar(50) NOT NULL",
        "addressLine1": "varchar(50) NOT NULL",
        "addressLine2": "varchar(50)",
        "city": "varchar(50) NOT NULL",
        "state": "varchar(50)",
        "postalCode": "varchar(15)",
        "country": "varchar(50) NOT NULL",
        "salesRepEmployeeNumber": "int(11)",
        "creditLimit": "decimal(10,2)",
    },
    "products": {
        "productCode": "varchar(15) NOT NULL",
        "productName": "varchar(70) NOT NULL",
        "productLine": "varchar(50) NOT NULL",
        "productScale": "varchar(10) NOT NULL",
        "productVendor": "varchar(50) NOT NULL",
        "productDescription": "text NOT NULL",
        "quantityInStock": "smallint(6) NOT NULL",
        "buyPrice": "decimal(10,2) NOT NULL",
        "MSRP": "decimal(10,2) NOT NULL",
    },
    "ratings": {
        "customerNumber": "int(11) NOT NULL",
        "productCode": "varchar(15) NOT NULL",
        "productRating": "int(11)",
    },
}
PRIMARY_KEYS = {
    "customers": ("customerNumber",),
    "products": ("productCode",),
    "ratings": ("customerNumber", "productCode"),
}

_MONEY = pa.decimal128(10, 2)
_PLACES = (  # city, state, postal code pattern, country, weight
    ("NYC", "NY", "10", "USA", 14),
    ("San Francisco", "CA", "94", "USA", 9),
    ("Boston", "MA", "51", "USA", 5),
    ("Philadelphia", "PA", "71", "USA", 4),
    ("Paris", None, "75", "France", 8),
    ("Nantes", None, "44", "France", 5),
    ("Lyon", None, "69", "France", 3),
    ("Madrid", None, "28", "Spain", 7),
    ("Frankfurt", None, "60", "Germany", 6),
    ("Köln", None, "50", "Germany", 4),
    ("London", None, "WX1 ", "UK", 5),
    ("Melbourne", "Victoria", "30", "Australia", 5),
    ("Glen Waverly", "Victoria", "31", "Australia", 2),
    ("Auckland", None, "10", "New Zealand", 4),
    ("Milan", None, "20", "Italy", 4),
    ("Singapore", None, "07", "Singapore", 4),
    ("Stavern", None, "41", "Norway", 3),
    ("Oslo", None, "N 01", "Norway  ", 2),  # trailing blanks, as in the real data
    ("Luleå", None, "S-95", "Sweden", 2),
    ("Tokyo", "Tokyo", "106-", "Japan", 4),
)
_LINES = (  # product line, weight, typical price
    ("Classic Cars", 38, 118.0),
    ("Vintage Cars", 24, 87.0),
    ("Motorcycles", 13, 97.0),
    ("Planes", 12, 89.0),
    ("Trucks and Buses", 11, 103.0),
    ("Ships", 9, 86.0),
    ("Trains", 3, 73.0),
)
_SCALES = (10, 12, 18, 24, 32, 50, 72, 700)
_SCALE_WEIGHTS = (6, 8, 42, 27, 8, 5, 4, 10)
_NAMES = (
    "Atelier",
    "Signal",
    "La Rochelle",
    "Baane",
    "Mini",
    "Blauer See",
    "Euro",
    "Volvo",
    "Danish",
    "Toys",
)
_TRADES = ("Gifts", "Imports", "Collectors", "Replicas", "Wholesale", "Auto", "Classics", "Distributors")
_FIRST = ("Carine", "Jean", "Peter", "Janine ", "Jonas ", "Susan", "Zbyszek ", "Roland", "Julie", "Kwai")
_LAST = (
    "Schmitt",
    "King",
    "Ferguson",
    "Labrune",
    "Bergulfsen",
    "Nelson",
    "Keitel",
    "Murphy",
    "Lee",
    "Freyre",
)
_MAKERS = ("Harley Davidson", "Alpine Renault", "Moto Guzzi", "Aston Martin", "Ford", "Ferrari", "Boeing")
_VENDORS = ("Min Lin Diecast", "Classic Metal Creations", "Highway 66 Mini Classics", "Red Start Diecast")


@dataclasses.dataclass(frozen=True)
class ShopSize:
    """How large a shop is made and how much of it is bad.

    Attributes:
      customers, products: rows of the tables.
      ratings: valid ratings; at most half of all customer–product pairs.
      bad: ratings beyond these that break a rule: outside the scale or NULL, or of a customer or a
        product that is not there.
      seed: the same seed and sizes give the same shop.
    """

    customers: int = 120
    products: int = 110
    ratings: int = 2_500
    bad: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        for name, least in (("customers", 1), ("products", 1), ("ratings", 1), ("bad", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}: expected at least {least}, got {getattr(self, name)}")
        possible = self.customers * self.products // 2
        if self.ratings + self.bad > possible:
            raise UsageError(
                f"--ratings: {self.customers} customers and {self.products} products give at most {possible} "
                f"ratings (half of all pairs), got {self.ratings} and {self.bad} bad ones"
            )


def make_customers(size: ShopSize, random: np.random.Generator) -> pa.RecordBatch:
    """The customers, ascending by number; a few have no or an empty postal code, most have no state."""
    count = size.customers
    places = _pick(random, [place[4] for place in _PLACES], count)
    suffixes = random.integers(100, 1000, count)
    postal = [f"{_PLACES[p][2]}{s}" for p, s in zip(places, suffixes, strict=True)]
    draws = random.random(count)
    names = random.integers(0, 80, count)
    return pa.RecordBatch.from_pydict(
        {
            # Numbers with gaps, as in the real data: an event may name a customer that is not there.
            "customerNumber": pa.array(103 + 3 * np.arange(count), pa.int32()),
            "customerName": [f"{_NAMES[n % 10]} {_TRADES[n // 10]} {i}" for i, n in enumerate(names)],
            "contactLastName": _choose(random, _LAST, count),
            "contactFirstName": _choose(random, _FIRST, count),
            "phone": [f"+{n}" for n in random.integers(10**9, 10**10, count)],
            "addressLine1": [f"{n} Main Street" for n in random.integers(1, 999, count)],
            "addressLine2": _sometimes("Level 3", random.random(count) < 0.2),
            "city": [_PLACES[p][0] for p in places],
            "state": pa.array([_PLACES[p][1] for p in places], pa.string()),
            "postalCode": pa.array(
                [None if d < 0.05 else "" if d < 0.07 else p for d, p in zip(draws, postal, strict=True)],
                pa.string(),
            ),
            "country": [_PLACES[p][3] for p in places],
            "salesRepEmployeeNumber": pa.array(
                random.integers(1165, 1703, count), pa.int32(), mask=random.random(count) < 0.15
            ),
            "creditLimit": _money(100.0 * np.round(np.minimum(random.lognormal(6.5, 0.6, count), 2_500))),
        }
    )


def make_products(size: ShopSize, random: np.random.Generator) -> pa.RecordBatch:
    """The products, ascending by code."""
    count = size.products
    lines = _pick(random, [line[1] for line in _LINES], count)
    scales = [_SCALES[s] for s in _pick(random, _SCALE_WEIGHTS, count)]
    numbers = 1000 + random.choice(max(9000, 4 * count), count, replace=False)
    prices = np.array([_LINES[line][2] for line in lines]) * random.lognormal(0, 0.35, count)
    makers = random.integers(0, len(_MAKERS), count)
    years = random.integers(1903, 2005, count)
    batch = pa.RecordBatch.from_pydict(
        {
            "productCode": [f"S{s}_{n}" for s, n in zip(scales, numbers, strict=True)],
            "productName": [f"{y} {_MAKERS[m]} {n}" for y, m, n in zip(years, makers, numbers, strict=True)],
            "productLine": [_LINES[line][0] for line in lines],
            "productScale": [f"1:{scale}" for scale in scales],
            "productVendor": _choose(random, _VENDORS, count),
            "productDescription": ["A precise replica; turnable wheels; detailed interior."] * count,
            "quantityInStock": pa.array(random.integers(0, 10_000, count), pa.int16()),
            "buyPrice": _money(prices * random.uniform(0.4, 0.7, count)),
            "MSRP": _money(prices),
        }
    )
    return batch.sort_by("productCode")


def _pick(random: np.random.Generator, weights: "list[int] | tuple[int, ...]", count: int) -> list[int]:
    probabilities = np.array(weights) / np.sum(weights)
    chosen: list[int] = random.choice(len(probabilities), count, p=probabilities).tolist()
    return chosen


def _choose(random: np.random.Generator, values: tuple[str, ...], count: int) -> list[str]:
    return [values[i] for i in random.integers(0, len(values), count)]


def _sometimes(value: str, mask: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.array([value if present else None for present in mask], pa.string())


def _money(amounts: npt.NDArray[np.floating[Any]]) -> pa.Array:
    """Amounts as decimal(10,2), rounded to cents; non-negative, below 2^63 cents."""
    cents = np.zeros((len(amounts), 2), np.int64)  # low and high word of each 128-bit integer
    cents[:, 0] = np.round(amounts * 100)
    return pa.Array.from_buffers(_MONEY, len(amounts), [None, pa.py_buffer(cents)])
