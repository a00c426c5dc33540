"""The manifest: read back as it was written, whatever version wrote it, and exact for its readers."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamrec.io.manifest import (
    MANIFEST,
    TRAINING_FOLDER,
    DataFile,
    ExtraFile,
    LetterFile,
    Manifest,
    changes_between,
    count_published,
    open_training,
    pack_files,
    read_manifest,
    unpack_files,
)
from beamrec.io.store import open_store
from beamrec.schemas.errors import BadDataError, UsageError

# As version 0.1.0 wrote it.
FORMAT_1 = """{
 "run": "batch-1",
 "system": "sqlite",
 "snapshot": "one connection",
 "taken_at": "2026-11-22T07:59:59.999+00:00",
 "counts": {
  "ratings": 3,
  "customers": 2,
  "products": 2
 },
 "records_in": 3,
 "partition_column": "k",
 "types": {
  "k": "int32",
  "v": "string"
 },
 "options": {
  "shop": "films"
 },
 "files": [
  {
   "path": "ratings_ml_training/k=1/part-0123456789abcdef.parquet",
   "partition": "1",
   "rows": 2,
   "bytes": 40,
   "sha256": "0123456789abcdef"
  }
 ],
 "dead_letters": [
  {
   "path": "errors/validate/year=2026/part-fedcba9876543210.jsonl",
   "rows": 1,
   "bytes": 7,
   "sha256": "ff",
   "content": "fedcba9876543210",
   "rules": {
    "null_key": 1
   }
  }
 ],
 "code_version": "0.1.0",
 "format": 1
}
"""


def manifest(**changes: Any) -> Manifest:
    """A manifest of two files, one file of dead letters and a report."""
    values: dict[str, Any] = {
        "run": "run",
        "system": "sqlite",
        "snapshot": "one",
        "taken_at": "t0",
        "counts": {"stars": 4, "people": 2},
        "records_in": 4,
        "partition_columns": ("k", "ü/ [}, {"),
        "types": {"k": "int32"},
        "options": {"partition_by": ("k", "l")},
        "files": (DataFile("a/1", "k=1", 1, 1, "aa"), DataFile('a/"2}, {', "k=2", 2, 2, "bb")),
        "dead_letters": (LetterFile("e/1", 1, 1, "cc", "dd", {"null_key": 1}, "stars"),),
        "extras": (ExtraFile("_report.json", 3, "ee"),),
        "mode": "incremental",
        "changes": {"added": 2},
        "accounts": {"stars": {"in": 4, "out": 3, "dead_letters": 1}},
    }
    return Manifest(**{**values, **changes})


def publish_table(uri: str, table: pa.Table, **changes: Any) -> None:
    """Puts a table in place as one file, with its manifest."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data, partition = sink.getvalue(), changes.pop("partition", "")
    path = f"{TRAINING_FOLDER}/{partition}/part-00ff.parquet".replace("//", "/")
    store = open_store(uri)
    store.put(path, data)
    file = DataFile(path, partition, len(table), data.size, hashlib.sha256(data).hexdigest())
    made = manifest(**{"files": (file,), "dead_letters": (), "extras": (), **changes})
    store.put(MANIFEST, made.to_json())


def test_it_reads_back_as_it_was_written() -> None:
    made = manifest()
    read = Manifest.from_json(made.to_json(), "here")
    assert read == Manifest(**{**vars(made), "options": {"partition_by": ["k", "l"]}})
    assert read.to_json() == made.to_json()
    assert (
        manifest(files=(), dead_letters=(), extras=()).to_json()
        == json.dumps(
            json.loads(manifest(files=(), dead_letters=(), extras=()).to_json()), ensure_ascii=False, indent=1
        ).encode()
        + b"\n"
    )


def test_a_file_has_a_line_of_its_own() -> None:
    lines = manifest().to_json().decode().splitlines()
    assert sum('"path": ' in line or '"path":' in line for line in lines) == 4


def test_format_1_is_still_read() -> None:
    read = Manifest.from_json(FORMAT_1.encode(), "here")
    assert read.partition_columns == ("k",)
    assert read.files[0].partition == "k=1"
    assert (read.format, read.file_format, read.buckets, read.extras) == (2, "parquet", 0, ())
    assert (read.rows, read.letters, read.partitions, read.dead_letters[0].table) == (2, 1, 1, "")


@pytest.mark.parametrize(
    "data", ["{}", "[]", "{", '{"format": 99}', '{"format": 2, "run": 1}', '{"format": 1}']
)
def test_anything_else_is_refused(data: str) -> None:
    with pytest.raises(UsageError, match=r"here: expected a manifest of format 1 or 2"):
        Manifest.from_json(data.encode(), "here")


def test_data_is_the_same_whoever_wrote_it_and_when() -> None:
    read = Manifest.from_json(manifest().to_json(), "here")
    extras = tuple(ExtraFile(extra.path, 1, "another") for extra in read.extras)
    other = {"run": "2", "taken_at": "t1", "mode": "overwrite", "changes": {}, "extras": extras}
    assert read.same_data(manifest(**other))
    for name in ("options", "counts", "files", "dead_letters", "extras"):
        assert not read.same_data(manifest(**{name: type(getattr(read, name))()})), name
    assert not read.same_data(manifest(buckets=2))


def test_changes_are_counted_by_partition() -> None:
    def of(*files: tuple[str, str]) -> Manifest:
        return manifest(files=tuple(DataFile(f"{k}/{name}", k, 1, 1, name) for k, name in files))

    old = of(("1", "a"), ("2", "b"), ("2", "c"), ("3", "d"))
    new = of(("1", "a"), ("2", "b"), ("4", "e"))
    assert changes_between(old, new) == {"added": 1, "rewritten": 1, "unchanged": 1, "removed": 1}
    assert changes_between(None, new) == {"added": 3, "rewritten": 0, "unchanged": 0, "removed": 0}


@pytest.mark.parametrize("where", ["local", "s3", "gcs"])
def test_hive_columns_come_last_in_their_own_types(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found: Any = str(tmp_path) if where == "local" else request.getfixturevalue(where)
    uri = str(getattr(found, "uri", found))
    publish_table(
        uri,
        pa.table({"v": ["a", "b"]}),
        partition="country=Fran%C3%A7a%2F/year=2003",
        partition_columns=("country", "year"),
        types={"country": "string", "year": "int16", "v": "string"},
    )
    table = open_training(uri).to_table()
    assert table.schema.remove_metadata() == pa.schema(
        {"v": pa.string(), "country": pa.string(), "year": pa.int16()}
    )
    assert table.to_pylist()[1] == {"v": "b", "country": "França/", "year": 2003}


def test_the_folders_of_buckets_are_no_column(tmp_path: Path) -> None:
    table = pa.table({"k": pa.array([1, 2], pa.int32()), "v": ["a", "b"]})
    publish_table(str(tmp_path), table, partition="bucket=07", partition_columns=("bucket",), buckets=64)
    assert open_training(str(tmp_path)).to_table().equals(table)


def test_a_flat_folder_has_no_columns_beside_those_of_its_files(tmp_path: Path) -> None:
    table = pa.table({"k": pa.array([1, 2], pa.int32()), "v": ["a", "b"]})
    publish_table(str(tmp_path), table, partition_columns=())
    assert open_training(str(tmp_path)).to_table().equals(table)


def test_files_that_are_not_parquet_say_what_to_run(tmp_path: Path) -> None:
    publish_table(str(tmp_path), pa.table({"v": [1]}), partition_columns=(), file_format="tfrecord")
    with pytest.raises(UsageError, match=r"expected Parquet files, found tfrecord; train reads Parquet"):
        open_training(str(tmp_path))


def test_letters_are_counted_by_table_and_by_the_files(tmp_path: Path) -> None:
    store, letters = open_store(str(tmp_path)), []
    for table, lines in (("stars", 2), ("stars", 1), ("people", 3)):
        data = b"{}\n" * lines
        store.put(f"errors/{len(letters)}.jsonl", data)
        path = f"errors/{len(letters)}.jsonl"
        # Rows that the manifest says are not believed.
        letters.append(LetterFile(path, 99, len(data), "", "", {}, table))
    publish_table(str(tmp_path), pa.table({"v": [1, 2]}), dead_letters=tuple(letters))
    counted = count_published(str(tmp_path))
    assert counted.rows == 2
    assert dict(counted.letters) == {"stars": 3, "people": 3}
    store.discard("errors/1.jsonl")
    with pytest.raises(BadDataError, match=r"errors/1.jsonl: the manifest says 3 bytes, found none"):
        count_published(str(tmp_path))


def test_nothing_published_is_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path)) is None
    with pytest.raises(BadDataError, match="found none"):
        count_published(str(tmp_path))


def test_packed_files_are_the_files() -> None:
    files = [
        DataFile(f"{TRAINING_FOLDER}/c={n}/part-{n:016}.parquet", f"c={n}", n, 9 * n, "é") for n in range(99)
    ]
    assert unpack_files(pack_files(files)) == files
    assert unpack_files(pack_files([])) == []
