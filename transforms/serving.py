"""Rows of the serving table from recommended batches."""

import dataclasses

import apache_beam as beam
import orjson
import pyarrow as pa

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.events import RELEASE_ID, SERVING
from beamrec.schemas.shop import Shop
from beamrec.transforms.recommend import similar_of_cart

__all__ = ["ServingRows", "serving_rows"]


def serving_rows(batch: pa.RecordBatch, shop: Shop) -> pa.RecordBatch:
    """What `recommend` returns as SERVING; events without a customer have no row."""
    release = (batch.schema.metadata or {}).get(RELEASE_ID, b"").decode()
    rows = [
        {
            "customer_id": str(row[shop.customers.key]),
            "event_id": row["event_id"],
            "event_time": row["event_time"],
            "processed_at": row["processed_at"],
            "release": release,
            "served_by": row["served_by"],
            "recommended_items": orjson.dumps(row["recommended_items"]).decode(),
            "similar_items": orjson.dumps(similar_of_cart(row)).decode(),
        }
        for row in batch.to_pylist()
        if row[shop.customers.key] is not None
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SERVING)


@dataclasses.dataclass(eq=False)
class ServingRows(beam.PTransform):  # type: ignore[misc]
    """`serving_rows` on a PCollection of recommended batches."""

    shop: Shop

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[events with their recommendations] -> [SERVING]."""
        return batches | "Rows" >> beam.Map(serving_rows, self.shop).with_output_types(pa.RecordBatch)
