"""Ranking, filtering and fallbacks: from scored candidates to the recommendation record."""

import dataclasses
import random
from datetime import UTC, datetime
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.schemas.events import CANDIDATES, OUTCOMES, RELEASE_ID, SIMILAR, TIMESTAMP, Fate
from beamrec.schemas.paths import RECOMMENDATIONS, PartitionStyle, hour_folder
from beamrec.schemas.reasons import EXPLAINED, RULED_SIMILAR
from beamrec.transforms import metrics
from beamrec.transforms.list_json import joined, quoted, ranked_json, similar_json
from beamrec.transforms.ranked_lists import ProductsOfRows, as_objects, kept, lengths_of, sliced
from beamrec.transforms.reasons import explained

__all__ = [
    "FormatRecords",
    "OutputShape",
    "Recommend",
    "format_records",
    "recommend",
    "similar_of_cart",
]

OutputShape = Literal["full", "course"]
_HOUR_US = 3_600_000_000


def recommend(batch: pa.RecordBatch, items: int, explain: bool = False) -> pa.RecordBatch:
    """Ranks, filters and says which path served.

    Args:
      batch: events with `history`, `known` (bool), `user_vector` (null where nothing was usable),
        `candidates` (CANDIDATES, or RANKED by business rules) and `similar` (SIMILAR, and once more as the
        rules leave it, if there are any); stamped with a release.
      items: how many items a list holds at most.
      explain: make `recommended_items` EXPLAINED.

    Returns:
      The batch with `recommended_items` and `similar_items` instead of `candidates` and `similar`,
      without the items of the history, and with `served_by` and `processed_at`.
    """
    seen = _products(batch.column("history"))
    rows = np.arange(batch.num_rows)
    ruled = [RULED_SIMILAR] if RULED_SIMILAR in batch.schema.names else []
    similar = batch.column(*ruled or ["similar"])
    entries = similar.flatten()
    items_of = _without(entries.field("items"), np.repeat(rows, lengths_of(similar)), seen, items)
    structs = pa.StructArray.from_arrays(
        [entries.field("product"), items_of], fields=list(SIMILAR.value_type)
    )
    recommended = _without(batch.column("candidates"), rows, seen, items)
    if explain:
        recommended = explained(batch, recommended)
    now = datetime.now(UTC)
    kept = batch.drop_columns(["candidates", "similar", "user_vector", "known", *ruled])
    return pa.RecordBatch.from_arrays(
        [
            *kept.columns,
            recommended,
            pa.ListArray.from_arrays(_offsets(lengths_of(similar)), structs, type=SIMILAR),
            _paths(batch.column("user_vector"), batch.column("known")),
            pa.array([now] * batch.num_rows, TIMESTAMP),
        ],
        schema=_extended(kept.schema, EXPLAINED if explain else CANDIDATES),
    )


def _counted(batch: pa.RecordBatch, items: int, explain: bool) -> pa.RecordBatch:
    # Here, since every job recommends, and not every one has a serving table.
    found = recommend(batch, items, explain)
    metrics.count_values("served_by", found.column("served_by"))
    metrics.count("release", found.num_rows, (found.schema.metadata or {}).get(RELEASE_ID, b"").decode())
    return found


def _extended(schema: pa.Schema, recommended: pa.DataType) -> pa.Schema:
    return (
        schema.append(pa.field("recommended_items", recommended))
        .append(pa.field("similar_items", SIMILAR))
        .append(pa.field("served_by", pa.string()))
        .append(pa.field("processed_at", TIMESTAMP))
    )


def _products(history: pa.ListArray, flags: pa.BooleanArray | None = None) -> ProductsOfRows:
    """The products of each row's history as text; with flags, those of the entries where it is set."""
    rows, products = (
        np.repeat(np.arange(len(history)), lengths_of(history)),
        history.flatten().field("product"),
    )
    if flags is not None:
        rows, products = rows[np.asarray(flags)], products.filter(flags)
    return ProductsOfRows(rows, products.cast(pa.string()))


def _without(
    ranked: pa.ListArray, rows: npt.NDArray[np.int64], seen: ProductsOfRows, items: int
) -> pa.ListArray:
    """The first `items` entries of each list that its row has not seen."""
    ids = ranked.flatten().field("id")
    return kept(ranked, ~seen.have(np.repeat(rows, lengths_of(ranked)), ids), items)


def _offsets(lengths: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _paths(vectors: pa.Array, known: pa.BooleanArray) -> pa.StringArray:
    by_customer = pc.if_else(known, "known_customer", "cold_customer")
    return pc.if_else(vectors.is_valid(), by_customer, "popular")


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
    times = np.asarray(batch.column("event_time").cast(pa.int64()))
    hours, hour_of_row = np.unique(times // _HOUR_US, return_inverse=True)
    starts = pa.array(hours * _HOUR_US).cast(TIMESTAMP)
    folders = pa.array(
        [hour_folder(RECOMMENDATIONS, hour, style) for hour in starts.to_pylist()], pa.string()
    )
    added = _course(batch, seed) if shape == "course" else _full(batch)
    fields = batch.column("fields")
    comma = pc.if_else(pc.greater(pc.binary_length(fields), 2), b",", b"")
    # The event's own object with more fields behind, without parsing it again.
    lines = pc.binary_join_element_wise(pc.binary_slice(fields, 0, -1), comma, added.cast(pa.binary()), b"")
    return pa.RecordBatch.from_arrays(
        [
            *(batch.column(name) for name in ("source", "after", "position", "event_id")),
            pa.array([str(Fate.VISIBLE)] * batch.num_rows, pa.string()),
            folders.take(pa.array(hour_of_row)),
            starts.take(pa.array(hour_of_row)),
            lines,
            *(batch.column(name) for name in ("event_time", "arrival")),
        ],
        schema=OUTCOMES,
    )


def _full(batch: pa.RecordBatch) -> pa.StringArray:
    """What follows the event's own fields, with the closing brace."""
    release = (batch.schema.metadata or {}).get(RELEASE_ID, b"").decode()
    return joined(
        '"recommended_items":',
        ranked_json(batch.column("recommended_items")),
        ',"similar_items":',
        similar_json(similar_of_cart(batch)),
        ',"event_id":',
        quoted(batch.column("event_id")),
        ',"event_time":"',
        _rfc3339(batch.column("event_time")),
        f'","release":{orjson.dumps(release).decode()},"served_by":',
        quoted(batch.column("served_by")),
        ',"processed_at":"',
        _rfc3339(batch.column("processed_at")),
        '"}',
    )


def _course(batch: pa.RecordBatch, seed: int) -> pa.StringArray:
    columns = zip(
        as_objects(batch.column("recommended_items")),
        _similar(batch.column("similar_items")),
        batch.column("event_id").to_pylist(),
        strict=True,
    )
    added = []
    for recommended, entries, event_id in columns:
        draw = random.Random(f"{seed}:{event_id}")  # noqa: S311  (a sample, not a secret)
        drawn = draw.choice(entries) if entries else None
        record = orjson.dumps({"recommended_items": recommended, "similar_items": drawn})
        added.append(record[1:].decode())
    return pa.array(added, pa.string())


def similar_of_cart(batch: pa.RecordBatch) -> pa.ListArray:
    """SIMILAR of each row, per product in the cart, or per product viewed if the cart is empty.

    Args:
      batch: what `recommend` returns.
    """
    history, similar = batch.column("history"), batch.column("similar_items")
    in_cart = history.flatten().field("in_cart")
    rows = np.repeat(np.arange(batch.num_rows), lengths_of(history))[np.asarray(in_cart)]
    empty = np.ones(batch.num_rows, bool)
    empty[rows] = False
    of_rows = np.repeat(np.arange(batch.num_rows), lengths_of(similar))
    there = _products(history, in_cart).have(of_rows, similar.flatten().field("product"))
    return kept(similar, there | empty[of_rows])


def _similar(similar: pa.ListArray) -> list[list[dict[str, Any]]]:
    """SIMILAR as it stands in a record."""
    entries = similar.flatten()
    pairs = zip(entries.field("product").to_pylist(), as_objects(entries.field("items")), strict=True)
    objects = [{"product_code": product, "similar_items": items} for product, items in pairs]
    return sliced(objects, lengths_of(similar))


def _rfc3339(times: pa.TimestampArray) -> pa.StringArray:
    """As `schemas.events.rfc3339` writes them: microseconds where there are any."""
    texts = np.datetime_as_string(np.asarray(times.cast(pa.int64())).astype("datetime64[us]")).tolist()
    return pa.array([f"{text.removesuffix('.000000')}Z" for text in texts], pa.string())


@dataclasses.dataclass(eq=False)
class Recommend(beam.PTransform):  # type: ignore[misc]
    """`recommend` on a PCollection of scored batches."""

    items: int = 5
    explain: bool = False

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """[scored events] -> [events with their recommendations]."""
        ranked = beam.Map(_counted, self.items, self.explain)
        return batches | "Rank" >> ranked.with_output_types(pa.RecordBatch)


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
