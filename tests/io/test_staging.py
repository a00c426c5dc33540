"""Staged files: named by their content, written once, dead letters filed by hour."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beamrec.io.formats import FileOptions
from beamrec.io.manifest import DataFile
from beamrec.io.staging import write_dead_letters, write_partitions
from beamrec.io.store import LocalStore
from beamrec.schemas.deadletters import DeadLetter
from beamrec.schemas.shop import RatingsTable, Shop, Table

SHOP = Shop(
    "s", Table("c", "k", "int", ()), Table("p", "film", "int", ()), RatingsTable("r", "k", "film", "v")
)
NOVEMBER, JANUARY = "2026-11-22T07:59:59.999+00:00", "2027-01-01T00:00:00Z"


def batch(keys: list[int], values: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {"k": pa.array(keys, pa.int32()), "film": range(len(keys)), "v": values}
    )


def stage(
    rows: pa.RecordBatch, output: Path, folder: str = "", standing: tuple[DataFile, ...] = ()
) -> list[DataFile]:
    """Stages rows by customer."""
    layout = FileOptions().layout(SHOP)
    known = {file.path: file for file in standing}
    return write_partitions(layout.partitions(rows), layout, LocalStore(output), folder, known)


def letter(position: int, first_seen: str = NOVEMBER) -> DeadLetter:
    """A dead letter with a payload that is not UTF-8."""
    source = {"system": "sqlite", "name": "stars", "position": position}
    return DeadLetter("validate", "null_key", "expected é, got NULL", b"\xff\n", source, first_seen)


def test_one_file_per_value_without_the_partition_column(tmp_path: Path) -> None:
    files = stage(batch([2, 1, 2], ["b", "a", "c"]), tmp_path)
    assert [(file.partition, file.rows) for file in files] == [("k=2", 2), ("k=1", 1)]
    assert pq.ParquetFile(tmp_path / files[0].path).read().to_pydict() == {"film": [0, 2], "v": ["b", "c"]}
    assert (tmp_path / files[0].path).stat().st_size == files[0].bytes


def test_names_are_made_of_the_content(tmp_path: Path) -> None:
    first = stage(batch([1, 2], ["a", "b"]), tmp_path / "1")
    second = stage(batch([1, 2], ["a", "X"]), tmp_path / "2")
    assert first[0] == second[0]
    assert first[1].path != second[1].path


def test_files_come_in_the_order_of_their_partitions_and_each_holds_its_own_rows(tmp_path: Path) -> None:
    keys = list(range(301))
    files = stage(batch(keys, [f"v{key}" for key in keys]), tmp_path, "staged")
    assert [file.partition for file in files] == [f"k={key}" for key in keys]
    for key, file in zip(keys, files, strict=True):
        table = pq.ParquetFile(tmp_path / "staged" / file.path).read()
        assert table.to_pydict() == {"film": [key], "v": [f"v{key}"]}


def test_a_file_that_stands_is_not_written_but_one_of_another_content_is(tmp_path: Path) -> None:
    before = stage(batch([1, 2], ["a", "b"]), tmp_path / "1")
    files = stage(batch([1, 2], ["a", "X"]), tmp_path / "2", standing=tuple(before))
    assert files[0] == before[0]
    assert [path.parent.name for path in (tmp_path / "2").rglob("*.parquet")] == ["k=2"]


def test_no_rows_give_no_files(tmp_path: Path) -> None:
    assert stage(batch([], []), tmp_path) == []


def test_dead_letters_are_filed_by_the_hour_they_were_first_seen(tmp_path: Path) -> None:
    file = write_dead_letters([letter(1), letter(2)], LocalStore(tmp_path), "staged")
    assert file.path.startswith("errors/validate/year=2026/month=11/day=22/hour=07/part-")
    data = (tmp_path / "staged" / file.path).read_bytes()
    assert data.endswith(b"\n")
    records = [json.loads(line) for line in data.splitlines()]
    assert [record["source"]["position"] for record in records] == [1, 2]
    assert records[0]["payload"] == "/wo="
    assert (file.table, file.rules, file.rows) == ("stars", {"null_key": 2}, 2)


def test_letters_are_known_again_by_all_but_their_time(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    file = write_dead_letters([letter(1), letter(2)], store)
    later = write_dead_letters([letter(1, JANUARY), letter(2, JANUARY)], store)
    assert later.content == file.content
    assert later.path != file.path
    assert write_dead_letters([letter(3)], store).content != file.content
