"""The bounded pipeline against plain SQL answers, on SQLite and on a real MariaDB server."""

import base64
import contextlib
import datetime as dt
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io import sql
from beamrec.io.manifest import MANIFEST, open_training, read_manifest
from beamrec.io.sql import read_ratings
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.batch_training import build, run
from beamrec.pipelines.cli import main as cli
from beamrec.pipelines.console import Console
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.ranges import RatingsRange
from beamrec.schemas.shop import CLASSICMODELS

COLUMNS = (*CLASSICMODELS.training_columns, CLASSICMODELS.partition_column)
JOIN = (
    "SELECT c.city, c.state, c.postalCode, c.country, c.creditLimit, p.productCode, p.productLine, "
    "p.productScale, p.quantityInStock, p.buyPrice, p.MSRP, r.productRating, r.customerNumber "
    "FROM ratings r JOIN customers c ON c.customerNumber = r.customerNumber "
    "JOIN products p ON p.productCode = r.productCode"
)
MONEY = pa.decimal128(10, 2)
TEXT = pa.string()
TYPES = [TEXT, TEXT, TEXT, TEXT, MONEY, TEXT, TEXT, TEXT, pa.int16(), MONEY, MONEY, pa.int32()]
Rows = Sequence[tuple[Any, ...]]


def ordered(rows: Rows) -> list[tuple[Any, ...]]:
    """Rows by customer and product."""
    return sorted(rows, key=lambda row: (row[-1], row[5]))


def by_arrow(folder: Path) -> Rows:
    """The folder as pyarrow reads it, its types checked."""
    table = pq.read_table(folder)
    assert table.schema.names == list(COLUMNS)
    assert table.schema.types[:-1] == TYPES
    keys = table.column(COLUMNS[-1]).combine_chunks()
    table = table.set_column(len(TYPES), COLUMNS[-1], keys.cast(pa.int32()))
    return [tuple(row.values()) for row in table.to_pylist()]


def by_duckdb(folder: Path) -> Rows:
    """The folder as DuckDB reads it, its types checked."""
    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT * FROM read_parquet('{folder}/**/*.parquet')")  # noqa: S608
        assert relation.columns == list(COLUMNS)
        text, money = "VARCHAR", "DECIMAL(10,2)"
        types = [text] * 4 + [money] + [text] * 3 + ["SMALLINT", money, money, "INTEGER", "BIGINT"]
        assert [str(type_) for type_ in relation.types] == types
        return relation.fetchall()


def by_polars(folder: Path) -> Rows:
    """The folder as Polars reads it, its types checked."""
    table = pl.read_parquet(folder)
    assert table.columns == list(COLUMNS)
    text, money = pl.String(), pl.Decimal(10, 2)
    types = [text] * 4 + [money] + [text] * 3 + [pl.Int16(), money, money, pl.Int32(), pl.Int64()]
    assert table.dtypes == types
    return table.rows()


def batch(source: str, output: Path, *options: str) -> dict[str, Any]:
    """`beamrec batch`, in this process."""
    return run(["--source", source, "--output", str(output), *options], Console(home=output / "home"))


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file below a folder."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("source_password")
def test_classicmodels_equals_the_sql_join_for_every_reader(
    mariadb: Any, classicmodels: str, tmp_path: Path
) -> None:
    result = batch(mariadb.uri(classicmodels), tmp_path)
    assert (result["in"], result["out"], result["dead_letters"]) == (2532, 2532, 0)
    assert result["partitions"] == 98
    assert result["reconciled"] is True
    folder = tmp_path / "ratings_ml_training"
    assert len(list(folder.iterdir())) == 98
    expected = ordered(mariadb.execute(JOIN, database=classicmodels))
    assert len(expected) == 2532
    for read in (by_arrow, by_duckdb, by_polars):
        assert ordered(read(folder)) == expected
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None
    assert manifest.counts == {"ratings": 2532, "customers": 122, "products": 110}
    assert "CONSISTENT SNAPSHOT" in manifest.snapshot


@pytest.fixture
def with_nulls(mariadb: Any, classicmodels: str) -> str:
    """A copy of classicmodels with NULL and empty strings in every feature that may hold them."""
    tables = [
        f"CREATE TABLE {name} AS SELECT * FROM {classicmodels}.{name}"  # noqa: S608
        for name in ("customers", "products", "ratings")
    ]
    mariadb.execute("DROP DATABASE IF EXISTS copy", "CREATE DATABASE copy CHARACTER SET utf8mb4")
    mariadb.execute(
        *tables,
        "ALTER TABLE customers MODIFY city varchar(50), MODIFY country varchar(50)",
        "ALTER TABLE products MODIFY productLine varchar(50), MODIFY productScale varchar(10), "
        "MODIFY quantityInStock smallint, MODIFY buyPrice decimal(10,2), MODIFY MSRP decimal(10,2)",
        "INSERT INTO customers (customerNumber, customerName, contactLastName, contactFirstName, phone, "
        "addressLine1, city, state, postalCode, country, creditLimit) VALUES "
        "(9001, '', '', '', '', '', NULL, NULL, NULL, NULL, NULL), "
        "(9002, '', '', '', '', '', '', '', '', '', 0), "
        "(9003, '', '', '', '', '', 'Malmö 🚗', ' ', 'x', 'Norway  ', -99999999.99)",
        "INSERT INTO products VALUES ('S0', '', NULL, NULL, '', '', NULL, NULL, NULL), "
        "('S1', '', '', '', '', '', -32768, 0.00, 99999999.99)",
        "INSERT INTO ratings VALUES "
        "(9001, 'S0', 1), (9001, 'S1', 2), (9002, 'S0', 3), (9002, 'S1', 4), (9003, 'S1', 5)",
        database="copy",
    )
    return "copy"


@pytest.mark.usefixtures("source_password")
def test_null_and_empty_stay_apart_for_every_reader(mariadb: Any, with_nulls: str, tmp_path: Path) -> None:
    assert batch(mariadb.uri(with_nulls), tmp_path)["partitions"] == 101
    expected = ordered(mariadb.execute(JOIN, database=with_nulls))
    assert (None,) * 5 + ("S0",) + (None,) * 5 + (1, 9001) in expected
    assert ("", "", "", "") in {row[:4] for row in expected}
    for read in (by_arrow, by_duckdb, by_polars):
        assert ordered(read(tmp_path / "ratings_ml_training")) == expected


@pytest.mark.usefixtures("source_password")
def test_a_user_who_may_only_read_suffices(mariadb: Any, classicmodels: str, tmp_path: Path) -> None:
    mariadb.execute(
        "CREATE OR REPLACE USER reader@'%'",
        f"GRANT SELECT ON {classicmodels}.* TO reader@'%'",
        f"SET PASSWORD FOR reader@'%' = PASSWORD('{os.environ['BEAMREC_SOURCE_PASSWORD']}')",
    )
    assert batch(mariadb.uri(classicmodels, "reader"), tmp_path)["out"] == 2532


@pytest.mark.usefixtures("source_password")
def test_mysql_and_sqlite_give_the_same_files(mariadb: Any, tmp_path: Path) -> None:
    mariadb.execute("CREATE OR REPLACE DATABASE made CHARACTER SET utf8mb4")
    size = ShopSize(customers=40, products=30, ratings=300, bad=3)
    paths = {}
    for name, uri in (("a", mariadb.uri("made")), ("b", f"sqlite:///{tmp_path}/shop.db")):
        generate_shop(uri, size)
        batch(uri, tmp_path / name, "--range-rows", "50")
        manifest = read_manifest(str(tmp_path / name))
        assert manifest is not None
        assert manifest.letters == 3
        paths[name] = (manifest.files, manifest.types, manifest.counts, manifest.rules)
    assert paths["a"] == paths["b"]


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """A small shop in SQLite with 4 bad ratings of 400."""
    uri = f"sqlite:///{tmp_path}/shop.db"
    generate_shop(uri, ShopSize(customers=40, products=30, ratings=396, bad=4))
    return uri


def change(uri: str, statement: str) -> None:
    """Changes an SQLite database."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(statement)


def test_bad_ratings_are_dead_letters_with_their_rule_and_row(shop: str, tmp_path: Path) -> None:
    result = batch(shop, tmp_path / "out")
    assert (result["in"], result["out"], result["dead_letters"]) == (400, 396, 4)
    (hour,) = (tmp_path / "out" / "errors" / "validate").glob("year=*/month=*/day=*/hour=*")
    letters = [json.loads(line) for path in hour.iterdir() for line in path.read_bytes().splitlines()]
    rules = sorted(letter["error_type"] for letter in letters)
    assert rules == ["rating_out_of_range"] * 2 + ["unknown_customer", "unknown_product"]
    for letter in letters:
        row = json.loads(base64.b64decode(letter["payload"]))
        assert sorted(row) == ["customerNumber", "productCode", "productRating"]
        assert letter["source"]["system"] == "sqlite"
        assert letter["source"]["position"]["productCode"] == row["productCode"]
        seen = dt.datetime.fromisoformat(letter["first_seen"])
        assert f"hour={seen.hour:02}" == hour.name


def test_too_much_bad_data_ends_with_code_3_and_publishes_nothing(
    shop: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    argv = ["batch", "--source", shop, "--output", str(output), "--home", str(tmp_path / "home"), "--json"]
    assert cli([*argv, "--max-bad-fraction", "0.0099"]) == 3
    printed = capfd.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["ok"] is False
    assert "4 of 400 ratings are bad (1.00%" in result["error"]
    assert list(output.iterdir()) == []
    assert cli([*argv, "--max-bad-fraction", "0.01"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (result["ok"], result["out"], result["dead_letters"]) == (True, 396, 4)


def test_a_run_that_fails_leaves_the_previous_data(shop: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    batch(shop, output)
    before = files(output)
    change(shop, "UPDATE ratings SET productRating = 9")
    with pytest.raises(BadDataError, match="nothing was published"):
        batch(shop, output)
    assert files(output) == before


def test_running_twice_changes_nothing(shop: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = batch(shop, output, "--mode", "incremental")
    before = files(output)
    second = batch(shop, output, "--mode", "incremental")
    assert files(output) == before
    assert second["changes"] == {"added": 0, "rewritten": 0, "unchanged": 40, "removed": 0}
    of_a_run = ("seconds", "changes")
    assert {k: v for k, v in first.items() if k not in of_a_run} == {
        k: v for k, v in second.items() if k not in of_a_run
    }


def test_overwriting_mends_what_a_size_does_not_show(shop: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = batch(shop, output)
    good = files(output / "ratings_ml_training")
    path = min((output / "ratings_ml_training").rglob("*.parquet"))
    path.write_bytes(bytes(len(path.read_bytes())))
    letters = files(output / "errors")
    second = batch(shop, output)
    assert second["changes"] == {"added": 0, "rewritten": 0, "unchanged": 40, "removed": 0}
    assert {k: v[0] for k, v in files(output / "ratings_ml_training").items()} == {
        k: v[0] for k, v in good.items()
    }
    assert files(output / "errors") == letters, "letters keep the time that they were first seen"
    assert first["dead_letters"] == second["dead_letters"] == 4
    manifest = read_manifest(str(output))
    assert manifest is not None
    for file in (*manifest.files, *manifest.dead_letters):
        assert hashlib.sha256((output / file.path).read_bytes()).hexdigest() == file.sha256


def test_a_change_in_the_source_is_all_that_changes(shop: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    batch(shop, output, "--mode", "incremental")
    before = files(output / "ratings_ml_training")
    change(shop, "UPDATE ratings SET productRating = 6 - productRating WHERE customerNumber = 106")
    change(shop, "DELETE FROM ratings WHERE customerNumber = 109")
    batch(shop, output, "--max-bad-fraction", "0.05", "--mode", "incremental")
    changed = set(files(output / "ratings_ml_training").items()) ^ set(before.items())
    assert {Path(path).parent.name for path, _ in changed} == {"customerNumber=106", "customerNumber=109"}
    assert not (output / "ratings_ml_training" / "customerNumber=109").exists()


@pytest.mark.parametrize("range_rows", ["1", "7", "60", "1000000"])
def test_the_size_of_a_range_changes_no_row_and_only_the_files_of_larger_partitions(
    shop: str, tmp_path: Path, range_rows: str
) -> None:
    batch(shop, tmp_path / "reference")
    batch(shop, tmp_path / "out", "--range-rows", range_rows)
    one, other = (read_manifest(str(tmp_path / name)) for name in ("reference", "out"))
    assert one is not None
    assert other is not None
    small = {each.partition for each in one.files if each.rows <= int(range_rows)}
    assert {e.path for e in one.files if e.partition in small} <= {e.path for e in other.files}
    assert one.rules == other.rules
    rows = [ordered(by_polars(tmp_path / name / "ratings_ml_training")) for name in ("reference", "out")]
    assert rows[0] == rows[1]


def test_a_run_killed_while_it_stages_leaves_whole_data_and_the_next_one_no_orphan(tmp_path: Path) -> None:
    uri, output = f"sqlite:///{tmp_path}/shop.db", tmp_path / "out"
    generate_shop(uri, ShopSize(customers=300, products=60, ratings=4_000))
    batch(uri, output)
    reference = open_training(str(output)).to_table().num_rows
    argv = ["--source", uri, "--output", str(output), "--home", str(tmp_path / "home")]
    command = [sys.executable, "-m", "beamrec.pipelines.batch_training", *argv]
    for _ in range(20):  # on a busy machine it may be done before it is killed
        change(uri, "UPDATE ratings SET productRating = 6 - productRating")
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(output.glob("_staging/*/ratings_ml_training/*")) and process.poll() is None:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if list(output.glob("_staging/*")):
            break
    else:
        pytest.fail("killed too late to show anything, or not at all")
    assert open_training(str(output)).to_table().num_rows == reference
    batch(uri, output)
    manifest = read_manifest(str(output))
    assert manifest is not None
    found = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    assert found == manifest.paths | {MANIFEST}
    assert sum(row[11] for row in by_polars(output / "ratings_ml_training")) == sum_of_ratings(uri)


def sum_of_ratings(uri: str) -> int:
    """What SQL says."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        total: int = connection.execute("SELECT SUM(productRating) FROM ratings").fetchone()[0]
        return total


def test_another_shop_runs_from_one_toml_file(tmp_path: Path) -> None:
    """Other names, a text key with every hostile character, a film instead of a product."""
    toml = tmp_path / "films.toml"
    toml.write_text(
        'name = "films"\n'
        '[customers]\nname = "viewers"\nkey = "login"\nkey_type = "string"\n'
        'features = [{column = "town", event_field = "town"}]\n'
        '[products]\nname = "films"\nkey = "id"\nkey_type = "int"\n'
        'features = [{column = "year", kind = "number"}]\n'
        '[ratings]\nname = "stars"\ncustomer = "who"\nproduct = "film"\nrating = "stars"\n'
        "min_rating = 0.5\nmax_rating = 5\n"
    )
    path = tmp_path / "films.db"
    logins = ["a/b", "ü %", "x=y", "Ann", "ann"]
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE viewers (login varchar(9), town text)")
        connection.execute("CREATE TABLE films (id bigint, year smallint)")
        connection.execute("CREATE TABLE stars (who varchar(9), film bigint, stars decimal(2,1))")
        connection.executemany("INSERT INTO viewers VALUES (?, 'T')", [(login,) for login in logins])
        connection.execute("INSERT INTO films VALUES (1, 1999)")
        connection.executemany("INSERT INTO stars VALUES (?, 1, 4.5)", [(login,) for login in logins])
    result = batch(f"sqlite:///{path}", tmp_path / "out", "--shop", str(toml))
    assert result["partitions"] == 5
    table = pl.read_parquet(tmp_path / "out" / "ratings_ml_training")
    assert table.columns == ["town", "id", "year", "stars", "login"]
    assert sorted(table["login"].to_list()) == sorted(logins)
    assert {str(stars) for stars in table["stars"].to_list()} == {"4.5"}


def test_the_graph_publishes_by_itself(shop: str, tmp_path: Path) -> None:
    config = BatchConfig(shop, str(tmp_path / "out"), CLASSICMODELS, "run-1", max_bad_fraction=0.01)
    with TestPipeline() as pipeline:
        manifests = build(pipeline, config)
        assert_that(manifests | beam.Map(lambda each: (each.run, each.rows)), equal_to([("run-1", 396)]))
    assert open_training(str(tmp_path / "out")).count_rows() == 396


def test_a_range_is_written_before_the_next_one_is_read(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read, join, sort and write are one fused stage, or memory would grow with the ratings."""
    staged: list[int] = []

    def watching(*arguments: Any) -> Iterator[Any]:
        for part in read_ratings(*arguments):
            if isinstance(part, RatingsRange) and part.ratings.num_rows:
                staged.append(len(list((tmp_path / "out").glob("_staging/*/**/*.parquet"))))
            yield part

    monkeypatch.setattr(sql, "read_ratings", watching)
    batch(shop, tmp_path / "out", "--range-rows", "1")
    assert len(staged) == 400
    # A range whose only rating is a dead letter has no file.
    assert all(0 <= number - files <= 4 for number, files in enumerate(staged))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "--source is missing"),
        ({"output": ""}, "--output is missing"),
        ({"source": "oracle://h/d"}, "--source: expected one of"),
        ({"source": "mysql://u:hunter2@h/d"}, "must not carry a password"),
        ({"output": "hdfs://bucket"}, "--output: expected one of"),
        ({"readers": 0}, "--readers: expected at least 1"),
        ({"snapshot": "loose"}, "--snapshot: expected one of auto, shared"),
        ({"on_change": "ignore"}, "--on-change: expected one of fail, accept"),
        ({"read": "fast"}, "--read: expected one of packed, rows"),
        ({"max_bad_fraction": 1.5}, "--max-bad-fraction: expected 0 to 1"),
        ({"max_bad_fraction": float("nan")}, "--max-bad-fraction: expected 0 to 1"),
        ({"range_rows": 0}, "--range-rows: expected at least 1"),
    ],
)
def test_a_config_is_checked_when_it_is_made(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"source": "sqlite:///x", "output": "out", "shop": CLASSICMODELS, "run": "r"}
    with pytest.raises(UsageError, match=message) as caught:
        BatchConfig(**{**values, **changes})
    assert "hunter2" not in str(caught.value)


def test_an_unknown_flag_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--sauce"):
        run(["--sauce", "sqlite:///x", "--output", str(tmp_path)], Console(home=tmp_path))
