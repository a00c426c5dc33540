"""The reason of each recommended item: where it was found, what moved it, what it is near to."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beamrec.schemas.events import CANDIDATES
from beamrec.schemas.reasons import EXPLAINED, MOVES, POPULAR, TOWER, VECTOR_OF
from beamrec.transforms.ranked_lists import lengths_of, ranks_of

__all__ = ["explained"]

_Ints = npt.NDArray[np.int64]


def explained(batch: pa.RecordBatch, ranked: pa.ListArray) -> pa.ListArray:
    """Adds a reason to each item.

    Args:
      batch: with `user_vector` (null where the popularity list served) and `similar` (SIMILAR), stamped with
        where its vectors are from.
      ranked: RANKED, or CANDIDATES that no rule has touched: then the place is the rank.

    Returns:
      EXPLAINED. `nearest_in_history` is the product of the history that the look-up knows to have the item
      among its neighbours, at the least distance; null if it knows none.
    """
    lengths, entries = lengths_of(ranked), ranked.flatten()
    rows = np.repeat(np.arange(len(ranked)), lengths)
    if ranked.type == CANDIDATES:
        ranks = pa.array(ranks_of(rows))
        popular = np.zeros(len(rows), bool)
        moves = pa.array([[]] * len(rows), MOVES)
    else:
        ranks, moves = entries.field("rank"), entries.field("moves")
        popular = np.asarray(entries.field("popular"))
    popular = popular | ~np.asarray(batch.column("user_vector").is_valid())[rows]
    vector_of = (batch.schema.metadata or {}).get(VECTOR_OF, TOWER.encode()).decode()
    paths = pa.array([vector_of, POPULAR]).take(pa.array(popular.astype(np.int64)))
    item = EXPLAINED.value_type
    nearest = _nearest(batch.column("similar"), rows, entries.field("id"))
    reasons = pa.StructArray.from_arrays([paths, ranks, moves, nearest], fields=list(item.field(2).type))
    structs = pa.StructArray.from_arrays(
        [entries.field("id"), entries.field("score"), reasons], fields=list(item)
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), structs, EXPLAINED)


def _nearest(similar: pa.ListArray, rows: _Ints, ids: pa.StringArray) -> pa.StructArray:
    """Of items [n] of rows [n] the product with the item among its neighbours at the least distance."""
    fields = list(EXPLAINED.value_type.field(2).type.field(3).type)
    of_products = np.repeat(np.arange(len(similar)), lengths_of(similar))
    products, items = similar.flatten().field("product"), similar.flatten().field("items")
    of_items = np.repeat(np.arange(len(items)), lengths_of(items))
    flat = items.flatten()
    keys, asked = _keys(of_products[of_items], flat.field("id"), rows, ids)
    distances = np.asarray(flat.field("distance"))
    order = np.lexsort((distances, keys))
    place = np.minimum(np.searchsorted(keys[order], asked), max(len(order) - 1, 0))
    there = keys[order[place]] == asked if len(order) else np.zeros(len(asked), bool)
    # Null where nobody knows, so that the entry behind it is not read.
    chosen = pa.array(order[place] if len(order) else place, mask=~there)
    columns = [products.take(pa.array(of_items).take(chosen)), flat.field("distance").take(chosen)]
    return pa.StructArray.from_arrays(columns, fields=fields, mask=pa.array(~there))


def _keys(rows: _Ints, ids: pa.StringArray, asked_rows: _Ints, asked: pa.StringArray) -> tuple[_Ints, _Ints]:
    """Numbers that are equal where row and id are: of ids [n] of rows [n], and of those asked for."""
    encoded = pa.concat_arrays([ids, asked]).dictionary_encode()
    codes = np.asarray(encoded.indices).astype(np.int64)
    size = max(len(encoded.dictionary), 1)
    return rows * size + codes[: len(ids)], asked_rows * size + codes[len(ids) :]
