"""Ratings of a made-up shop: who rates what, and how high."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.pipelines.shop_preferences import Floats, Ints, Preferences, grouped
from beamrec.pipelines.shop_tables import ShopSize

__all__ = ["make_ratings"]

# After so many rounds the popular pairs are used up and the rest is drawn evenly.
_SKEWED_ROUNDS = 8


def make_ratings(
    size: ShopSize,
    customers: pa.RecordBatch,
    products: pa.RecordBatch,
    preferences: Preferences,
    random: np.random.Generator,
) -> pa.RecordBatch:
    """The ratings, ascending by customer and product, with `size.bad` ones among them."""
    dangling = 2 * size.bad // 3
    codes = _pairs(size, preferences, size.ratings + size.bad - dangling, random)
    customer, product = np.divmod(codes, size.products)
    scores = preferences.scores(customer, product, random)
    ratings = pa.RecordBatch.from_pydict(
        {
            "customerNumber": customers.column("customerNumber").take(pa.array(customer)),
            "productCode": products.column("productCode").take(pa.array(product)),
            "productRating": pa.array(np.clip(np.round(scores), 1, 5).astype(np.int32)),
        }
    )
    spoilt = _spoil(ratings, size.bad - dangling, random)
    return pa.concat_batches([spoilt, _dangling(ratings, dangling)]).sort_by(
        [("customerNumber", "ascending"), ("productCode", "ascending")]
    )


def _pairs(size: ShopSize, preferences: Preferences, count: int, random: np.random.Generator) -> Ints:
    """Distinct pairs as customer * products + product, ascending: [count]."""
    activity = random.lognormal(0, 0.5, size.customers)
    found = np.empty(0, np.int64)
    rounds = 0
    while len(found) < count:
        wanted = int(1.3 * (count - len(found))) + 16
        if rounds < _SKEWED_ROUNDS:
            drawn = _draw(wanted, size.products, preferences, activity, random)
        else:
            drawn = random.integers(0, size.customers * size.products, wanted)
        found = _distinct(np.concatenate([found, drawn]))
        rounds += 1
    chosen: Ints = np.sort(random.permutation(found)[:count])
    return chosen


def _distinct(codes: Ints) -> Ints:
    """Distinct values, ascending; NumPy 2.4's hashing `unique` took 18 s for 2 M pairs, sorting under one."""
    ascending = np.sort(codes)
    distinct: Ints = ascending[np.append(True, ascending[1:] != ascending[:-1])]
    return distinct


def _draw(
    wanted: int, products: int, preferences: Preferences, activity: Floats, random: np.random.Generator
) -> Ints:
    """Pairs, possibly repeated: a customer by activity, then a product by what his group chooses."""
    customers = np.sort(_weighted(activity, wanted, random))
    chosen = np.empty(wanted, np.int64)
    for group, rows in grouped(preferences.group[customers]):
        chosen[rows] = _weighted(preferences.chances(group), len(rows), random)
    pairs: Ints = customers * products + chosen
    return pairs


def _weighted(weights: Floats, count: int, random: np.random.Generator) -> Ints:
    ends = np.cumsum(weights)
    drawn = np.searchsorted(ends, random.random(count) * ends[-1], side="right")
    # A draw may round up to the very end.
    inside: Ints = np.minimum(drawn, len(weights) - 1)
    return inside


def _spoil(ratings: pa.RecordBatch, count: int, random: np.random.Generator) -> pa.RecordBatch:
    """Gives some ratings a value outside the scale, or none."""
    values = ratings.column("productRating").to_numpy().copy()
    null = np.zeros(len(values), bool)
    chosen = random.choice(len(values), count, replace=False)
    values[chosen] = np.resize((0, 9, -1, 0), count)
    null[chosen[3::4]] = True
    return ratings.set_column(2, "productRating", pa.array(values, mask=null))


def _dangling(ratings: pa.RecordBatch, count: int) -> pa.RecordBatch:
    """Ratings by customers, and of products, that are in no table; turn by turn."""
    products, customers = ratings.column("productCode"), ratings.column("customerNumber")
    last = pc.max(customers).as_py()
    rows = [
        {"customerNumber": last + 1000 + row, "productCode": products[row].as_py(), "productRating": 3}
        if row % 2
        else {"customerNumber": customers[row].as_py(), "productCode": f"X00_{row}", "productRating": 3}
        for row in range(count)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=ratings.schema)
