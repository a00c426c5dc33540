"""Records that are plainly good, straight into columns, many at once.

What is not plainly good is left to `parse_record`, which knows the rules. Here stands only what certainly
keeps all of them, so that both always give the same answer.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, filterfalse
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.events import RESERVED_FIELDS, TIMESTAMP, event_schema
from beamrec.schemas.shop import Feature, Shop
from beamrec.transforms.parse_record import MAX_HISTORY, MAX_ID_CHARACTERS, MAX_NUMBER, payload_id

__all__ = ["parse_columns"]

_Odd: TypeAlias = set[int]
_Kinds: TypeAlias = frozenset[type]
_NONE = type(None)
_OBJECT: _Kinds = frozenset({dict})
_LIST: _Kinds = frozenset({list, _NONE})
_FLAG: _Kinds = frozenset({bool, _NONE})
_NUMBER: _Kinds = frozenset({int, float, _NONE})
_WHOLE: _Kinds = frozenset({int, _NONE})
_TEXT: _Kinds = frozenset({str, _NONE})
_TEXT_OR_WHOLE: _Kinds = frozenset({str, int, _NONE})
_RESERVED = frozenset(RESERVED_FIELDS)
# Years that no offset moves out of Python's calendar, and no finer fractions than Arrow reads.
_RFC3339 = r"^[12]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_NUMBER_TEXT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_REFUSALS = (pa.ArrowInvalid, OverflowError, orjson.JSONEncodeError)


def parse_columns(
    raw: pa.RecordBatch, shop: Shop, dedupe_key: str | None, tolerance_us: int
) -> tuple[npt.NDArray[np.int64], pa.RecordBatch]:
    """Parses those events of a batch that are plainly good.

    Args:
      raw: schema RAW_EVENTS.
      shop, dedupe_key: as of `parse_events`.
      tolerance_us: an event time further than this beyond arrival is not plainly good, in microseconds.

    Returns:
      (their places in `raw`, ascending, int64; they themselves as `event_schema(shop)`).
    """
    events, odd = _loaded(raw.column("payload"))
    places = np.arange(len(events))
    while True:
        # A column cannot be made of what is odd, and behind what is odd in one way may be what is in another.
        left = [i for i in range(len(events)) if i not in odd] if odd else range(len(events))
        events, places, odd = [events[i] for i in left], places[left], set()
        rows = raw if len(places) == raw.num_rows else raw.take(pa.array(places))
        columns = _Columns(events, rows, shop, odd).all(dedupe_key, tolerance_us)
        if not odd:
            return places, pa.RecordBatch.from_arrays([*rows.columns, *columns], schema=event_schema(shop))


class _Columns:
    """Columns of events; the places of those that are not plainly good are added to `odd`.

    A column is None where something is odd.
    """

    def __init__(self, events: list[dict[str, Any]], rows: pa.RecordBatch, shop: Shop, odd: _Odd) -> None:
        self._events, self._rows, self._shop, self._names = events, rows, shop, shop.events
        self._odd = odd

    def all(self, dedupe_key: str | None, tolerance_us: int) -> list[pa.Array]:
        """What `event_schema` has beyond RAW_EVENTS."""
        names, shop = self._names, self._shop
        click = names.shape == "click"
        return [
            self._ids([name for name in (names.event_id, dedupe_key) if name]),
            self._times(tolerance_us),
            self._fields(),
            _keys(self._values(names.customer), shop.customers.key_type, self._odd),
            *([_keys(self._values(names.session), "string", self._odd)] if click else []),
            *(self._feature(feature) for feature in shop.user_features),
            self._clicks() if click else self._histories(),
        ]

    def _values(self, name: str) -> list[Any]:
        return [event.get(name) for event in self._events]

    def _ids(self, names: Sequence[str]) -> pa.Array:
        values = self._values(names[0])
        for name in names[1:]:
            pairs = zip(values, self._values(name), strict=True)
            values = [other if value is None else value for value, other in pairs]
        ids = _keys(values, "string", self._odd, least=1)
        if ids is None or not ids.null_count:
            return ids
        unnamed = self._rows if ids.null_count == len(ids) else self._rows.filter(ids.is_null())
        columns = (unnamed.column(name).to_pylist() for name in ("payload", "source", "position"))
        made = pa.array(list(map(payload_id, *columns)), pa.string())
        return made if unnamed is self._rows else pc.replace_with_mask(ids, ids.is_null(), made)

    def _times(self, tolerance_us: int) -> pa.Array:
        arrival = self._rows.column("arrival")
        texts = _texts(self._values(self._names.event_time), self._odd, _TEXT)
        if texts is None or texts.null_count == len(texts):
            return arrival
        self._odd |= _places(pc.invert(pc.match_substring_regex(texts, _RFC3339)))
        times = _made(texts, lambda some: pa.array(some, pa.string()).cast(TIMESTAMP), self._odd)
        if times is None:
            return None
        early = pc.subtract(times.cast(pa.int64()), arrival.cast(pa.int64()))
        self._odd |= _places(pc.greater(early, tolerance_us))
        return pc.coalesce(times, arrival)

    def _fields(self) -> pa.Array:
        own = [
            event if _RESERVED.isdisjoint(event) else {k: v for k, v in event.items() if k not in _RESERVED}
            for event in self._events
        ]
        return _made(own, lambda some: pa.array(list(map(orjson.dumps, some)), pa.binary()), self._odd)

    def _feature(self, feature: Feature) -> pa.Array:
        values = self._values(str(feature.event_field))
        if feature.kind != "number":
            return _texts(values, self._odd)
        spelled = _spelled(values, float, _is_plain_number)
        self._odd |= _unlike(spelled, _NUMBER)
        numbers = _made(spelled, lambda some: pa.array(some, pa.float64()), self._odd)
        if numbers is not None:
            self._odd |= _places(pc.greater(pc.abs(numbers), MAX_NUMBER))
        return numbers

    def _histories(self) -> pa.Array:
        lists = self._values(self._names.history)
        self._odd |= _unlike(lists, _LIST)
        if self._odd:
            return None
        lengths = [0 if entries is None else len(entries) for entries in lists]
        self._odd |= {i for i, length in enumerate(lengths) if length > MAX_HISTORY}
        return self._lists(lengths, list(chain.from_iterable(filter(None, lists))))

    def _clicks(self) -> pa.Array:
        lengths = [int(value is not None) for value in self._values(self._names.product)]
        there = zip(self._events, lengths, strict=True)
        return self._lists(lengths, [event for event, length in there if length])

    def _lists(self, lengths: Sequence[int], entries: Sequence[Any]) -> pa.Array:
        """Entries as the history column, the first of them of the first event."""
        odd: _Odd = _unlike(entries, _OBJECT)
        columns = None if odd else self._entries(entries, odd)
        if odd:
            rows = np.repeat(np.arange(len(lengths)), lengths)
            self._odd |= set(rows[list(odd)].tolist())
        if columns is None or self._odd:
            return None
        kind = event_schema(self._shop).field("history").type
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
        structs = pa.StructArray.from_arrays(columns, fields=list(kind.value_type))
        return pa.ListArray.from_arrays(offsets, structs, type=kind)

    def _entries(self, entries: Sequence[dict[str, Any]], odd: _Odd) -> list[pa.Array] | None:
        """Product and cart of each entry."""
        names = self._names
        products = _keys([e.get(names.product) for e in entries], self._shop.products.key_type, odd, least=1)
        if products is not None:
            odd |= _places(products.is_null())
        quantities = [e.get(names.quantity) for e in entries]
        odd |= _unlike(quantities, _TEXT_OR_WHOLE)
        strange = set() if odd else set(filterfalse(_is_plain_quantity, set(quantities)))
        odd |= {i for i, quantity in enumerate(quantities) if quantity in strange} if strange else set()
        flags = [e.get(names.in_cart) for e in entries]
        odd |= _unlike(flags, _FLAG)
        return None if odd else [products, pa.array(flags, pa.bool_()).fill_null(False)]


def _loaded(payloads: pa.BinaryArray) -> tuple[list[Any], _Odd]:
    """What the payloads hold, and which of them are no JSON object or have a NUL in some text."""
    texts = payloads.to_pylist()
    try:
        events = list(map(orjson.loads, texts))
    except orjson.JSONDecodeError:
        events = list(map(_load, texts))
    return events, _unlike(events, _OBJECT) | _places(pc.match_substring(payloads, "\\u0000"))


def _load(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None


def _keys(values: Sequence[Any], key_type: str, odd: _Odd, least: int = 0) -> pa.Array:
    """Keys or ids of `least` characters or more, where they are text."""
    if key_type == "int":
        values = _spelled(values, int, _is_plain_quantity)
        odd |= _unlike(values, _WHOLE)
        return _made(values, lambda some: pa.array(some, pa.int64()), odd)
    texts = _texts(values, odd)
    if texts is not None:
        lengths = pc.utf8_length(texts)
        odd |= _places(pc.or_(pc.less(lengths, least), pc.greater(lengths, MAX_ID_CHARACTERS)))
    return texts


def _texts(values: Sequence[Any], odd: _Odd, kinds: _Kinds = _TEXT_OR_WHOLE) -> pa.Array:
    found = set(map(type, values))
    if not found <= kinds:
        odd |= _unlike(values, kinds)
    if int in found:
        values = [str(value) if type(value) is int else value for value in values]
    return _made(values, lambda some: pa.array(some, pa.string()), odd)


def _spelled(
    values: Sequence[Any], kind: Callable[[str], Any], is_plain: Callable[[str], bool]
) -> Sequence[Any]:
    """The values with plain numbers instead of their spellings, which some producers send."""
    if str not in set(map(type, values)):
        return values
    return [kind(value) if type(value) is str and is_plain(value) else value for value in values]


def _made(values: Sequence[Any], make: Callable[[Sequence[Any]], pa.Array], odd: _Odd) -> pa.Array:
    """`make(values)`; None where something is odd already or `make` refuses a value, which is odd then."""
    if odd:
        return None
    try:
        return make(values)
    except _REFUSALS:
        odd |= {i for i, value in enumerate(values) if _refuses(make, value)}
        return None


def _refuses(make: Callable[[Sequence[Any]], pa.Array], value: Any) -> bool:
    try:
        make([value])
    except _REFUSALS:
        return True
    return False


def _unlike(values: Iterable[Any], kinds: _Kinds) -> _Odd:
    """Places of the values that are of another type; a bool is no int here."""
    if set(map(type, values)) <= kinds:
        return set()
    return {i for i, value in enumerate(values) if type(value) not in kinds}


def _places(flags: pa.BooleanArray) -> _Odd:
    """Where a flag is true."""
    return set(pc.indices_nonzero(flags).to_pylist())


def _is_plain_number(value: str) -> bool:
    return _NUMBER_TEXT.fullmatch(value) is not None


def _is_plain_quantity(value: int | str | None) -> bool:
    if isinstance(value, str):
        return len(value) <= 18 and value.isascii() and value.isdigit()
    return value is None or -(2**63) <= value < 2**63
