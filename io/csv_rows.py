"""Many rows as one CSV text, the quickest way out of a database that speaks SQL; parsed by Arrow."""

import pyarrow as pa
from pyarrow import csv

__all__ = ["can_pack", "parse_rows"]


def can_pack(type_: pa.DataType) -> bool:
    """Whether a column of the type comes through CSV unchanged; bytes do not."""
    return not pa.types.is_binary(type_)


def parse_rows(data: bytes, types: list[pa.DataType]) -> list[pa.Array]:
    """Columns of CSV lines in which text is quoted, quotes are doubled and NULL is an empty field.

    Args:
      data: lines that each end in a newline; UTF-8.
      types: what each column should be; decimals come as text, all columns if a value does not fit.

    Raises:
      pa.ArrowInvalid: it is not CSV of that many columns.
    """
    names = [str(position) for position in range(len(types))]
    # Arrow's CSV reader knows no wider decimals, and takes a too large one modulo 2**128.
    types = [pa.string() if pa.types.is_decimal(type_) else type_ for type_ in types]
    if not data:
        return [pa.array([], type_) for type_ in types]
    try:
        return _parse(data, names, types)
    except pa.ArrowInvalid:
        return _parse(data, names, [pa.string()] * len(types))


def _parse(data: bytes, names: list[str], types: list[pa.DataType]) -> list[pa.Array]:
    table = csv.read_csv(
        pa.BufferReader(data),
        # One block: a value with a newline must not be cut, and other threads have the other cores.
        read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
        parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            column_types=dict(zip(names, types, strict=True)),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return [column.combine_chunks() for column in table.columns]
