"""The bounded pipeline on a real PostgreSQL server, against the same server's own join."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamrec.io import postgres_tables
from beamrec.io.manifest import read_manifest
from beamrec.pipelines.batch_training import run
from beamrec.pipelines.checks import check_source
from beamrec.pipelines.cli import main as cli
from beamrec.pipelines.console import Console
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.pipelines.shop_tables import COLUMNS, PRIMARY_KEYS
from beamrec.schemas.shop import CLASSICMODELS, load_shop

pytestmark = pytest.mark.usefixtures("source_password")

JOIN = """
SELECT c.city, c.state, c."postalCode", c.country, c."creditLimit", p."productCode", p."productLine",
  p."productScale", p."quantityInStock", p."buyPrice", p."MSRP", r."productRating", r."customerNumber"
FROM ratings r JOIN customers c ON c."customerNumber" = r."customerNumber"
JOIN products p ON p."productCode" = r."productCode"
"""
UNBOUNDED = pa.decimal128(38, 20)
TEXT, MONEY = "VARCHAR", "DECIMAL(10,2)"
TYPES = [TEXT] * 4 + [MONEY] + [TEXT] * 3 + ["SMALLINT", MONEY, MONEY, "INTEGER", "BIGINT"]
OWN_SHOP = """
name = "own"
[customers]
name = "people"
key = "id"
key_type = "string"
features = [{ column = "born", kind = "none" }]
[products]
name = "things"
key = "code"
key_type = "string"
features = [{ column = "price", kind = "number" }]
[ratings]
name = "likes"
customer = "person"
product = "thing"
rating = "stars"
min_rating = 1
max_rating = 5
"""


def batch(source: str, output: Path, *options: str) -> dict[str, Any]:
    """`beamrec batch`, in this process."""
    return run(["--source", source, "--output", str(output), *options], Console(home=output / "home"))


def by_duckdb(folder: Path) -> Sequence[tuple[Any, ...]]:
    """The training files, ordered, their types checked."""
    with duckdb.connect() as connection:
        files = f"read_parquet('{folder}/ratings_ml_training/**/*.parquet')"
        relation = connection.sql(f"SELECT * FROM {files} ORDER BY ALL")  # noqa: S608
        assert [str(type_) for type_ in relation.types] == TYPES
        return relation.fetchall()


def ordered(rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """As DuckDB orders them: NULL last."""
    return sorted(rows, key=lambda row: [(value is None, value) for value in row])


def copied(mariadb: Any, table: str, database: str) -> pa.RecordBatch:
    """A table of MariaDB as its client library gives it."""
    names = list(COLUMNS[table])
    rows = mariadb.execute(f"SELECT {', '.join(names)} FROM {table}", database=database)  # noqa: S608
    return pa.RecordBatch.from_arrays([pa.array(values) for values in zip(*rows, strict=True)], names)


@pytest.fixture
def real_shop(mariadb: Any, classicmodels: str, postgresql: Any) -> str:
    """The public sample data in PostgreSQL, where `reader` may only read it; its URI."""
    name = postgresql.create_database("classicmodels")
    with postgres_tables.connect_for_writing(postgresql.uri(name)) as connection:
        for table, columns in COLUMNS.items():
            rows = copied(mariadb, table, classicmodels)
            postgres_tables.write_table(connection, table, columns, PRIMARY_KEYS[table], [rows])
    postgresql.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database=name)
    uri: str = postgresql.uri(name, "reader")
    return uri


@pytest.mark.parametrize("options", [(), ("--read", "rows", "--readers", "1"), ("--range-rows", "100")])
def test_classicmodels_equals_the_sql_join_for_a_user_who_may_only_read(
    postgresql: Any, real_shop: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    result = batch(real_shop, tmp_path, *options)
    assert (result["in"], result["out"], result["dead_letters"]) == (2532, 2532, 0)
    assert (result["partitions"], result["reconciled"]) == (98, True)
    expected = ordered(postgresql.execute(JOIN, database="classicmodels"))
    assert by_duckdb(tmp_path) == expected
    assert len(expected) == 2532
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None
    assert manifest.counts == {"ratings": 2532, "customers": 122, "products": 110}
    assert "pg_export_snapshot" in manifest.snapshot


def test_the_checks_and_init_know_postgresql(real_shop: str, tmp_path: Path) -> None:
    assert check_source(real_shop, CLASSICMODELS) == "customers, products and ratings can be read"
    assert cli(["init", "--source", real_shop, "--output", str(tmp_path)]) == 0
    shop = load_shop(str(next(path for path in tmp_path.glob("*.toml") if "shop" in path.name)))
    assert shop.ratings == CLASSICMODELS.ratings


def test_postgresql_and_sqlite_give_the_same_files(postgresql: Any, tmp_path: Path) -> None:
    size = ShopSize(customers=40, products=30, ratings=300, bad=3)
    paths = {}
    made = postgresql.uri(postgresql.create_database("made"))
    for name, uri in (("a", made), ("b", f"sqlite:///{tmp_path}/shop.db")):
        generate_shop(uri, size)
        batch(uri, tmp_path / name, "--range-rows", "50")
        manifest = read_manifest(str(tmp_path / name))
        assert manifest is not None
        paths[name] = (manifest.files, manifest.types, manifest.counts, manifest.rules)
    assert paths["a"] == paths["b"]


def test_keys_of_other_types_join_as_the_server_joins_them(postgresql: Any, tmp_path: Path) -> None:
    """UUIDs, CHAR(n) against VARCHAR, NUMERIC without a precision, an expression of a view."""
    database = postgresql.create_database("own")
    postgresql.execute(
        "CREATE SCHEMA shop AUTHORIZATION shop",
        "CREATE TABLE shop.people (id uuid PRIMARY KEY, born timestamptz)",
        "INSERT INTO shop.people SELECT md5(n::text)::uuid, to_timestamp(n) FROM generate_series(1, 20) n",
        "CREATE TABLE shop.things (code char(5) PRIMARY KEY, price numeric)",
        "INSERT INTO shop.things SELECT 'T' || n, n / 3::numeric FROM generate_series(1, 9) n",
        "CREATE TABLE shop.given (person uuid, thing varchar(9), stars numeric)",
        "INSERT INTO shop.given SELECT p.id, rtrim(t.code), mod(row_number() OVER (), 7) / 2.0 "
        "FROM shop.people p, shop.things t",
        "CREATE VIEW shop.likes AS SELECT person, thing, stars + 1 AS stars FROM shop.given",
        "GRANT USAGE ON SCHEMA shop TO reader",
        "GRANT SELECT ON ALL TABLES IN SCHEMA shop TO reader",
        database=database,
    )
    (tmp_path / "own.toml").write_text(OWN_SHOP)
    uri = postgresql.uri(database, "reader") + "?schema=shop"
    result = batch(uri, tmp_path, "--shop", str(tmp_path / "own.toml"), "--range-rows", "40")
    assert (result["in"], result["out"], result["partitions"]) == (180, 180, 20)
    table = pq.read_table(tmp_path / "ratings_ml_training")
    types = {"born": pa.timestamp("us", "UTC"), "code": pa.string(), "price": UNBOUNDED, "stars": UNBOUNDED}
    assert dict(zip(table.schema.names[:-1], table.schema.types, strict=False)) == types
    expected = postgresql.execute(
        "SELECT p.born, rtrim(t.code), t.price, l.stars, p.id::text FROM shop.likes l "
        "JOIN shop.people p ON p.id = l.person JOIN shop.things t ON t.code = l.thing",
        database=database,
    )
    assert len(expected) == 180
    assert Counter(tuple(row.values()) for row in table.to_pylist()) == Counter(expected)
