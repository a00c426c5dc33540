"""One key range of the ratings with the customers and products that it refers to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

__all__ = ["EntityTally", "MalformedRow", "RangeCheck", "RatingsRange", "SourceSnapshot", "Verified"]


@dataclasses.dataclass(frozen=True)
class MalformedRow:
    """A row of which a value does not fit its column's type: SQLite keeps text in an integer column.

    Attributes:
      table, column: where the value stands.
      expected: the column's Arrow type, as text.
      row: every selected column of the row by the Shop's name, as the database sent it.
    """

    table: str
    column: str
    expected: str
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RatingsRange:
    """What the bounded pipeline works on at a time: whole partitions and all they need to be joined.

    The customers and products travel with their ratings because a side input would cut the fused stage
    in two, and the runner would hold every rating between the halves. Inside the stage nothing is copied:
    all ranges share one `products` batch.

    Attributes:
      ratings: columns customer key, product key, rating, named as the Shop names them, in any order of rows.
      customers: key and feature columns of at least the customers of this range. Every customer row of the
        source, NULL keys and repeated keys included, is in exactly one range with `counts_customers`.
      products: key and feature columns of all products.
      taken_at: RFC 3339 time of the snapshot that all three were read in.
      malformed: rows that are not in the batches, because a value does not fit. Those of entities come
        with every range that has their table, and count where that counts.
      counts_customers: whether this range accounts for its customers. A customer with very many ratings
        is read in slices, and comes with each of them.
      counts_products: whether this range accounts for the products; true for one range of a source.
      customer_rows, product_rows: row of each rating in `customers` and `products`, int32 without NULL;
        set by validation, None before.
    """

    ratings: pa.RecordBatch
    customers: pa.RecordBatch
    products: pa.RecordBatch
    taken_at: str
    malformed: tuple[MalformedRow, ...] = ()
    counts_customers: bool = True
    counts_products: bool = False
    customer_rows: pa.Array | None = None
    product_rows: pa.Array | None = None


@dataclasses.dataclass(frozen=True)
class EntityTally:
    """Customers or products of one range that keep every rule; the others are dead letters."""

    table: str
    valid: int


@dataclasses.dataclass(frozen=True)
class RangeCheck:
    """What some rows of a table were when they were read, to be compared with what they are at the end.

    Attributes:
      table: as the Shop names it.
      condition, parameters: which rows, in the source's SQL.
      digest: number of rows and a sum over them that does not depend on their order.
    """

    table: str
    condition: str | None
    parameters: tuple[Any, ...]
    digest: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class SourceSnapshot:
    """Where and when the tables were read.

    Attributes:
      system: URI scheme of the source.
      method: how every table was read as of one moment.
      taken_at: RFC 3339 time at which the snapshot was opened.
      counts: table name → `COUNT(*)` inside the snapshot.
      types: training-file column (the partition column included) → Arrow type, as text.
      verify: whether not everything was read as of one moment, so that every `RangeCheck` must hold at
        the end.
    """

    system: str
    method: str
    taken_at: str
    counts: dict[str, int]
    types: dict[str, str]
    verify: bool = False


@dataclasses.dataclass(frozen=True)
class Verified:
    """That what was read may be published, checked at the end of a reading.

    Attributes:
      text: how it was checked, in words; for the manifest.
      changed: rows that were read of each table that changed meanwhile, where that is accepted. They stand
        in its account instead of `SourceSnapshot.counts`, which is of another moment.
    """

    text: str
    changed: Mapping[str, int] = dataclasses.field(default_factory=dict)
