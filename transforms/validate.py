"""Ratings that keep the Shop's rules, and dead letters for those that break one."""

import dataclasses
import datetime as dt
import decimal
import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.shop import Shop
from beamrec.transforms.join import find_rows

__all__ = ["DEAD_LETTERS", "VALID", "ValidateRatings", "canonical_json", "validate_ratings"]

VALID = "valid"
DEAD_LETTERS = "dead_letters"

_STAGE = "validate"
_RULES = (
    "null_key",
    "empty_key",
    "unknown_customer",
    "unknown_product",
    "null_rating",
    "rating_out_of_range",
    "duplicate_key",
)
_Mask = npt.NDArray[np.bool_]


def validate_ratings(range_: RatingsRange, shop: Shop, system: str) -> tuple[RatingsRange, list[DeadLetter]]:
    """Splits a range into ratings that keep every rule and dead letters, one for each that does not.

    A row is reported for the first rule it breaks: `null_key`, `empty_key` (a partition has no name then),
    `unknown_customer`, `unknown_product`, `null_rating`, `rating_out_of_range`, `duplicate_key`. Of rows
    with one key the one with the lowest rating stays, whatever order the server sends them in.

    Args:
      range_: ratings with the customers and products that they may refer to.
      shop: column names and the rating scale.
      system: URI scheme of the source, for the dead letters.

    Returns:
      The range with its valid ratings, ascending by customer and product; and the dead letters, ascending
      by payload.
    """
    ordered, product_codes = _ordered(range_)
    broken = _first_broken_rule(ordered, product_codes, range_, shop)
    letters = [
        DeadLetter(
            stage=_STAGE,
            error_type=_RULES[broken[row]],
            error_message=_message(_RULES[broken[row]], values, shop),
            payload=canonical_json(values),
            source={"system": system, "name": shop.ratings.name, "position": _position(values, shop)},
            first_seen=range_.taken_at,
        )
        for row, values in _rows(ordered, broken >= 0)
    ]
    # Rows of an unknown product are in the server's order until here.
    letters.sort(key=lambda letter: letter.payload)
    return dataclasses.replace(range_, ratings=ordered.filter(pa.array(broken < 0))), letters


@dataclasses.dataclass(eq=False)
class ValidateRatings(beam.PTransform):  # type: ignore[misc]
    """`validate_ratings` on `RatingsRange`s: outputs VALID (ranges) and DEAD_LETTERS (lists of them)."""

    shop: Shop
    system: str

    def expand(self, ranges: Any) -> Any:
        return ranges | "Validate" >> beam.FlatMap(self._outputs).with_outputs(DEAD_LETTERS, main=VALID)

    def _outputs(self, range_: RatingsRange) -> Iterator[Any]:
        valid, letters = validate_ratings(range_, self.shop, self.system)
        yield valid
        if letters:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, letters)


def canonical_json(row: dict[str, Any]) -> bytes:
    """A row as JSON with sorted keys and no spaces; decimals, dates and times as text, bytes as hex."""
    return json.dumps(
        row, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_json_value
    ).encode()


def _json_value(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, dt.date):
        return value.isoformat()
    raise TypeError(f"no canonical JSON for a {type(value).__name__}")


def _message(rule: str, row: dict[str, Any], shop: Shop) -> str:
    ratings, customers, products = shop.ratings, shop.customers, shop.products
    customer, product = row[ratings.customer], row[ratings.product]
    if rule == "null_key":
        return f"expected {ratings.customer} and {ratings.product}, got {customer!r} and {product!r}"
    if rule == "empty_key":
        return f"expected {ratings.customer} to name a partition, got an empty string"
    if rule == "unknown_customer":
        return f"expected a {customers.key} of table {customers.name}, got {customer!r}"
    if rule == "unknown_product":
        return f"expected a {products.key} of table {products.name}, got {product!r}"
    if rule == "duplicate_key":
        return f"expected one row for ({customer!r}, {product!r}), got another"
    scale = f"{ratings.min_rating:g} to {ratings.max_rating:g}"
    return f"expected {ratings.rating} from {scale}, got {row[ratings.rating]}"


def _ordered(range_: RatingsRange) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    """Ratings ascending by customer, product, rating; and for each its row in `products`, -1 if none.

    Products are compared by their place in `products`, which is sorted by key: comparing integers is
    several times faster than comparing text. Unknown products come first and stay in the given order.
    """
    customer, product, rating = range_.ratings.columns
    codes = _find(product, range_.products.column(0))
    keys = pa.table({"customer": customer, "product": codes, "rating": rating})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    return range_.ratings.take(order), codes[order.to_numpy()]


def _find(values: pa.Array, keys: pa.Array) -> npt.NDArray[np.int64]:
    rows: npt.NDArray[np.int64] = pc.fill_null(pc.cast(find_rows(values, keys), pa.int64()), -1).to_numpy()
    return rows


def _first_broken_rule(
    ratings: pa.RecordBatch, product_codes: npt.NDArray[np.int64], range_: RatingsRange, shop: Shop
) -> npt.NDArray[np.int64]:
    """Index into `_RULES` of the first rule that each row breaks; -1 for a valid row."""
    customer, product, rating = ratings.columns
    unknown_customer = _find(customer, range_.customers.column(0)) < 0
    lowest, highest = shop.ratings.min_rating, shop.ratings.max_rating
    values = pc.cast(rating, pa.float64(), safe=False)
    within = pc.and_(pc.greater_equal(values, lowest), pc.less_equal(values, highest))
    masks = [
        _mask(pc.or_(pc.is_null(customer), pc.is_null(product))),
        _mask(pc.equal(customer, "")) if pa.types.is_string(customer.type) else np.zeros(len(customer), bool),
        unknown_customer,
        product_codes < 0,
        _mask(pc.is_null(rating)),
        ~_mask(within),
    ]
    valid_so_far = ~np.logical_or.reduce(masks)
    masks.append(_repeats(customer, product_codes, valid_so_far))
    return np.select(masks, range(len(masks)), default=-1)


def _repeats(customer: pa.Array, product_codes: npt.NDArray[np.int64], valid: _Mask) -> _Mask:
    """Valid rows whose key a valid row before them has; rows are ascending by key."""
    rows = np.flatnonzero(valid)
    keys = customer.take(pa.array(rows))
    repeated = np.zeros(len(valid), bool)
    if len(rows) > 1:
        same_customer = _mask(pc.equal(keys[1:], keys[:-1]))
        repeated[rows[1:]] = same_customer & (product_codes[rows[1:]] == product_codes[rows[:-1]])
    return repeated


def _mask(values: pa.Array) -> _Mask:
    """A Boolean array without NULLs (they become False)."""
    mask: _Mask = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return mask


def _rows(batch: pa.RecordBatch, mask: _Mask) -> Iterator[tuple[int, dict[str, Any]]]:
    chosen = np.flatnonzero(mask)
    return zip(chosen.tolist(), batch.take(pa.array(chosen)).to_pylist(), strict=True)


def _position(row: dict[str, Any], shop: Shop) -> dict[str, Any]:
    return {name: row[name] for name in (shop.ratings.customer, shop.ratings.product)}
