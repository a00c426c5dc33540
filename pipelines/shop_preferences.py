"""What the customers of a made-up shop like: planted, so that a model can be measured against the truth.

A customer's liking of a product has a part that shows in features (country and credit limit against line,
scale and price) and one that does not (a taste against the product's theme): the first can be learnt for
a customer who has rated nothing, the second from ratings alone. Popularity has a long tail, and some of
what is rated is not chosen by liking at all.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Preferences", "grouped", "plant_preferences"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CREDIT_BANDS = 4
_TASTES, _THEMES = 12, 24
_HIDDEN = 0.7  # share of the likings' deviation that no feature shows
_CHOOSINESS = 1.8
_WITHOUT_LIKING = 0.1  # share of the ratings of what others buy: presents, whims
_MEAN, _BY_LIKING, _OF_CUSTOMER, _OF_PRODUCT, _NOISE = 2.8, 0.8, 0.3, 0.35, 0.55
_LIKED_FROM = 3.5  # a score that rounds to 4, above the middle of the scale


@dataclasses.dataclass(frozen=True)
class Preferences:
    """The truth about a made-up shop.

    Attributes:
      visible, hidden: likings by segment [segments, products] and by taste [tastes, products], each of
        deviation about 1 before they are weighted.
      segment, taste: of each customer, int64 [customers].
      popularity: of each product, sums to 1, float64 [products].
      customer_bias, product_bias: what a rating is higher by, in stars.
    """

    segment: Ints
    taste: Ints
    visible: Floats
    hidden: Floats
    popularity: Floats
    customer_bias: Floats
    product_bias: Floats

    @property
    def group(self) -> Ints:
        """Customers of one group like and choose alike: one for each segment and taste, int64 [customers]."""
        return self.segment * _TASTES + self.taste

    def liking(self, group: int) -> Floats:
        """Of every product, mean about 0 and deviation about 1: [products]."""
        segment, taste = divmod(group, _TASTES)
        shown = float((1 - _HIDDEN**2) ** 0.5)
        liking: Floats = shown * self.visible[segment] + _HIDDEN * self.hidden[taste]
        return liking

    def chances(self, group: int) -> Floats:
        """Of being the next product that a customer rates: [products], sums to 1."""
        by_liking = self.popularity * np.exp(_CHOOSINESS * self.liking(group))
        chances: Floats = (1 - _WITHOUT_LIKING) * by_liking / by_liking.sum()
        return chances + _WITHOUT_LIKING * self.popularity

    def scores(self, customer: Ints, product: Ints, random: np.random.Generator) -> Floats:
        """Ratings in stars before they are rounded, of some pairs: [pairs]."""
        liking = np.empty(len(customer))
        for group, rows in grouped(self.group[customer]):
            liking[rows] = self.liking(group)[product[rows]]
        biases = self.customer_bias[customer] + self.product_bias[product]
        scores: Floats = _MEAN + _BY_LIKING * liking + biases + _NOISE * random.standard_normal(len(customer))
        return scores

    def expected_likes(self, customers: Ints) -> Floats:
        """What an oracle ranks by: the chance to be rated next, and then 4 or 5; [customers, products]."""
        groups = self.group[customers]
        gains = np.empty((len(customers), len(self.popularity)))
        for group, rows in grouped(groups):
            means = _MEAN + _BY_LIKING * self.liking(group) + self.product_bias
            above = (means + self.customer_bias[customers[rows], None] - _LIKED_FROM) / _NOISE
            gains[rows] = self.chances(group) * _normal_share(above)
        return gains


def plant_preferences(
    customers: pa.RecordBatch, products: pa.RecordBatch, random: np.random.Generator
) -> Preferences:
    """Draws what everybody likes.

    Trailing blanks do not make another country: `Norway` and `Norway  ` like the same.
    """
    segment, visible = _visible(customers, products, random)
    theme = random.integers(0, _THEMES, products.num_rows)
    popularity = 1 / (5 + random.permutation(products.num_rows))  # Zipf, with a flattened head
    return Preferences(
        segment=segment,
        taste=random.integers(0, _TASTES, customers.num_rows),
        visible=visible,
        hidden=random.standard_normal((_TASTES, _THEMES))[:, theme],
        popularity=popularity / popularity.sum(),
        customer_bias=_OF_CUSTOMER * random.standard_normal(customers.num_rows),
        product_bias=_OF_PRODUCT * random.standard_normal(products.num_rows),
    )


def grouped(groups: Ints) -> Iterator[tuple[int, Ints]]:
    """Every group that occurs, with the rows that are of it."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(groups) else order
    for start, rows in zip(starts, np.split(order, starts[1:]), strict=True):
        yield int(ordered[start]), rows


def _visible(
    customers: pa.RecordBatch, products: pa.RecordBatch, random: np.random.Generator
) -> tuple[Ints, Floats]:
    """Each customer's segment, and what segments like by features: [segments, products]."""
    countries = pc.utf8_rtrim_whitespace(customers.column("country")).dictionary_encode()
    country = countries.indices.to_numpy().astype(np.int64)
    credit = pc.cast(customers.column("creditLimit"), pa.float64()).to_numpy()
    edges = np.quantile(credit, np.linspace(0, 1, _CREDIT_BANDS + 1)[1:-1])
    line = products.column("productLine").dictionary_encode()
    scale = products.column("productScale").dictionary_encode()
    price = np.log(pc.cast(products.column("MSRP"), pa.float64()).to_numpy())
    price = (price - price.mean()) / max(price.std(), 1e-9)
    of_line = 0.85 * random.standard_normal((len(countries.dictionary), len(line.dictionary)))
    of_scale = 0.25 * random.standard_normal((_CREDIT_BANDS, len(scale.dictionary)))
    taste = np.linspace(-0.6, 0.6, _CREDIT_BANDS)[:, None] * price  # the more credit, the dearer
    by_country = of_line[:, line.indices.to_numpy()]
    by_band = of_scale[:, scale.indices.to_numpy()] + taste
    visible = (by_country[:, None, :] + by_band[None, :, :]).reshape(-1, products.num_rows)
    return country * _CREDIT_BANDS + np.searchsorted(edges, credit), visible


def _normal_share(values: Floats) -> Floats:
    """Share of a normal distribution below each value, by a logistic curve: off by 0.01 at most."""
    share: Floats = 1 / (1 + np.exp(-1.702 * values))
    return share
