"""Recommendations as columns: the Parquet form of the record that FORMATS describes."""

import json

import pyarrow as pa

from beamrec.schemas.events import CANDIDATES, NEIGHBOURS, TIMESTAMP, key_type
from beamrec.schemas.reasons import EXPLAINED
from beamrec.schemas.shop import Shop

__all__ = ["OTHER_FIELDS", "changed_columns", "columns_text", "record_schema"]

OTHER_FIELDS = "other_fields"
"""Column with a JSON object of what no other column holds exactly: fields that the shop does not name, and
values of a wrong type; NULL if there is none. So a record can always be put together again."""


def record_schema(shop: Shop, course: bool = False, explain: bool = False) -> pa.Schema:
    """The columns of a recommendation: the event's own fields, then ours, in the order of the JSON record.

    The same for every file of an output folder, whatever the events hold.

    Args:
      course: as `--output-shape=course` writes them.
      explain: as `--explain` writes them; not both.
    """
    added = _added_fields(course, EXPLAINED if explain else CANDIDATES)
    fields = {field.name: field for field in [*_event_fields(shop), *added]}
    return pa.schema([*fields.values(), pa.field(OTHER_FIELDS, pa.string())])


def columns_text(schema: pa.Schema) -> str:
    """What the files of one table must have in common: names and types, in whatever order.

    Returns:
      A JSON object of types by name; the same text for the same columns.
    """
    return json.dumps({field.name: _type_text(field.type) for field in schema}, sort_keys=True)


def changed_columns(before: str, now: str) -> str:
    """What differs between two texts of `columns_text`, in words; "" if nothing does."""
    old, new = json.loads(before), json.loads(now)
    names = sorted(name for name in old.keys() | new if old.get(name) != new.get(name))
    return "; ".join(f"{n}: {old.get(n, 'none')} before, {new.get(n, 'none')} now" for n in names)


def _type_text(kind: pa.DataType) -> str:
    """Without the name of a list's entries, which depends on who wrote a file."""
    if pa.types.is_list(kind):
        return f"list<{_type_text(kind.value_type)}>"
    if pa.types.is_struct(kind):
        fields = (kind.field(number) for number in range(kind.num_fields))
        return f"struct<{', '.join(sorted(f'{field.name}: {_type_text(field.type)}' for field in fields))}>"
    return str(kind)


def _event_fields(shop: Shop) -> list[pa.Field]:
    names = shop.events
    entry = [
        pa.field(names.product, key_type(shop.products)),
        pa.field(names.quantity, pa.int64()),
        pa.field(names.in_cart, pa.bool_()),
    ]
    return [
        pa.field(names.session, pa.string()),
        pa.field(names.customer, key_type(shop.customers)),
        *(
            pa.field(f.event_field, pa.float64() if f.kind == "number" else pa.string())
            for f in shop.user_features
            if f.event_field
        ),
        *(entry if names.shape == "click" else [pa.field(names.history, pa.list_(pa.struct(entry)))]),
    ]


def _added_fields(course: bool, recommended: pa.DataType) -> list[pa.Field]:
    similar = pa.struct([("product_code", pa.string()), ("similar_items", NEIGHBOURS)])
    lists = [
        pa.field("recommended_items", recommended),
        pa.field("similar_items", similar if course else pa.list_(similar)),
    ]
    if course:
        return lists
    stamps = {
        "event_id": pa.string(),
        "event_time": TIMESTAMP,
        "release": pa.string(),
        "served_by": pa.string(),
        "processed_at": TIMESTAMP,
    }
    return [*lists, *(pa.field(name, kind) for name, kind in stamps.items())]
