"""Who reads the training files: four table readers and tf.data, from the local disk and from S3."""

import contextlib
import decimal
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from beamrec.io.manifest import TRAINING_FOLDER, open_training, read_manifest
from beamrec.pipelines.batch_training import run
from beamrec.pipelines.console import Console
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.schemas.shop import CLASSICMODELS

COLUMNS = sorted([CLASSICMODELS.partition_column, *CLASSICMODELS.training_columns])
SIZE = ShopSize(customers=30, products=40, ratings=500)
JOIN = (
    f"SELECT {', '.join(f'x.{column}' for column in COLUMNS)} FROM "  # noqa: S608
    "(SELECT c.*, p.*, r.productRating FROM ratings r JOIN customers c USING (customerNumber) "
    "JOIN products p USING (productCode)) x"
)
Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated shop in SQLite."""
    path = tmp_path_factory.mktemp("shop") / "shop.db"
    generate_shop(f"sqlite:///{path}", SIZE)
    return path


def batch(shop: Path, output: str, home: Path, *options: str) -> dict[str, Any]:
    """`beamrec batch`, in this process."""
    return run(["--source", f"sqlite:///{shop}", "--output", output, *options], Console(home=home))


def canonical(rows: Any) -> Rows:
    """Rows in order, with equal numbers as equal text, whatever type a reader gives them."""

    def text(value: Any) -> str | None:
        if isinstance(value, decimal.Decimal | float):
            return f"{value:.2f}"
        return None if value is None else str(value)

    return sorted((tuple(text(value) for value in row) for row in rows), key=repr)


def wanted(shop: Path) -> Rows:
    """What SQL says; SQLite has decimals as floating point numbers."""
    money = [COLUMNS.index(name) for name in ("MSRP", "buyPrice", "creditLimit")]
    with contextlib.closing(sqlite3.connect(shop)) as connection:
        rows = [list(row) for row in connection.execute(JOIN)]
    for row in rows:
        for position in money:
            row[position] = None if row[position] is None else decimal.Decimal(str(row[position]))
    return canonical(rows)


def by_pyarrow(folder: str) -> Rows:
    """As `pyarrow.parquet` reads a folder."""
    return canonical(tuple(row.values()) for row in pq.read_table(folder).select(COLUMNS).to_pylist())


def by_polars(folder: str) -> Rows:
    """As Polars reads a folder."""
    return canonical(pl.read_parquet(folder).select(COLUMNS).rows())


def by_duckdb(folder: str) -> Rows:
    """As DuckDB reads a folder."""
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    with duckdb.connect() as connection:
        sql = f"SELECT {names} FROM read_parquet('{folder}/**/*.parquet')"  # noqa: S608
        return canonical(connection.sql(sql).fetchall())


@pytest.fixture(scope="module")
def by_spark() -> Any:
    """As Spark reads a folder; skipped without Java, in CI a failure."""
    if shutil.which("java") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PySpark needs Java")
    from pyspark.sql import SparkSession

    options = {
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }
    spark = SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
    yield lambda folder: canonical(tuple(row) for row in spark.read.parquet(folder).select(COLUMNS).collect())
    spark.stop()


LAYOUTS = {
    "by customer": (),
    "by country": ("--partition-by", "country"),
    "by two columns": ("--partition-by", "country,customerNumber", "--compression", "zstd"),
    "flat": ("--partition-by", "none"),
    "buckets": ("--buckets", "7"),
    "slices": ("--range-rows", "5"),
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_every_reader_sees_one_table_of_equal_content(
    shop: Path, tmp_path: Path, by_spark: Callable[[str], Rows], options: tuple[str, ...]
) -> None:
    batch(shop, str(tmp_path / "out"), tmp_path / "home", *options)
    folder, expected = str(tmp_path / "out" / TRAINING_FOLDER), wanted(shop)
    assert len(expected) == SIZE.ratings
    for read in (by_pyarrow, by_polars, by_duckdb, by_spark):
        assert read(folder) == expected


def examples(files: list[str], compression: str) -> Rows:
    """Training rows as `tf.data` parses them; NULL is told from an empty text by its presence."""
    import tensorflow as tf

    texts = {"city", "state", "postalCode", "country", "productCode", "productLine", "productScale"}
    floats = {"creditLimit", "buyPrice", "MSRP"}
    kinds = {n: tf.string if n in texts else tf.float32 if n in floats else tf.int64 for n in COLUMNS}
    spec = {name: tf.io.VarLenFeature(kind) for name, kind in kinds.items()}
    rows = []
    for batch_ in tf.data.TFRecordDataset(files, compression_type=compression).batch(1000):
        parsed = tf.io.parse_example(batch_, spec)
        columns = []
        for name in COLUMNS:
            values: list[Any] = [None] * len(batch_)
            for (row, _), value in zip(
                parsed[name].indices.numpy(), parsed[name].values.numpy(), strict=True
            ):
                values[row] = value.decode() if name in texts else value.item()
            columns.append(values)
        rows += zip(*columns, strict=True)
    return canonical(rows)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_tf_data_reads_the_tfrecords(shop: Path, tmp_path: Path, compression: str) -> None:
    options = ("--format", "tfrecord", "--compression", compression)
    result = batch(shop, str(tmp_path / "out"), tmp_path / "home", *options)
    files = sorted(str(path) for path in (tmp_path / "out" / TRAINING_FOLDER).rglob("*.tfrecord*"))
    assert len(files) == result["partitions"]
    assert examples(files, "GZIP" if compression == "gzip" else "") == wanted(shop)


def test_s3_holds_the_same_though_it_refuses_one_request_in_twenty(
    shop: Path, tmp_path: Path, s3: Any
) -> None:
    with s3.faults(0.05):
        result = batch(shop, s3.uri, tmp_path / "home")
        again = batch(shop, s3.uri, tmp_path / "home", "--mode", "incremental")
    assert (result["changes"]["added"], again["changes"]["unchanged"]) == (30, 30)
    table = open_training(s3.uri).to_table()
    assert canonical(tuple(row.values()) for row in table.select(COLUMNS).to_pylist()) == wanted(shop)
    manifest = read_manifest(s3.uri)
    assert manifest is not None
    found = {key.removeprefix("lake/"): size for key, size in s3.objects("lake/").items()}
    of_run = {path: size for path, size in found.items() if not path.startswith("_lease/")}
    assert of_run.pop("_manifest.json") > 0
    assert of_run == manifest.sizes


def test_s3_takes_files_of_multi_part_size(tmp_path: Path, s3: Any) -> None:
    source = tmp_path / "shop.db"
    generate_shop(f"sqlite:///{source}", ShopSize(customers=300, products=400, ratings=40_000))
    options = ("--format", "tfrecord", "--partition-by", "none")
    with s3.faults(0.3):
        batch(source, s3.uri, tmp_path / "home", *options)
    (file,) = (read_manifest(s3.uri) or pytest.fail("no manifest")).files
    assert file.bytes > 8 << 20, "too small for a multi-part upload"
    assert s3.unfinished_uploads() == []
    local = tmp_path / "copy.tfrecord"
    s3.download(f"lake/{file.path}", local)
    assert examples([str(local)], "") == wanted(source)
