"""Ranking, filtering and fallbacks: from scored candidates to the recommendation record."""

import dataclasses
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import apache_beam as beam
import orjson
import pyarrow as pa

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.events import CANDIDATES, OUTCOMES, RELEASE_ID, SIMILAR, TIMESTAMP, Fate, rfc3339
from beamrec.schemas.paths import RECOMMENDATIONS, PartitionStyle, hour_folder
from beamrec.transforms.outcomes import hour_of

__all__ = [
    "FormatRecords",
    "OutputShape",
    "Recommend",
    "format_records",
    "recommend",
    "similar_of_cart",
]

OutputShape = Literal["full", "course"]


def recommend(batch: pa.RecordBatch, items: int) -> pa.RecordBatch:
    """Ranks, filters and says which path served.

    Args:
      batch: events with `history`, `known` (bool), `user_vector` (null where nothing was usable),
        `candidates` (CANDIDATES) and `similar` (SIMILAR); stamped with a release.
      items: how many items a list holds at most.

    Returns:
      The batch with `recommended_items` and `similar_items` instead of `candidates` and `similar`,
      without the items of the history, and with `served_by` and `processed_at`.
    """
    rows = batch.select(["history", "known", "candidates", "similar"]).to_pylist()
    scored = batch.column("user_vector").is_valid().to_pylist()
    recommended, similar, served_by = [], [], []
    for row, has_vector in zip(rows, scored, strict=True):
        seen = {str(entry["product"]) for entry in row["history"]}
        recommended.append(_without(row["candidates"], seen, items))
        similar.append([{**s, "items": _without(s["items"], seen, items)} for s in row["similar"]])
        served_by.append(_path(has_vector, row["known"]))
    now = datetime.now(UTC)
    kept = batch.drop_columns(["candidates", "similar", "user_vector", "known"])
    return pa.RecordBatch.from_arrays(
        [
            *kept.columns,
            pa.array(recommended, CANDIDATES),
            pa.array(similar, SIMILAR),
            pa.array(served_by, pa.string()),
            pa.array([now] * batch.num_rows, TIMESTAMP),
        ],
        schema=_extended(kept.schema),
    )


def _extended(schema: pa.Schema) -> pa.Schema:
    return (
        schema.append(pa.field("recommended_items", CANDIDATES))
        .append(pa.field("similar_items", SIMILAR))
        .append(pa.field("served_by", pa.string()))
        .append(pa.field("processed_at", TIMESTAMP))
    )


def _without(ranked: Sequence[dict[str, Any]], seen: set[str], items: int) -> list[dict[str, Any]]:
    return [entry for entry in ranked if entry["id"] not in seen][:items]


def _path(has_vector: bool, known: bool) -> str:
    if not has_vector:
        return "popular"
    return "known_customer" if known else "cold_customer"


def format_records(
    batch: pa.RecordBatch, shape: OutputShape = "full", seed: int = 42, style: PartitionStyle = "hive"
) -> pa.RecordBatch:
    """Writes each recommendation as one line of JSON.

    Args:
      batch: what `recommend` returns.
      shape: `full` is the record of FORMATS; `course` holds the event, `recommended_items` and one
        `similar_items` object, for a product of the history drawn with `seed` and the event's id.
      style: how the hour is written in the path.

    Returns:
      OUTCOMES with fate visible, in the hour of the event time.
    """
    release = (batch.schema.metadata or {}).get(RELEASE_ID, b"").decode()
    build = _course if shape == "course" else _full
    rows = batch.to_pylist()
    return pa.RecordBatch.from_pylist(
        [
            {
                "source": row["source"],
                "after": row["after"],
                "position": row["position"],
                "event_id": row["event_id"],
                "fate": str(Fate.VISIBLE),
                "folder": hour_folder(RECOMMENDATIONS, row["event_time"], style),
                "hour": hour_of(row["event_time"]),
                "line": _splice(row["fields"], build(row, release, seed)),
            }
            for row in rows
        ],
        schema=OUTCOMES,
    )


def _full(row: dict[str, Any], release: str, seed: int) -> dict[str, Any]:
    return {
        "recommended_items": row["recommended_items"],
        "similar_items": similar_of_cart(row),
        "event_id": row["event_id"],
        "event_time": rfc3339(row["event_time"]),
        "release": release,
        "served_by": row["served_by"],
        "processed_at": rfc3339(row["processed_at"]),
    }


def _course(row: dict[str, Any], release: str, seed: int) -> dict[str, Any]:
    entries = row["similar_items"]
    draw = random.Random(f"{seed}:{row['event_id']}")  # noqa: S311  (a sample, not a secret)
    return {
        "recommended_items": row["recommended_items"],
        "similar_items": _similar(draw.choice(entries)) if entries else None,
    }


def similar_of_cart(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Similar items per product in the cart, or per product viewed if the cart is empty."""
    cart = {str(entry["product"]) for entry in row["history"] if entry["in_cart"]}
    return [_similar(s) for s in row["similar_items"] if not cart or s["product"] in cart]


def _similar(entry: dict[str, Any]) -> dict[str, Any]:
    return {"product_code": entry["product"], "similar_items": entry["items"]}


def _splice(fields: bytes, added: dict[str, Any]) -> bytes:
    """The event's own object with more fields behind, without parsing it again."""
    head = fields[:-1] + (b"," if len(fields) > 2 else b"")
    return head + orjson.dumps(added)[1:]


@dataclasses.dataclass(eq=False)
class Recommend(beam.PTransform):  # type: ignore[misc]
    """`recommend` on a PCollection of scored batches."""

    items: int = 5

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[scored events] -> [events with their recommendations]."""
        return batches | "Rank" >> beam.Map(recommend, self.items).with_output_types(pa.RecordBatch)


@dataclasses.dataclass(eq=False)
class FormatRecords(beam.PTransform):  # type: ignore[misc]
    """`format_records` on a PCollection of recommended batches."""

    shape: OutputShape = "full"
    seed: int = 42
    style: PartitionStyle = "hive"

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[events with their recommendations] -> [OUTCOMES]."""
        written = beam.Map(format_records, self.shape, self.seed, self.style)
        return batches | "Format" >> written.with_output_types(pa.RecordBatch)
