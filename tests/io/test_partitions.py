"""Hive partitions: every row in its folder, and folders that every reader gives back."""

import datetime as dt
import decimal
import hashlib
import os
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from beamrec.io.partitions import (
    add_buckets,
    bucket_numbers,
    check_partition_columns,
    check_partition_types,
    split_partitions,
)
from beamrec.schemas.errors import BadDataError, UsageError

HOSTILE = [
    "a b",
    "ü/%",
    "x=y",
    "..",
    ".",
    "'q\"",
    "a&b#c?d",
    "*",
    "ß🚗",
    " lead",
    "trail ",
    "C:\\x",
    "a\x00b\n",
    "NULL",
    "nan",
    "__HIVE_DEFAULT_PARTITION__ ",
    "%2F",
    "u" * 240,
]


def split(batch: pa.RecordBatch, *columns: str) -> dict[str, list[Any]]:
    """Folder → its rows; every folder must come once."""
    pieces = [(folder, rows.to_pylist()) for folder, rows in split_partitions(batch, columns)]
    assert len(dict(pieces)) == len(pieces)
    return dict(pieces)


@pytest.mark.parametrize("order", [[1, 1, 2, 2, None], [2, 1, None, 2, 1]])
def test_rows_of_a_partition_keep_their_order_wherever_they_stood(order: list[int | None]) -> None:
    batch = pa.RecordBatch.from_pydict({"k": pa.array(order, pa.int32()), "row": range(5)})
    expected: dict[str, list[Any]] = {}
    for row in batch.to_pylist():
        name = "__HIVE_DEFAULT_PARTITION__" if row["k"] is None else row["k"]
        expected.setdefault(f"k={name}", []).append(row)
    assert split(batch, "k") == expected


def test_several_columns_nest_outermost_first() -> None:
    columns = {"a": ["x", "y", "x", "x"], "b": pa.array([1, 1, 2, 1], pa.uint8()), "row": range(4)}
    found = split(pa.RecordBatch.from_pydict(columns), "b", "a")
    assert {folder: [row["row"] for row in rows] for folder, rows in found.items()} == {
        "b=1/a=x": [0, 3],
        "b=1/a=y": [1],
        "b=2/a=x": [2],
    }


def test_many_columns_of_many_values_are_told_apart() -> None:
    """1,000 values in each of seven columns: the product of their numbers is beyond 64 bits."""
    names = [f"c{number}" for number in range(7)]
    batch = pa.RecordBatch.from_pydict({name: pa.array(range(1000), pa.int64()) for name in names})
    assert len(split(batch, *names)) == 1000


def test_no_columns_are_one_flat_partition_and_no_rows_are_none() -> None:
    batch = pa.RecordBatch.from_pydict({"k": [1, 2]})
    assert split(batch) == {"": batch.to_pylist()}
    assert split(batch.slice(2)) == split(batch.slice(2), "k") == {}


def test_ascii_is_percent_encoded_and_nothing_else() -> None:
    """PySpark 4 reads %C3%9F as two characters: letters beyond ASCII must stand as they are."""
    (folder,) = split(pa.RecordBatch.from_pydict({"k": ["aZ09_.-~ /%:*?=ß🚗"]}), "k")
    assert folder == "k=aZ09_.-~%20%2F%25%3A%2A%3F%3Dß🚗"


def test_all_readers_give_any_text_back(tmp_path: Path) -> None:
    numbers = range(len(HOSTILE) + 1)
    batch = pa.RecordBatch.from_pydict({"k": [*HOSTILE, None], "n": pa.array(numbers, pa.int16())})
    for folder, rows in split_partitions(batch, ["k"]):
        os.makedirs(tmp_path / folder)
        pq.write_table(pa.Table.from_batches([rows]).select(["n"]), tmp_path / folder / "part-0.parquet")
    expected = dict(zip(numbers, [*HOSTILE, None], strict=True))
    by_arrow = ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist()
    assert {row["n"]: row["k"] for row in by_arrow} == expected
    assert dict(pl.read_parquet(tmp_path).select("n", "k").rows()) == expected
    with duckdb.connect() as connection:
        sql = f"SELECT n, k FROM read_parquet('{tmp_path}/**/*.parquet')"  # noqa: S608
        assert dict(connection.sql(sql).fetchall()) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "'' as a partition value reads as NULL"),
        ("__HIVE_DEFAULT_PARTITION__", "reads as NULL"),
        ("ü" * 126, "a folder name of 257 bytes, expected at most 255"),
        ("u" * 251, "a folder name of 256 bytes"),
    ],
)
def test_a_value_that_makes_no_folder_is_bad_data(value: str, message: str) -> None:
    with pytest.raises(BadDataError, match=f"column city: .*{message}.*--buckets"):
        split(pa.RecordBatch.from_pydict({"city": ["ok", value]}), "city")


@pytest.mark.parametrize("name", ["_id", ".id", "a=b", "50%", "a?", "a/b", "a\\b", "a\nb"])
def test_a_column_whose_name_some_reader_misreads_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"--partition-by .* hidden from some readers, or misread"):
        check_partition_columns(["fine", name], "--partition-by")


@pytest.mark.parametrize("name", ["größe", "kunden nr", "a.b", "it's", 'a"b', "a_b", "[a]", "a,b"])
def test_other_names_are_read_by_all(tmp_path: Path, name: str) -> None:
    check_partition_columns([name], "--partition-by")
    for folder, rows in split_partitions(pa.RecordBatch.from_pydict({name: [1, 2], "n": [3, 4]}), [name]):
        os.makedirs(tmp_path / folder)
        pq.write_table(pa.Table.from_batches([rows]).select(["n"]), tmp_path / folder / "part-0.parquet")
    assert sorted(pl.read_parquet(tmp_path).select(name, "n").rows()) == [(1, 3), (2, 4)]
    rows = ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist()
    assert sorted(row[name] for row in rows) == [1, 2]
    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT * FROM read_parquet('{tmp_path}/**/*.parquet')")  # noqa: S608
        assert relation.columns == ["n", name]


def test_only_types_that_come_back_exactly_make_folders() -> None:
    batch = pa.RecordBatch.from_pydict(
        {
            "day": [dt.date(2004, 2, 29)],
            "small": pa.array([-5], pa.int8()),
            "money": [decimal.Decimal("1.50")],
            "share": [0.1],
            "raw": [b"x"],
        }
    )
    check_partition_types(batch.schema, ["day", "small"], "--partition-by")
    assert list(split(batch, "day", "small")) == ["day=2004-02-29/small=-5"]
    for column in ("money", "share", "raw"):
        with pytest.raises(UsageError, match=f"--partition-by {column}: expected integers, text or dates"):
            check_partition_types(batch.schema, ["day", column], "--partition-by")


@pytest.mark.parametrize("kind", [pa.int16(), pa.uint32(), pa.int64(), pa.string()])
def test_the_bucket_of_a_key_is_its_md5_whatever_its_type(kind: pa.DataType) -> None:
    keys = [103, 7, 103, 30_000]
    expected = [int(hashlib.md5(str(key).encode()).hexdigest()[:8], 16) % 64 for key in keys]  # noqa: S324
    array = pa.array([str(key) for key in keys]) if kind == pa.string() else pa.array(keys, kind)
    assert bucket_numbers(array, 64).tolist() == expected == [26, 31, 26, 49]


def test_a_database_says_the_same_bucket() -> None:
    keys = ["ß🚗", "", "103", " x"]
    with duckdb.connect() as connection:
        rows = [
            connection.execute("SELECT ('0x' || left(md5(?), 8))::BIGINT % 1000", [key]).fetchone()
            for key in keys
        ]
    assert bucket_numbers(pa.array(keys), 1000).tolist() == [row[0] for row in rows if row]


def test_customers_spread_evenly_over_buckets() -> None:
    counts = [0] * 64
    for number in bucket_numbers(pa.array(range(64_000)), 64):
        counts[number] += 1
    assert 850 < min(counts) <= max(counts) < 1150


@pytest.mark.parametrize(("buckets", "width"), [(1, 3), (64, 3), (1000, 3), (1001, 4)])
def test_bucket_names_have_one_width(buckets: int, width: int) -> None:
    names = add_buckets(pa.RecordBatch.from_pydict({"k": range(500)}), "k", buckets).column("bucket")
    assert {len(name) for name in names.to_pylist()} == {width}
    assert {int(name) for name in names.to_pylist()} <= set(range(buckets))
