"""SQL column types as Arrow types, and values as Arrow arrays: one mapping for every database."""

import re
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.errors import UsageError

__all__ = [
    "NOT_OF_THE_TYPE",
    "arrow_type",
    "check_key_type",
    "from_fitting",
    "misfits",
    "refuse_unknown",
    "to_array",
]

_INTEGERS = {
    "tinyint": ("int8", "uint8"),
    "smallint": ("int16", "uint16"),
    "int2": ("int16", "uint16"),
    "mediumint": ("int32", "uint32"),
    "int": ("int32", "uint32"),
    "integer": ("int32", "uint32"),
    "int4": ("int32", "uint32"),
    "bigint": ("int64", "uint64"),
    "int8": ("int64", "uint64"),
    "year": ("int16", "uint16"),
}
_OTHERS = {
    "float": pa.float32(),
    "double": pa.float64(),
    "double precision": pa.float64(),
    "real": pa.float64(),
    "boolean": pa.int8(),
    "bool": pa.int8(),
    "bit": pa.uint64(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us"),
    # A MySQL TIME runs from -838 to 838 hours, which no Arrow time holds.
    "time": pa.string(),
}
_TEXTS = {"char", "varchar", "nchar", "nvarchar", "character", "character varying", "text", "clob"}
_TEXTS |= {"tinytext", "mediumtext", "longtext", "json", "uuid", "inet6"}
_BYTES = {"binary", "varbinary", "blob", "tinyblob", "mediumblob", "longblob", "bytea"}
# What `to_array` raises for a value that is not of the type.
NOT_OF_THE_TYPE = (pa.ArrowException, OverflowError, TypeError, ValueError)

_DECLARED = re.compile(r"\s*([a-z][a-z0-9 ]*?)\s*(?:\(([^)]*)\))?((?:\s+\w+)*)\s*", re.DOTALL)
# Their values may hold brackets, commas and whatever else stands in a type.
_ENUMERATED = re.compile(r"\s*(enum|set)\s*\(", re.IGNORECASE)
_ATTRIBUTES = re.compile(r"\s+(unsigned|zerofill|signed)\b")


def arrow_type(declared: str) -> pa.DataType:
    """The Arrow type of a declared SQL column type, such as `decimal(10,2)` or `int(10) unsigned`.

    One that is not known is Arrow's opaque type of that name: a table may have such columns, as long as
    nobody reads them.
    """
    if _ENUMERATED.match(declared):
        return pa.string()
    text = declared.strip().lower()
    unsigned = "unsigned" in text or "zerofill" in text
    match = _DECLARED.fullmatch(_ATTRIBUTES.sub("", text))
    name, arguments = (match.group(1), match.group(2)) if match else (text, None)
    if name in _INTEGERS:
        return pa.type_for_alias(_INTEGERS[name][unsigned])
    if name in ("decimal", "numeric", "dec", "fixed"):
        return _decimal(arguments) or _unknown(declared)
    if name in _TEXTS:
        return pa.string()
    if name in _BYTES:
        return pa.binary()
    return _OTHERS.get(name) or _unknown(declared)


def refuse_unknown(types: Mapping[str, pa.DataType], table: str) -> None:
    """Refuses columns that are to be read, by name, if the type of one is not known.

    Raises:
      UsageError: it is opaque.
    """
    for column, type_ in types.items():
        if isinstance(type_, pa.OpaqueType):
            raise UsageError(
                f"table {table}, column {column}: unknown column type {type_.type_name!r}; "
                "give --shop a view of it"
            )


def _unknown(declared: str) -> pa.DataType:
    return pa.opaque(pa.null(), declared, "SQL")


def _decimal(arguments: str | None) -> pa.DataType | None:
    """None where no Arrow decimal is that wide."""
    try:
        # The SQL standard's defaults as MySQL has them: precision 10, scale 0.
        numbers = [int(n) for n in (arguments or "10").split(",")]
        precision, scale = numbers[0], numbers[1] if len(numbers) > 1 else 0
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    except ValueError:
        return None


def check_key_type(type_: pa.DataType, key_type: str, where: str) -> None:
    """Refuses a key column whose type in the database is not the Shop's.

    Raises:
      UsageError: it is neither an integer for `int` nor text for `string`.
    """
    found = "int" if pa.types.is_integer(type_) else "string" if pa.types.is_string(type_) else str(type_)
    if found != key_type:
        raise UsageError(
            f"{where}: the shop says key_type = {key_type!r}, the database has {type_}; "
            f"mend key_type in the shop's TOML file or the column"
        )


def to_array(values: Sequence[object] | pa.Array, type_: pa.DataType) -> pa.Array:
    """Values of one column, native or as text, as an array of exactly that type; None is NULL.

    A number is no date and no time: whether it counts seconds or milliseconds, and since when, is unknown.

    Raises:
      one of NOT_OF_THE_TYPE: a value does not fit.
    """
    if isinstance(values, pa.Array) and values.type == type_:
        return values
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return pa.array(values, type_)
    # Typed construction would cut 3.5 down to 3 without a word; a safe cast refuses it.
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.int8())
    if pa.types.is_temporal(type_) and pa.types.is_integer(array.type):
        raise pa.ArrowTypeError(f"expected {type_}, got {array.type}")
    cast = pc.cast(array, type_)
    if pa.types.is_decimal(type_):
        _refuse_overflow(array, type_)
    return cast


def _refuse_overflow(numbers: pa.Array, type_: pa.DataType) -> None:
    """Arrow scales decimals modulo 2**128 or 2**256: a number far too large may come out as another one."""
    limit = 10.0 ** (type_.precision - type_.scale)
    largest = pc.max(pc.abs(pc.cast(numbers, pa.float64()))).as_py()
    if largest is not None and largest > 1.5 * limit:
        raise pa.ArrowInvalid(f"a number does not fit into {type_}")


def from_fitting(values: Sequence[object] | pa.Array, type_: pa.DataType) -> pa.Array:
    """`to_array` of values that each fit the type, though not all are of one type themselves."""
    try:
        return to_array(values, type_)
    except NOT_OF_THE_TYPE:
        return pa.concat_arrays([to_array([value], type_) for value in values])


def misfits(values: Sequence[object] | pa.Array, type_: pa.DataType) -> Iterator[int]:
    """Positions of the values that do not fit the type, ascending; found by halving, as they are few."""
    pending = [(0, len(values))]
    while pending:
        start, end = pending.pop()
        try:
            to_array(values[start:end], type_)
        except NOT_OF_THE_TYPE:
            if end - start == 1:
                yield start
                continue
            middle = (start + end) // 2
            pending += [(middle, end), (start, middle)]
