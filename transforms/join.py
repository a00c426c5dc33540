"""Ratings joined with the features of their customers and products."""

import dataclasses
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.shop import Shop

__all__ = ["JoinFeatures", "find_rows", "join_features"]


def join_features(range_: RatingsRange, shop: Shop) -> pa.RecordBatch:
    """Inner join of a range's ratings with its customers and products, on the keys' bytes.

    Returns:
      One row per rating, in the ratings' order: the partition column, then the training columns in the
      order of the files. Keys have the type of the table that they are the key of.

    Raises:
      ValueError: a rating refers to a customer or product that is not there (validate first).
    """
    customer, product, rating = range_.ratings.columns
    customers = range_.customers.take(_rows(customer, range_.customers, shop.ratings.customer))
    products = range_.products.take(_rows(product, range_.products, shop.ratings.product))
    columns = dict(zip(customers.schema.names, customers.columns, strict=True))
    columns |= dict(zip(products.schema.names, products.columns, strict=True))
    columns[shop.ratings.rating] = rating
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


def find_rows(values: pa.Array, keys: pa.Array) -> pa.Array:
    """Row of each value in `keys` as int32; NULL where it is NULL or not there.

    Integers of any width are compared as numbers, text by its bytes.
    """
    if pa.types.is_integer(values.type):
        values, keys = pc.cast(values, pa.int64(), safe=False), pc.cast(keys, pa.int64(), safe=False)
    return pc.index_in(values, value_set=keys, skip_nulls=True)


def _rows(keys: pa.Array, table: pa.RecordBatch, column: str) -> pa.Array:
    rows = find_rows(keys, table.column(0))
    if rows.null_count:
        raise ValueError(f"{rows.null_count} ratings whose {column} is unknown: validate before the join")
    return rows
