"""Partitioned files: one table for every reader, whatever stands in the partition column."""

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io.manifest import TRAINING_FOLDER, count_published, open_training, read_manifest
from beamrec.io.partitioned import WriteTrainingFiles, write_dead_letters, write_partitions
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.ranges import SourceSnapshot

HOSTILE = [
    "a b",
    "ü/%",
    "x=y",
    "..",
    "'q\"",
    "a&b#c?d",
    "*",
    "ß🚗",
    " lead",
    "C:\\x",
    "__HIVE_DEFAULT_PARTITION__ ",
]


def snapshot(rows: int) -> SourceSnapshot:
    """A snapshot of a table `stars` with so many rows."""
    types = {"k": "int32", "v": "string"}
    return SourceSnapshot("sqlite", "one", "2026-11-22T07:59:59.999+00:00", {"stars": rows}, types)


def letter(position: int = 1, first_seen: str = "2026-11-22T07:59:59.999+00:00") -> DeadLetter:
    """A dead letter with a payload that is not UTF-8."""
    source = {"system": "sqlite", "name": "stars", "position": position}
    return DeadLetter("validate", "null_key", "expected é, got NULL", b"\xff\n", source, first_seen)


def write(
    output: Path, batches: list[pa.RecordBatch], letters: list[Any], rows: int, allowed: float = 1
) -> None:
    """Runs the sink."""
    sink = WriteTrainingFiles(str(output), "run", "stars", "k", allowed, {"shop": "films"})
    with TestPipeline() as pipeline:
        _ = {
            "examples": pipeline | "b" >> beam.Create(batches),
            "dead_letters": pipeline | "l" >> beam.Create(letters),
            "snapshot": pipeline | "s" >> beam.Create([snapshot(rows)]),
        } | sink


def batch(keys: list[int], values: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"k": pa.array(keys, pa.int32()), "v": pa.array(values, pa.string())})


def test_one_file_per_value_without_the_partition_column(tmp_path: Path) -> None:
    files = write_partitions(batch([2, 1, 2], ["b", "a", "c"]), "k", tmp_path)
    assert [(file.partition, file.rows) for file in files] == [("k=1", 1), ("k=2", 2)]
    table = pq.ParquetFile(tmp_path / files[1].path)
    assert table.read().to_pydict() == {"v": ["b", "c"]}
    assert table.metadata.row_group(0).column(0).compression == "SNAPPY"
    assert (tmp_path / files[1].path).stat().st_size == files[1].bytes


def test_names_are_made_of_the_content(tmp_path: Path) -> None:
    first = write_partitions(batch([1, 2], ["a", "b"]), "k", tmp_path / "1")
    second = write_partitions(batch([2, 1], ["X", "a"]), "k", tmp_path / "2")
    assert first[0] == second[0]
    assert first[1].path != second[1].path


def test_no_rows_give_no_files(tmp_path: Path) -> None:
    assert write_partitions(batch([], []), "k", tmp_path) == []


def test_all_readers_see_text_partitions_with_any_characters(tmp_path: Path) -> None:
    rows = pa.RecordBatch.from_pydict({"k": HOSTILE, "n": pa.array(range(len(HOSTILE)), pa.int16())})
    write_partitions(rows, "k", tmp_path)
    folder = str(tmp_path / TRAINING_FOLDER)
    expected = sorted(zip(HOSTILE, range(len(HOSTILE)), strict=True))
    by_arrow = ds.dataset(folder, partitioning="hive").to_table().to_pylist()
    assert sorted((row["k"], row["n"]) for row in by_arrow) == expected
    assert sorted(pl.read_parquet(folder).select("k", "n").rows()) == expected
    with duckdb.connect() as connection:
        sql = f"SELECT k, n FROM read_parquet('{folder}/**/*.parquet')"  # noqa: S608
        assert sorted(connection.sql(sql).fetchall()) == expected


def test_types_and_nulls_survive(tmp_path: Path) -> None:
    columns = {
        "k": pa.array([1, 1], pa.int32()),
        "money": pa.array([decimal.Decimal("99999999.99"), None], pa.decimal128(10, 2)),
        "small": pa.array([-(2**15), None], pa.int16()),
        "big": pa.array([2**64 - 1, None], pa.uint64()),
        "text": pa.array(["", None]),
        "day": pa.array([dt.date(2004, 2, 29), None]),
        "bytes": pa.array([b"\x00", None]),
        "empty": pa.array([None, None], pa.string()),
    }
    rows = pa.RecordBatch.from_pydict(columns)
    (file,) = write_partitions(rows, "k", tmp_path)
    read = pq.ParquetFile(tmp_path / file.path).read()
    assert read.schema.remove_metadata() == rows.drop_columns(["k"]).schema
    assert read.to_pylist() == rows.drop_columns(["k"]).to_pylist()


def test_dead_letters_are_filed_by_the_hour_they_were_first_seen(tmp_path: Path) -> None:
    file = write_dead_letters([letter(1), letter(2)], tmp_path)
    assert file.path.startswith("errors/validate/year=2026/month=11/day=22/hour=07/part-")
    data = (tmp_path / file.path).read_bytes()
    assert data.endswith(b"\n")
    records = [json.loads(line) for line in data.splitlines()]
    assert [record["source"]["position"] for record in records] == [1, 2]
    assert records[0]["payload"] == "/wo="
    assert file.rules == {"null_key": 2}
    later = write_dead_letters(
        [letter(1, "2027-01-01T00:00:00Z"), letter(2, "2027-01-01T00:00:00Z")], tmp_path
    )
    assert later.content == file.content
    assert write_dead_letters([letter(3)], tmp_path).content != file.content


def test_the_sink_publishes_rows_and_letters_with_their_account(tmp_path: Path) -> None:
    write(tmp_path, [batch([1, 2], ["a", None]), batch([3], ["c"])], [[letter()]], rows=4)
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None
    assert (manifest.records_in, manifest.rows, manifest.letters, manifest.partitions) == (4, 3, 1, 3)
    assert count_published(str(tmp_path)) == (3, {"stars": 1})
    table = open_training(str(tmp_path)).to_table()
    assert table.schema.field("k").type == pa.int32()
    assert sorted(zip(*table.select(["k", "v"]).to_pydict().values(), strict=True)) == [
        (1, "a"),
        (2, None),
        (3, "c"),
    ]


def test_a_record_without_a_fate_is_an_error_and_nothing_is_published(tmp_path: Path) -> None:
    for rows in (2, 4):
        with pytest.raises(BadDataError, match=f"the snapshot holds {rows} ratings, 3 became training rows"):
            write(tmp_path, [batch([1, 2, 3], ["a", "b", "c"])], [], rows=rows)
    assert read_manifest(str(tmp_path)) is None
    assert not (tmp_path / TRAINING_FOLDER).exists()


def test_too_many_dead_letters_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"1 of 4 ratings are bad \(25.00%; null_key 1\).*at most 24.00%"):
        write(tmp_path, [batch([1, 2, 3], ["a", "b", "c"])], [[letter()]], rows=4, allowed=0.24)
    assert not (tmp_path / TRAINING_FOLDER).exists()
    write(tmp_path, [batch([1, 2, 3], ["a", "b", "c"])], [[letter()]], rows=4, allowed=0.25)


def test_a_published_file_that_is_cut_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, [batch([1], ["a"])], [], rows=1)
    (path,) = tmp_path.glob("**/*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadDataError, match=r"the manifest says \d+ bytes, found \d+"):
        count_published(str(tmp_path))


def test_training_files_that_are_not_there_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run `beamrec batch` first"):
        open_training(str(tmp_path))


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_manifest.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="expected a manifest of format 1 or 2: format 99"):
        read_manifest(str(tmp_path))


def test_the_sink_gives_the_manifest(tmp_path: Path) -> None:
    with TestPipeline() as pipeline:
        manifests = {
            "examples": pipeline | "b" >> beam.Create([batch([1], ["a"])]),
            "dead_letters": pipeline | "l" >> beam.Create([]),
            "snapshot": pipeline | "s" >> beam.Create([snapshot(1)]),
        } | WriteTrainingFiles(str(tmp_path), "run", "stars", "k", 0, {})
        assert_that(manifests | beam.Map(lambda each: (each.run, each.rows)), equal_to([("run", 1)]))
