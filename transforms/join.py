"""Ratings joined with the features of their customers and products."""

import dataclasses
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.schemas.key_index import find_rows
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.shop import Shop

__all__ = ["JoinFeatures", "join_features"]


def join_features(range_: RatingsRange, shop: Shop) -> pa.RecordBatch:
    """Inner join of a range's ratings with its customers and products, on the keys' bytes.

    Returns:
      One row per rating, in the ratings' order: the partition column, then the training columns in the
      order of the files. Keys have the type of the table that they are the key of.

    Raises:
      ValueError: a rating refers to a customer or product that is not there (validate first).
    """
    customer, product, *of_rating = range_.ratings.columns
    customer_rows = _rows(range_.customer_rows, customer, range_.customers, shop.ratings.customer)
    product_rows = _rows(range_.product_rows, product, range_.products, shop.ratings.product)
    columns = _taken(range_.customers, customer_rows, customer)
    columns |= _taken(range_.products, product_rows, product)
    columns |= dict(zip(shop.ratings.columns[2:], of_rating, strict=True))
    names = (shop.partition_column, *shop.training_columns)
    return pa.RecordBatch.from_arrays([columns[name] for name in names], names=names)


@dataclasses.dataclass(eq=False)
class JoinFeatures(beam.PTransform):  # type: ignore[misc]
    """`join_features` on validated `RatingsRange`s; ranges without a rating give nothing."""

    shop: Shop

    def expand(self, ranges: Any) -> Any:
        return (
            ranges
            | "Not empty" >> beam.Filter(lambda range_: range_.ratings.num_rows > 0)
            | "Join" >> beam.Map(join_features, self.shop).with_output_types(pa.RecordBatch)
        )


def _rows(known: pa.Array | None, keys: pa.Array, table: pa.RecordBatch, column: str) -> pa.Array:
    rows = find_rows(keys, table.column(0)) if known is None else known
    if rows.null_count:
        raise ValueError(f"{rows.null_count} ratings whose {column} is unknown: validate before the join")
    return rows


def _taken(table: pa.RecordBatch, rows: pa.Array, keys: pa.Array) -> dict[str, pa.Array]:
    """A table's columns at the ratings' rows; the key's values are those of the ratings already."""
    key, *features = table.schema
    taken = {field.name: table.column(field.name).take(rows) for field in features}
    return {key.name: pc.cast(keys, key.type), **taken}
