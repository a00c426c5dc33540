"""Ratings of a made-up shop: who rates what, and how high."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.pipelines.shop_tables import ShopSize

__all__ = ["make_ratings"]

_CREDIT_BANDS = 4
# After so many rounds the popular pairs are used up and the rest is drawn evenly.
_SKEWED_ROUNDS = 8

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


def make_ratings(
    size: ShopSize, customers: pa.RecordBatch, products: pa.RecordBatch, random: np.random.Generator
) -> pa.RecordBatch:
    """The ratings, ascending by customer and product, with `size.bad` ones among them.

    What a customer rates and how high depends on country and credit limit (customer), line, scale and
    price (product), on a taste of his own and the product's quality, and on chance.
    """
    segments, liking = _segments(customers, products, random)
    dangling = 2 * size.bad // 3
    codes = _pairs(size, segments, liking, size.ratings + size.bad - dangling, random)
    customer, product = np.divmod(codes, size.products)
    score = 3.1 + 0.75 * liking[segments[customer], product]
    score += 0.3 * random.standard_normal(size.customers)[customer]
    score += 0.35 * random.standard_normal(size.products)[product]
    score += 0.55 * random.standard_normal(len(codes))
    ratings = pa.RecordBatch.from_pydict(
        {
            "customerNumber": customers.column("customerNumber").take(pa.array(customer)),
            "productCode": products.column("productCode").take(pa.array(product)),
            "productRating": pa.array(np.clip(np.round(score), 1, 5).astype(np.int32)),
        }
    )
    spoilt = _spoil(ratings, size.bad - dangling, random)
    return pa.concat_batches([spoilt, _dangling(ratings, dangling)]).sort_by(
        [("customerNumber", "ascending"), ("productCode", "ascending")]
    )


def _segments(
    customers: pa.RecordBatch, products: pa.RecordBatch, random: np.random.Generator
) -> tuple[_Ints, _Floats]:
    """Each customer's segment, and liking: [num_segments, num_products], mean about 0, deviation about 1.

    Trailing blanks do not make another country: `Norway` and `Norway  ` like the same.
    """
    countries = pc.utf8_rtrim_whitespace(customers.column("country")).dictionary_encode()
    country = countries.indices.to_numpy()
    credit = pc.cast(customers.column("creditLimit"), pa.float64()).to_numpy()
    edges = np.quantile(credit, np.linspace(0, 1, _CREDIT_BANDS + 1)[1:-1])
    band = np.searchsorted(edges, credit)
    line = products.column("productLine").dictionary_encode()
    scale = products.column("productScale").dictionary_encode()
    price = np.log(pc.cast(products.column("MSRP"), pa.float64()).to_numpy())
    price = (price - price.mean()) / max(price.std(), 1e-9)
    of_line = random.standard_normal((len(countries.dictionary), len(line.dictionary)))
    of_scale = random.standard_normal((_CREDIT_BANDS, len(scale.dictionary)))
    taste = np.linspace(-1, 1, _CREDIT_BANDS)[:, None] * price  # the more credit, the dearer
    by_country = of_line[:, line.indices.to_numpy()]
    by_band = 0.3 * of_scale[:, scale.indices.to_numpy()] + 0.6 * taste
    liking = (by_country[:, None, :] + by_band[None, :, :]).reshape(-1, products.num_rows)
    return country * _CREDIT_BANDS + band, liking


def _pairs(
    size: ShopSize, segments: _Ints, liking: _Floats, count: int, random: np.random.Generator
) -> _Ints:
    """Distinct pairs as customer * products + product, ascending: [count]."""
    activity = random.lognormal(0, 0.5, size.customers)
    popularity = 1 / (5 + random.permutation(size.products))  # Zipf, with a flattened head
    chances = popularity * np.exp(0.6 * liking)
    found = np.empty(0, np.int64)
    rounds = 0
    while len(found) < count:
        wanted = int(1.3 * (count - len(found))) + 16
        if rounds < _SKEWED_ROUNDS:
            drawn = _draw(wanted, segments, chances, activity, random)
        else:
            drawn = random.integers(0, size.customers * size.products, wanted)
        found = _distinct(np.concatenate([found, drawn]))
        rounds += 1
    chosen: _Ints = np.sort(random.permutation(found)[:count])
    return chosen


def _distinct(codes: _Ints) -> _Ints:
    """Distinct values, ascending; NumPy 2.4's hashing `unique` took 18 s for 2 M pairs, sorting under one."""
    ascending = np.sort(codes)
    distinct: _Ints = ascending[np.append(True, ascending[1:] != ascending[:-1])]
    return distinct


def _draw(
    wanted: int, segments: _Ints, chances: _Floats, activity: _Floats, random: np.random.Generator
) -> _Ints:
    """Pairs, possibly repeated: a customer by activity, then a product by the liking of his segment."""
    customers = np.sort(_weighted(activity, wanted, random))
    of_segment = segments[customers]
    products = np.empty(wanted, np.int64)
    for segment in np.flatnonzero(np.bincount(of_segment)):
        mine = of_segment == segment
        products[mine] = _weighted(chances[segment], int(mine.sum()), random)
    pairs: _Ints = customers * chances.shape[1] + products
    return pairs


def _weighted(weights: _Floats, count: int, random: np.random.Generator) -> _Ints:
    ends = np.cumsum(weights)
    drawn = np.searchsorted(ends, random.random(count) * ends[-1], side="right")
    # A draw may round up to the very end.
    inside: _Ints = np.minimum(drawn, len(weights) - 1)
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
