"""Ranked lists as JSON text, column by column: no Python object is made for an entry.

Of a batch of 500 events with five items and the neighbours of two products each, objects took 30 µs an event
to make and to write, and their number made Python's garbage collector walk through the worker's whole heap.
"""

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.events import CANDIDATES, NEIGHBOURS
from beamrec.transforms.ranked_lists import as_objects

__all__ = ["joined", "quoted", "ranked_json", "similar_json"]

_PLAIN = (CANDIDATES, NEIGHBOURS)


def ranked_json(lists: pa.ListArray) -> pa.StringArray:
    """Each list as JSON, as orjson writes it: `[{"id":"S12","score":0.8}]`; a null list is `[]`.

    Args:
      lists: CANDIDATES, NEIGHBOURS, or a list of structs of plain values.
    """
    if lists.type not in _PLAIN:
        return pa.array([orjson.dumps(objects).decode() for objects in as_objects(lists)], pa.string())
    entries = lists.flatten()
    ids, number = (lists.type.value_type.field(place).name for place in range(2))
    texts = joined(f'{{"{ids}":', quoted(entries.field(0)), f',"{number}":', _numbers(entries.field(1)), "}")
    return _listed(lists, texts)


def similar_json(similar: pa.ListArray) -> pa.StringArray:
    """SIMILAR as it stands in a record."""
    entries = similar.flatten()
    items = ranked_json(entries.field("items"))
    texts = joined('{"product_code":', quoted(entries.field("product")), ',"similar_items":', items, "}")
    return _listed(similar, texts)


def quoted(texts: pa.StringArray) -> pa.StringArray:
    """Each text as a JSON string, null as `null`."""
    encoded = texts.dictionary_encode(null_encoding="encode")
    words = [orjson.dumps(text).decode() for text in encoded.dictionary.to_pylist()]
    return pa.array(words, pa.string()).take(encoded.indices)


def joined(*parts: pa.Array | str) -> pa.StringArray:
    """Texts put together row by row; a plain one stands in every row."""
    # The last one is what stands between them: nothing.
    return pc.binary_join_element_wise(*parts, "")


def _numbers(values: pa.DoubleArray) -> pa.StringArray:
    texts = orjson.dumps(values.to_pylist())[1:-1].decode()
    return pa.array(texts.split(",") if texts else [], pa.string())


def _listed(lists: pa.ListArray, texts: pa.StringArray) -> pa.StringArray:
    offsets = pc.subtract(lists.offsets, lists.offsets[0]) if lists.null_count == 0 else _dense(lists)
    rows = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",")
    return joined("[", rows, "]")


def _dense(lists: pa.ListArray) -> pa.Array:
    """Offsets into `lists.flatten()`, which leaves out what lies below a null."""
    lengths = lists.value_lengths().fill_null(0)
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
