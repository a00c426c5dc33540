"""Why an item is recommended: what `--explain` adds to each entry of `recommended_items`."""

import pyarrow as pa

__all__ = ["EXPLAINED", "POPULAR", "RANKED", "RULED_SIMILAR", "STORED", "TOWER", "VECTOR_OF"]

POPULAR, STORED, TOWER = "popular", "stored_vector", "user_tower"
"""Where an item was found: in the popularity list, or by the user's vector, stored or made by the tower."""

VECTOR_OF = b"vector_of"
"""Schema metadata of a stamped batch: TOWER or STORED, whose vectors it gets."""

RULED_SIMILAR = "ruled_similar"
"""Column SIMILAR of a batch: `similar` as the business rules leave it."""

MOVES = pa.list_(pa.struct([("rule", pa.string()), ("from", pa.int64()), ("to", pa.int64())]))
"""The rules that changed an item's place, in their order: places in the list, from 1."""

RANKED = pa.list_(
    pa.struct(
        [
            ("id", pa.string()),
            ("score", pa.float64()),
            ("rank", pa.int64()),
            ("popular", pa.bool_()),
            ("moves", MOVES),
        ]
    )
)
"""Items as the rules leave them: place before the rules, and whether only the popularity list had them."""

_NEAREST = pa.struct([("product_code", pa.string()), ("distance", pa.float64())])
_REASON = pa.struct(
    [("path", pa.string()), ("rank", pa.int64()), ("rules", MOVES), ("nearest_in_history", _NEAREST)]
)
EXPLAINED = pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64()), ("reason", _REASON)]))
"""`recommended_items` with the reason of each item."""
