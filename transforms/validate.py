"""Ratings, customers and products that keep the Shop's rules, and dead letters for those that break one."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.ranges import EntityTally, MalformedRow, RatingsRange
from beamrec.schemas.shop import Shop, Table
from beamrec.transforms.entities import CheckedTable, check_table
from beamrec.transforms.numbers import to_float64
from beamrec.transforms.rejects import Rejects, canonical_json, drop_repeated, letter_order, shown
from beamrec.transforms.rules import Mask, first_broken, is_empty, true_where, within

__all__ = [
    "DEAD_LETTERS",
    "TALLIES",
    "VALID",
    "ValidateRatings",
    "Validated",
    "check_entities",
    "validate_ratings",
]

VALID = "valid"
DEAD_LETTERS = "dead_letters"
TALLIES = "tallies"


@dataclasses.dataclass(frozen=True)
class Validated:
    """A range after its check.

    Attributes:
      valid: the range with its valid ratings, ascending by customer and product, each with its rows in
        `customers` and `products`; these hold their valid rows, one for each key, ascending by key.
      dead_letters: for each table that has some, its dead letters, ascending by payload.
      tallies: one for each of customers and products that the range accounts for.
    """

    valid: RatingsRange
    dead_letters: tuple[list[DeadLetter], ...]
    tallies: tuple[EntityTally, ...]


def validate_ratings(
    range_: RatingsRange, shop: Shop, system: str, products: CheckedTable | None = None
) -> Validated:
    """Splits a range into rows that keep every rule and dead letters, one for each row that does not.

    A rating is reported for the first rule it breaks: `null_key`, `empty_key` (a partition has no name
    then), `invalid_customer` (its row is a dead letter) or `unknown_customer` (there is none),
    `invalid_product` or `unknown_product`, `null_rating`, `rating_out_of_range`, `duplicate_key`. Of
    ratings with one key the lowest stays, whatever order the server sends them in. `check_table` says the
    rules of customers and products. Rows that fit no batch, of any table, are `bad_type`.

    Args:
      range_: ratings with the customers and products that they may refer to.
      shop: column names and rules.
      system: URI scheme of the source, for the dead letters.
      products: the range's products after `check_entities`, if they are known already.

    Raises:
      UsageError: a rule of the shop does not go with the type of its column.
    """
    customers = check_entities(range_, range_.customers, shop.customers, system)
    products = products or check_entities(range_, range_.products, shop.products, system)
    valid, letters = _check_ratings(range_, shop, system, customers, products)
    counted = [(shop.customers, customers)] if range_.counts_customers else []
    counted += [(shop.products, products)] if range_.counts_products else []
    lists = [letters, *(list(checked.letters) for _, checked in counted)]
    return Validated(
        valid,
        dead_letters=tuple(each for each in lists if each),
        tallies=tuple(EntityTally(table.name, checked.rows.num_rows) for table, checked in counted),
    )


def check_entities(range_: RatingsRange, batch: pa.RecordBatch, table: Table, system: str) -> CheckedTable:
    """`check_table` on the customers or products of a range, with those that fit no batch."""
    rejects = Rejects(system, table.name, (table.key,), range_.taken_at)
    return check_table(batch, table, _malformed(range_, table.name), rejects)


@dataclasses.dataclass(eq=False)
class ValidateRatings(beam.PTransform):  # type: ignore[misc]
    """`validate_ratings` on `RatingsRange`s.

    Outputs VALID (ranges), DEAD_LETTERS (lists of them, each of one table) and TALLIES (`EntityTally`s).
    """

    shop: Shop
    system: str

    def expand(self, ranges: Any) -> Any:
        outputs = beam.ParDo(_Validate(self.shop, self.system)).with_output_types(RatingsRange)
        return ranges | "Validate" >> outputs.with_outputs(DEAD_LETTERS, TALLIES, main=VALID)


class _Validate(beam.DoFn):  # type: ignore[misc]
    """Checks the products, which all ranges share, once."""

    def __init__(self, shop: Shop, system: str) -> None:
        self._shop = shop
        self._system = system
        self._known: tuple[pa.RecordBatch, list[MalformedRow], CheckedTable] | None = None

    def process(self, range_: RatingsRange) -> Iterator[Any]:
        validated = validate_ratings(range_, self._shop, self._system, self._products(range_))
        yield validated.valid
        for letters in validated.dead_letters:
            yield beam.pvalue.TaggedOutput(DEAD_LETTERS, letters)
        for tally in validated.tallies:
            yield beam.pvalue.TaggedOutput(TALLIES, tally)

    def _products(self, range_: RatingsRange) -> CheckedTable:
        malformed = _malformed(range_, self._shop.products.name)
        if self._known is None or self._known[0] is not range_.products or self._known[1] != malformed:
            checked = check_entities(range_, range_.products, self._shop.products, self._system)
            # Holding the batch keeps its identity from becoming that of another.
            self._known = (range_.products, malformed, checked)
        return self._known[2]


def _malformed(range_: RatingsRange, table: str) -> list[MalformedRow]:
    return [row for row in range_.malformed if row.table == table]


def _check_ratings(
    range_: RatingsRange, shop: Shop, system: str, customers: CheckedTable, products: CheckedTable
) -> tuple[RatingsRange, list[DeadLetter]]:
    """The range with what is valid, and the dead letters of its ratings, ascending by payload."""
    ratings, names = range_.ratings, shop.ratings
    rows = _Rows.find(ratings, customers, products)
    sound = rows.known & _on_scale(ratings.column(2), shop)
    broken = [] if sound.all() else _broken(ratings.filter(pa.array(~sound)), shop, customers, products)
    kept, repeated = _ordered(ratings, rows, np.flatnonzero(sound))
    broken += [("duplicate_key", row) for row in repeated]
    rejects = Rejects(
        system, shop.ratings.name, (shop.ratings.customer, shop.ratings.product), range_.taken_at
    )
    letters = [rejects.letter(rule, _message(rule, row, shop), row) for rule, row in broken]
    letters += [rejects.malformed(row) for row in _malformed(range_, names.name)]
    valid = dataclasses.replace(
        range_,
        # Nearly always the server sends them in order and all are valid; then nothing is copied.
        ratings=ratings if kept is None else ratings.take(pa.array(kept)),
        customers=customers.rows,
        products=products.rows,
        malformed=(),
        customer_rows=pa.array(rows.customers if kept is None else rows.customers[kept]),
        product_rows=pa.array(rows.products if kept is None else rows.products[kept]),
    )
    return valid, sorted(letters, key=letter_order)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Where each rating's customer and product stand in their tables; -1 where they do not."""

    customers: npt.NDArray[np.int32]
    products: npt.NDArray[np.int32]

    @classmethod
    def find(cls, ratings: pa.RecordBatch, customers: CheckedTable, products: CheckedTable) -> "_Rows":
        found = (customers.index.rows(ratings.column(0)), products.index.rows(ratings.column(1)))
        return cls(*(pc.fill_null(rows, -1).to_numpy() for rows in found))

    @property
    def known(self) -> Mask:
        mask: Mask = (self.customers >= 0) & (self.products >= 0)
        return mask

    def keys(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """One number for each chosen rating, ascending as customer and product are."""
        return self.customers[chosen].astype(np.int64) << 32 | self.products[chosen]


def _ordered(
    ratings: pa.RecordBatch, rows: _Rows, sound: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64] | None, list[dict[str, Any]]]:
    """Of the sound ratings those that stay, ascending by key, and those whose key another one has.

    None stands for all ratings as they are.
    """
    keys = rows.keys(sound)
    if (keys[1:] > keys[:-1]).all():
        return None if len(sound) == ratings.num_rows else sound, []
    order = np.argsort(keys)
    sound, keys = sound[order], keys[order]
    repeated = keys[1:] == keys[:-1]
    if not repeated.any():
        return sound, []
    stays, dropped = drop_repeated(ratings.take(pa.array(sound)), repeated, _lowest(ratings.schema.names[2]))
    return sound[stays], dropped


def _lowest(rating: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: (row[rating], canonical_json(row))


def _broken(
    ratings: pa.RecordBatch, shop: Shop, customers: CheckedTable, products: CheckedTable
) -> list[tuple[str, dict[str, Any]]]:
    """The first rule that each of some ratings breaks, each of which breaks some, and the row."""
    customer, product, rating = ratings.columns[:3]
    rows = _Rows.find(ratings, customers, products)
    rules = {
        "null_key": true_where(pc.or_(pc.is_null(customer), pc.is_null(product))),
        "empty_key": is_empty(customer),
        "invalid_customer": (rows.customers < 0) & _among(customer, customers.rejected),
        "unknown_customer": rows.customers < 0,
        "invalid_product": (rows.products < 0) & _among(product, products.rejected),
        "unknown_product": rows.products < 0,
        "null_rating": true_where(pc.is_null(rating)),
        "rating_out_of_range": ~_on_scale(rating, shop),
    }
    names = list(rules)
    first = first_broken(list(rules.values()), ratings.num_rows)
    return [(names[rule], row) for rule, row in zip(first.tolist(), ratings.to_pylist(), strict=True)]


def _among(values: pa.Array, keys: frozenset[Any]) -> Mask:
    return np.array([value in keys for value in values.to_pylist()] if keys else False, bool)


def _on_scale(rating: pa.Array, shop: Shop) -> Mask:
    return within(to_float64(rating), shop.ratings.min_rating, shop.ratings.max_rating)


def _message(rule: str, row: dict[str, Any], shop: Shop) -> str:
    ratings = shop.ratings
    customer, product = shown(row[ratings.customer]), shown(row[ratings.product])
    if rule in ("null_key", "duplicate_key"):
        expected = f"{ratings.customer} and {ratings.product}"
        expected += " that no other row has" if rule == "duplicate_key" else ""
        return f"expected {expected}, got {customer} and {product}"
    if rule == "empty_key":
        return f"expected {ratings.customer} to name a partition, got an empty string"
    if rule.endswith(("customer", "product")):
        is_customer = rule.endswith("customer")
        table = shop.customers if is_customer else shop.products
        whose = " whose row keeps every rule" if rule.startswith("invalid") else ""
        got = customer if is_customer else product
        return f"expected a {table.key} of table {table.name}{whose}, got {got}"
    scale = f"{ratings.min_rating:g} to {ratings.max_rating:g}"
    return f"expected {ratings.rating} from {scale}, got {shown(row[ratings.rating])}"
