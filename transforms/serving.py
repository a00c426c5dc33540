"""Rows of the serving table from recommended batches."""

import dataclasses

import apache_beam as beam
import pyarrow as pa

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.events import RELEASE_ID, SERVED
from beamrec.schemas.shop import Shop
from beamrec.transforms.list_json import ranked_json, similar_json
from beamrec.transforms.recommend import similar_of_cart

__all__ = ["ServingRows", "serving_rows"]


def serving_rows(batch: pa.RecordBatch, shop: Shop) -> pa.RecordBatch:
    """What `recommend` returns as SERVED; events without a customer have no row."""
    release = (batch.schema.metadata or {}).get(RELEASE_ID, b"").decode()
    batch = batch.filter(batch.column(shop.customers.key).is_valid())
    return pa.RecordBatch.from_arrays(
        [
            batch.column(shop.customers.key).cast(pa.string()),
            *(batch.column(name) for name in ("event_id", "event_time", "processed_at")),
            pa.array([release] * batch.num_rows, pa.string()),
            batch.column("served_by"),
            ranked_json(batch.column("recommended_items")),
            similar_json(similar_of_cart(batch)),
            batch.column("arrival"),
        ],
        schema=SERVED,
    )


@dataclasses.dataclass(eq=False)
class ServingRows(beam.PTransform):  # type: ignore[misc]
    """`serving_rows` on a PCollection of recommended batches."""

    shop: Shop

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[events with their recommendations] -> [SERVED]."""
        return batches | "Rows" >> beam.Map(serving_rows, self.shop).with_output_types(pa.RecordBatch)
