"""The data report of the training files, computed beside them from the same ranges."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.report import ColumnProfile, EntityProfile, Report
from beamrec.schemas.shop import Feature, Shop
from beamrec.transforms.numbers import to_float64
from beamrec.transforms.sketches import CategorySketch, NumberSketch, sampling_levels

__all__ = ["Profile", "ProfileRatings", "merge_profiles", "profile_range", "report_of"]

MAX_RATING_VALUES = 100
UNRATED_SAMPLE = 20

# Profiles that a combiner holds before it merges them: merging costs as much as what has been gathered.
_PENDING = 32
# As many counts of products are 16 MB.
_PENDING_COUNTS = 2_000_000

_Ints = npt.NDArray[np.int64]
_Sketch = NumberSketch | CategorySketch


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """A mergeable summary of some ranges.

    Its size is bounded by the number of products, by `MAX_CATEGORIES` for a customer column, by the number
    of ranges (`edges`: two keys each) and by the root of the number of ratings (`activity`).

    Attributes:
      taken_at: RFC 3339 time of the snapshot.
      ratings: training rows.
      rating: their ratings.
      rating_values: rating → rows; None if there were more than `MAX_RATING_VALUES` different ones.
      customers: valid customers that the ranges account for.
      activity: number of ratings → customers with so many, without those of `edges`.
      edges: customer key → ratings. A customer with very many ratings comes in several ranges, and
        only the first or last customer of a range can be such a one.
      columns: one sketch per customer feature.
      product_ratings: ratings of each row of the products: [num_products] int64.
      products: the products, from the range that accounts for them; None elsewhere, to stay small.
    """

    taken_at: str
    ratings: int
    rating: NumberSketch
    rating_values: Counter[float] | None
    customers: int
    activity: Counter[int]
    edges: Counter[Any]
    columns: tuple[_Sketch, ...]
    product_ratings: _Ints
    products: pa.RecordBatch | None

    def __getstate__(self) -> dict[str, Any]:
        # A runner holds what it shuffles several times, and 625,000 products are 60 MB.
        return {**self.__dict__, "products": _compressed(self.products)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "products": _decompressed(state["products"])})


def profile_range(range_: RatingsRange, shop: Shop) -> Profile:
    """Summarises one validated range; text is read once per customer, not once per rating.

    Raises:
      ValueError: `customer_rows` or `product_rows` is not set (validate first).
    """
    if range_.customer_rows is None or range_.product_rows is None:
        raise ValueError("customer_rows and product_rows of a range are not set: validate before the profile")
    by_customer = np.bincount(range_.customer_rows.to_numpy(), minlength=range_.customers.num_rows)
    rated = np.flatnonzero(by_customer)
    counts = by_customer[rated]
    customers = range_.customers.take(pa.array(rated))
    edges = rated[:1].tolist() + rated[1:][-1:].tolist()
    keys = range_.customers.column(0)
    values = pc.value_counts(range_.ratings.column(2))
    rows_of_value = values.field("counts").to_numpy()
    return Profile(
        taken_at=range_.taken_at,
        ratings=range_.ratings.num_rows,
        rating=NumberSketch.of(values.field("values"), rows_of_value),
        rating_values=_bounded(_floats(values.field("values"), rows_of_value)),
        customers=range_.customers.num_rows if range_.counts_customers else 0,
        activity=_histogram(counts[1:-1]),
        edges=Counter({keys[row].as_py(): int(by_customer[row]) for row in edges}),
        columns=_sketches(
            customers.columns[1:], counts, shop.customers.features, sampling_levels(customers.column(0))
        ),
        product_ratings=np.bincount(range_.product_rows.to_numpy(), minlength=range_.products.num_rows),
        products=range_.products if range_.counts_products else None,
    )


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """The profile of all ranges together; their order and grouping change nothing.

    Args:
      profiles: at least one, of the same shop and source.

    Raises:
      ValueError: they refer to different products.
    """
    if len({len(each.product_ratings) for each in profiles}) != 1:
        sizes = sorted({len(each.product_ratings) for each in profiles})
        raise ValueError(f"expected ranges with the same products, got some with {sizes} of them")
    values = [each.rating_values for each in profiles]
    return Profile(
        taken_at=max(each.taken_at for each in profiles),
        ratings=sum(each.ratings for each in profiles),
        rating=NumberSketch.merge([each.rating for each in profiles]),
        rating_values=None if None in values else _bounded(_sum(value for value in values if value)),
        customers=sum(each.customers for each in profiles),
        activity=_sum(each.activity for each in profiles),
        edges=_sum(each.edges for each in profiles),
        columns=tuple(
            _merge_sketches(sketches) for sketches in zip(*(p.columns for p in profiles), strict=True)
        ),
        product_ratings=np.sum([each.product_ratings for each in profiles], axis=0),
        products=next((each.products for each in profiles if each.products is not None), None),
    )


def report_of(profile: Profile | None, shop: Shop) -> Report:
    """The report of all ranges; None stands for no range at all.

    Raises:
      ValueError: none of the ranges accounted for the products.
    """
    if profile is None:
        nobody = np.empty(0, np.int64)
        customers = _entity(shop.customers.name, 0, nobody)
        return Report(shop.name, "", 0, (), customers, _entity(shop.products.name, 0, nobody), ())
    if profile.products is None:
        raise ValueError("expected one range with counts_products, found none: the report needs the products")
    activity = profile.activity + Counter(profile.edges.values())
    by_customer = np.repeat(list(activity), list(activity.values())).astype(np.int64)
    keys = profile.products.column(0).filter(pa.array(profile.product_ratings == 0))
    unrated = keys.take(pc.sort_indices(keys)).slice(0, UNRATED_SAMPLE).to_pylist()
    products = _entity(shop.products.name, profile.products.num_rows, profile.product_ratings)
    return Report(
        shop=shop.name,
        taken_at=profile.taken_at,
        ratings=profile.ratings,
        rating_histogram=tuple(sorted((profile.rating_values or {}).items())),
        customers=_entity(shop.customers.name, profile.customers, by_customer),
        products=dataclasses.replace(products, unrated_sample=tuple(unrated)),
        columns=_columns(profile, profile.products, shop),
    )


@dataclasses.dataclass(eq=False)
class ProfileRatings(beam.PTransform):  # type: ignore[misc]
    """Validated `RatingsRange`s → exactly one `Report`, also of no range."""

    shop: Shop

    def expand(self, ranges: Any) -> Any:
        return (
            ranges
            | "Profile" >> beam.Map(profile_range, self.shop)
            | "Merge" >> beam.CombineGlobally(_Merge(self.shop)).with_output_types(Report)
        )


class _Merge(beam.CombineFn):  # type: ignore[misc]
    """Accumulators are lists of profiles that have not been merged yet."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def create_accumulator(self) -> list[Profile]:
        return []

    def add_input(self, pending: list[Profile], profile: Profile) -> list[Profile]:
        pending.append(profile)
        held = len(pending) * len(profile.product_ratings)
        return self.compact(pending) if len(pending) == _PENDING or held > _PENDING_COUNTS else pending

    def merge_accumulators(self, accumulators: Iterable[list[Profile]]) -> list[Profile]:
        merged: list[Profile] = []
        for pending in accumulators:
            merged = self.compact([*merged, *pending])
        return merged

    def compact(self, pending: list[Profile]) -> list[Profile]:
        return [merge_profiles(pending)] if len(pending) > 1 else pending

    def extract_output(self, pending: list[Profile]) -> Report:
        return report_of(merge_profiles(pending) if pending else None, self._shop)


def _compressed(batch: pa.RecordBatch | None) -> bytes | None:
    if batch is None:
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _decompressed(data: bytes | None) -> pa.RecordBatch | None:
    if data is None:
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def _is_number(feature: Feature, type_: pa.DataType) -> bool:
    numeric = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    return numeric and feature.kind in ("number", "none")


def _sketches(
    columns: Iterable[pa.Array], weights: _Ints, features: Sequence[Feature], levels: _Ints | None = None
) -> tuple[_Sketch, ...]:
    """One sketch per feature, of its column."""
    return tuple(
        NumberSketch.of(values, weights)
        if _is_number(feature, values.type)
        else CategorySketch.of(values, weights, levels)
        for feature, values in zip(features, columns, strict=True)
    )


def _merge_sketches(sketches: Sequence[Any]) -> _Sketch:
    merged: _Sketch = type(sketches[0]).merge(sketches)
    return merged


def _histogram(counts: _Ints) -> Counter[int]:
    """Number of ratings → how many have so many."""
    numbers = pc.value_counts(pa.array(counts))
    return Counter(dict(zip(numbers.field(0).to_pylist(), numbers.field(1).to_pylist(), strict=True)))


def _floats(values: pa.Array, counts: npt.NDArray[np.int64]) -> Counter[float]:
    numbers = to_float64(values).to_pylist()
    found: Counter[float] = Counter()
    for number, count in zip(numbers, counts.tolist(), strict=True):
        found[number] += count
    return found


def _bounded(values: Counter[float]) -> Counter[float] | None:
    return values if len(values) <= MAX_RATING_VALUES else None


def _sum(counters: Iterable[Counter[Any]]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _entity(table: str, total: int, ratings: _Ints) -> EntityProfile:
    """How ratings are spread.

    Args:
      table: its name.
      total: valid rows of it.
      ratings: [num_rows] in any order; zeros are left out.
    """
    ascending = np.sort(ratings[ratings > 0])
    rated = len(ascending)
    if not rated:
        return EntityProfile(table, total, 0, most=0, median=0, gini=0.0, curve=())
    return EntityProfile(
        table=table,
        total=total,
        rated=rated,
        most=int(ascending[-1]),
        median=int(ascending[(rated - 1) // 2]),
        gini=_gini(ascending),
        curve=_curve(ascending),
    )


def _gini(ascending: _Ints) -> float:
    """Gini coefficient by ranks: sum of (2 i - n - 1) x_i over n sum of x_i; integers until the division."""
    number = len(ascending)
    ranks = 2 * np.arange(1, number + 1) - number - 1
    return int(np.dot(ranks, ascending)) / (number * int(ascending.sum()))


def _curve(ascending: _Ints) -> tuple[float, ...]:
    held = np.cumsum(np.append(0, ascending[::-1]))
    places = np.linspace(0, len(ascending), 101)[1:]
    shares = np.interp(places, np.arange(len(held)), held) / held[-1]
    return tuple(shares.tolist())


def _columns(profile: Profile, products: pa.RecordBatch, shop: Shop) -> tuple[ColumnProfile, ...]:
    """The training columns in file order."""
    rated = np.flatnonzero(profile.product_ratings)
    weights = profile.product_ratings[rated]
    # One column at a time: a copy of all is larger than anything else that a run holds.
    columns = (column.take(pa.array(rated)) for column in products.columns)
    key = CategorySketch.of(next(columns), weights)
    of_products = _sketches(columns, weights, shop.products.features)
    tables = (
        (shop.customers.name, shop.customers.columns, profile.columns),
        (shop.products.name, (shop.products.key, *shop.products.columns), (key, *of_products)),
        (shop.ratings.name, (shop.ratings.rating,), (profile.rating,)),
    )
    return tuple(
        _column(table, name, profile.ratings, sketch)
        for table, names, sketches in tables
        for name, sketch in zip(names, sketches, strict=True)
    )


def _column(table: str, name: str, rows: int, sketch: _Sketch) -> ColumnProfile:
    return ColumnProfile(
        table=table,
        name=name,
        rows=rows,
        nulls=sketch.nulls,
        empty=sketch.empty if isinstance(sketch, CategorySketch) else 0,
        not_finite=sketch.not_finite if isinstance(sketch, NumberSketch) else 0,
        distribution=sketch.distribution(),
    )
