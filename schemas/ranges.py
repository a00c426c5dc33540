"""One key range of the ratings with the customers and products that it refers to."""

import dataclasses

import pyarrow as pa

__all__ = ["RatingsRange", "SourceSnapshot"]


@dataclasses.dataclass(frozen=True)
class RatingsRange:
    """What the bounded pipeline works on at a time: whole partitions and all they need to be joined.

    The customers and products travel with their ratings because a side input would cut the fused stage
    in two, and the runner would hold every rating between the halves. Inside the stage nothing is copied:
    all ranges share one `products` batch.

    Attributes:
      ratings: columns customer key, product key, rating, named as the Shop names them, in any order of rows.
      customers: key and feature columns of at least the customers of this range; keys are unique.
      products: key and feature columns of all products, ascending by key; keys are unique.
      taken_at: RFC 3339 time of the snapshot that all three were read in.
    """

    ratings: pa.RecordBatch
    customers: pa.RecordBatch
    products: pa.RecordBatch
    taken_at: str


@dataclasses.dataclass(frozen=True)
class SourceSnapshot:
    """Where and when the tables were read.

    Attributes:
      system: URI scheme of the source.
      method: how every table was read as of one moment.
      taken_at: RFC 3339 time at which the snapshot was opened.
      counts: table name → `COUNT(*)` inside the snapshot.
      types: training-file column (the partition column included) → Arrow type, as text.
    """

    system: str
    method: str
    taken_at: str
    counts: dict[str, int]
    types: dict[str, str]
