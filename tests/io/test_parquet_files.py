"""Parquet parts: exact types and values for every reader, the same bytes for the same rows."""

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamrec.io.parquet_files import ParquetCompression, encode_parquet

COLUMNS: dict[str, Any] = {
    "money": pa.array([decimal.Decimal("99999999.99"), None], pa.decimal128(10, 2)),
    "wide": pa.array([decimal.Decimal(10**37), None], pa.decimal128(38, 0)),
    "tiny": pa.array([-128, None], pa.int8()),
    "small": pa.array([-(2**15), None], pa.int16()),
    "int": pa.array([2**31 - 1, None], pa.int32()),
    "byte": pa.array([255, None], pa.uint8()),
    "word": pa.array([2**16 - 1, None], pa.uint16()),
    "long": pa.array([2**32 - 1, None], pa.uint32()),
    "big": pa.array([2**64 - 1, None], pa.uint64()),
    "text": pa.array(["", None]),
    "day": pa.array([dt.date(2004, 2, 29), None]),
    "time": pa.array([dt.datetime(2004, 2, 29, 1, 2, 3, 456789), None], pa.timestamp("us")),  # noqa: DTZ001
    "single": pa.array([0.1, None], pa.float32()),
    "double": pa.array([0.1, None], pa.float64()),
    "bytes": pa.array([b"\x00\xff", None], pa.binary()),
    "empty": pa.array([None, None], pa.string()),
}


@pytest.mark.parametrize("repeats", [1, 5_000])
@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_types_and_nulls_survive(repeats: int, compression: ParquetCompression, tmp_path: Path) -> None:
    rows = pa.RecordBatch.from_pydict(COLUMNS)
    rows = pa.concat_batches([rows] * repeats)
    data = encode_parquet(rows, compression, {"int"})
    read = pq.read_table(pa.BufferReader(data))
    assert read.schema.equals(rows.schema)
    assert read.equals(pa.Table.from_batches([rows]))
    assert pq.read_metadata(pa.BufferReader(data)).row_group(0).column(0).compression == compression.upper()
    (tmp_path / "part.parquet").write_bytes(data)
    assert pl.read_parquet(tmp_path / "part.parquet").rows() == [
        tuple(row.values()) for row in rows.to_pylist()
    ]
    with duckdb.connect() as connection:
        found = connection.sql(f"SELECT * FROM '{tmp_path}/part.parquet'").fetchall()  # noqa: S608
    assert found == [tuple(row.values()) for row in rows.to_pylist()]


def test_a_type_that_parquet_lacks_comes_back_by_its_arrow_schema() -> None:
    """Types that it has do without the schema's kilobyte."""
    for kind, stored in ((pa.timestamp("us"), False), (pa.string(), False), (pa.large_string(), True)):
        rows = pa.RecordBatch.from_pydict({"x": pa.array([None], kind)})
        data = encode_parquet(rows)
        assert pq.read_schema(pa.BufferReader(data)).equals(rows.schema)
        metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
        assert (b"ARROW:schema" in metadata) == stored


def test_equal_rows_give_equal_bytes_however_they_lie_in_memory() -> None:
    rows = pa.RecordBatch.from_pydict({"n": range(10_000), "t": [f"t{n % 7}" for n in range(10_000)]})
    for start, length in ((0, 10_000), (77, 500)):
        part = rows.slice(start, length)
        copy = pa.RecordBatch.from_pylist(part.to_pylist(), schema=rows.schema)
        assert encode_parquet(part).equals(encode_parquet(copy))


def test_a_large_part_lets_readers_skip_row_groups_by_its_order() -> None:
    rows = pa.RecordBatch.from_pydict({"k": range(300_000), "v": [1] * 300_000})
    metadata = pq.read_metadata(pa.BufferReader(encode_parquet(rows, ordered_by={"k"})))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [131_072, 131_072, 37_856]
    assert [group.column(0).statistics.min for group in groups] == [0, 131_072, 262_144]
    assert groups[0].column(1).statistics is None


def test_only_columns_whose_values_repeat_have_a_dictionary() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "key": pa.array([f"S{number}" for number in range(20_000)]),
            "line": pa.array(["Planes", "Ships", None, "Trains"] * 5_000),
            "price": pa.array([decimal.Decimal(number) for number in range(20_000)], pa.decimal128(10, 2)),
            "stock": pa.array([number % 3_000 for number in range(20_000)], pa.int16()),
        }
    )
    group = pq.read_metadata(pa.BufferReader(encode_parquet(rows))).row_group(0)
    columns = {group.column(position).path_in_schema: group.column(position) for position in range(4)}
    assert {name for name, column in columns.items() if column.has_dictionary_page} == {"line", "stock"}
