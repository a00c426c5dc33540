"""`beamrec doctor` against real parts, each broken in turn: what it finds and how it says to mend it."""

import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from beamrec.io import embedded
from beamrec.io.postgres import connect
from beamrec.io.processes import process_start
from beamrec.pipelines import checks, cli
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError
from beamrec.schemas.shop import CLASSICMODELS

SHOP_TABLES = (
    """CREATE TABLE customers (customerNumber INT PRIMARY KEY, city VARCHAR(50), state VARCHAR(50),
       postalCode VARCHAR(15), country VARCHAR(50), creditLimit DECIMAL(10,2))""",
    """CREATE TABLE products (productCode VARCHAR(15) PRIMARY KEY, productLine VARCHAR(50),
       productScale VARCHAR(10), quantityInStock SMALLINT, buyPrice DECIMAL(10,2), MSRP DECIMAL(10,2))""",
    "CREATE TABLE ratings (customerNumber INT, productCode VARCHAR(15), productRating INT)",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with its embedded server, stopped at the end."""
    folder = tmp_path_factory.mktemp("doctor")
    yield folder
    embedded.stop_server(folder / "pg")


@pytest.fixture
def prism(tmp_path: Path) -> Path:
    """An executable for `--prism_location`: whether the real one can be had is not the matter here."""
    path = tmp_path / "prism"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def shop_db(tmp_path: Path) -> Path:
    """An SQLite file with the tables of classicmodels."""
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.executescript(";".join(SHOP_TABLES))
    connection.close()
    return path


def doctor(*argv: str, home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs `beamrec doctor --json`; returns its object with the checks by name."""
    code = cli.main(["doctor", *argv, f"--home={home}", "--json"])
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert values["exit_code"] == code
    return values | {"checks": {check["check"]: check for check in values["checks"]}}


def test_a_sound_set_up_is_all_right(
    home: Path, prism: Path, shop_db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor(f"--prism_location={prism}", f"--source=sqlite:///{shop_db}", home=home, capsys=capsys)
    assert found["ok"], found
    names = ["python", "packages", "home", "disk", "go", "prism", "shop", "vector-db", "source"]
    assert list(found["checks"]) == names
    assert all(check["ok"] for check in found["checks"].values())
    detail = found["checks"]["vector-db"]["detail"]
    assert "pgvector 0." in detail
    assert "no release is active; the embedded server stays up until `beamrec down`" in detail


def test_the_exit_code_is_that_of_the_worst_and_no_check_stops_another(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor(
        f"--prism_location={tmp_path / 'none'}",
        "--vector-db=postgresql://nobody@127.0.0.1:1/x",
        f"--shop={tmp_path / 'none.toml'}",
        home=home,
        capsys=capsys,
    )
    codes = {name: check["exit_code"] for name, check in found["checks"].items() if check["exit_code"]}
    assert codes == {"prism": 2, "shop": 2, "vector-db": 4}
    assert (found["ok"], found["exit_code"]) == (False, 4)
    assert found["error"].endswith("checks failed: prism, shop, vector-db")
    assert found["checks"]["python"]["ok"]


def test_wrong_usage_alone_is_exit_code_2(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(f"--prism_location={tmp_path}/none", home=home, capsys=capsys)["exit_code"] == 2


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    assert "packages as requirements.lock says" in checks.check_packages()
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "numpy==0.0.1 \\\n    --hash=sha256:0\nno-such-package==1 \\\n    --hash=sha256:0\n"
        "colorama==0.0.1 ; sys_platform == 'win32' \\\n    --hash=sha256:0\n"
    )
    with pytest.raises(
        UsageError, match=r"numpy .* is not ==0\.0\.1; no-such-package is missing: .*make install"
    ):
        checks.check_packages(lock)
    assert "what beamrec requires" in checks.check_packages(tmp_path / "a wheel has no lock")


def test_home_and_disk(tmp_path: Path) -> None:
    assert checks.check_home(tmp_path / "new") == str(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        checks.check_home(tmp_path / "file")
    assert checks.check_disk(tmp_path / "not" / "yet" / "there").endswith("GB free")
    with pytest.raises(UsageError, match="GB free, expected at least"):
        checks.check_disk(tmp_path, needed_bytes=10**18)


def test_go_is_only_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "needed only where Prism has to be built" in checks.check_go()


def test_prism_must_be_executable(prism: Path) -> None:
    assert checks.check_prism(str(prism)) == str(prism)
    prism.chmod(stat.S_IRUSR)
    with pytest.raises(UsageError, match="not executable"):
        checks.check_prism(str(prism))


def _sqlite_problem(path: Path, statement: str) -> str:
    connection = sqlite3.connect(path)
    connection.executescript(statement)
    connection.close()
    with pytest.raises(BeamrecError) as raised:
        checks.check_source(f"sqlite:///{path}", CLASSICMODELS)
    return str(raised.value)


def test_a_source_lacks_a_table_a_column_or_has_another_key_type(shop_db: Path, tmp_path: Path) -> None:
    assert "can be read" in checks.check_source(f"sqlite:///{shop_db}", CLASSICMODELS)
    message = _sqlite_problem(shop_db, "ALTER TABLE products RENAME COLUMN MSRP TO price")
    assert "table products: expected the column MSRP" in message
    message = _sqlite_problem(shop_db, "ALTER TABLE products RENAME COLUMN price TO MSRP; DROP TABLE ratings")
    assert "expected a table ratings" in message
    unknown = "ALTER TABLE products DROP COLUMN MSRP; ALTER TABLE products ADD COLUMN MSRP geometry"
    message = _sqlite_problem(shop_db, f"{SHOP_TABLES[2]}; {unknown}")
    assert "column MSRP: unknown column type 'geometry'" in message
    message = _sqlite_problem(
        shop_db,
        "ALTER TABLE products DROP COLUMN MSRP; ALTER TABLE products ADD COLUMN MSRP DECIMAL(10,2); "
        "DROP TABLE ratings",
    )
    message = _sqlite_problem(
        shop_db, SHOP_TABLES[2] + "; DROP TABLE customers; " + SHOP_TABLES[0].replace("INT", "VARCHAR(9)", 1)
    )
    assert "customers.customerNumber" in message
    with pytest.raises(BeamrecError):
        checks.check_source(f"sqlite:///{tmp_path}/none.db", CLASSICMODELS)


def test_a_source_that_we_may_read_only_in_part(mariadb, source_password: str) -> None:  # type: ignore[no-untyped-def]
    mariadb.execute(
        "DROP DATABASE IF EXISTS doctor",
        "CREATE DATABASE doctor",
        "USE doctor",
        *SHOP_TABLES,
        f"CREATE OR REPLACE USER 'reader'@'%' IDENTIFIED BY '{source_password}'",
        "GRANT SELECT ON doctor.customers TO 'reader'@'%'",
        "GRANT SELECT ON doctor.products TO 'reader'@'%'",
    )
    uri = mariadb.uri("doctor", user="reader")
    with pytest.raises(UsageError, match="grant SELECT"):
        checks.check_source(uri, CLASSICMODELS)
    mariadb.execute("GRANT SELECT (customerNumber, productCode) ON doctor.ratings TO 'reader'@'%'")
    with pytest.raises(BeamrecError, match="productRating"):
        checks.check_source(uri, CLASSICMODELS)
    mariadb.execute("GRANT SELECT ON doctor.ratings TO 'reader'@'%'")
    assert "can be read" in checks.check_source(uri, CLASSICMODELS)


def test_a_source_that_refuses_us_is_unavailable(mariadb, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", "wrong")
    with pytest.raises(UnavailableError, match="BEAMREC_SOURCE_PASSWORD"):
        checks.check_source(mariadb.uri("mysql"), CLASSICMODELS)


def _as_user(home: Path, *statements: str) -> str:
    """Makes the database `d` and the user `plain` anew; returns a URI of that user."""
    uri = embedded.ensure_running(home / "pg").uri
    for database, todo in (
        (
            "postgres",
            (
                "DROP DATABASE IF EXISTS d",
                "DROP ROLE IF EXISTS plain",
                "CREATE ROLE plain LOGIN",
                "CREATE DATABASE d",
            ),
        ),
        ("d", statements),
    ):
        connection = psycopg2.connect(uri, dbname=database)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in todo:
                cursor.execute(statement)
        connection.close()
    return uri.replace("postgres@/postgres", "plain@/d")


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ((), "an administrator must run CREATE EXTENSION vector there"),
        (("CREATE EXTENSION vector",), "run GRANT CREATE ON DATABASE d TO plain"),
        (
            ("CREATE EXTENSION vector", "CREATE SCHEMA beamrec"),
            "run GRANT USAGE, CREATE ON SCHEMA beamrec TO plain",
        ),
        (
            ("CREATE EXTENSION vector", "GRANT CREATE ON DATABASE d TO plain"),
            "run GRANT CREATE ON SCHEMA public TO plain",
        ),
    ],
)
def test_missing_privileges_in_the_vector_store(
    home: Path, statements: tuple[str, ...], message: str
) -> None:
    uri = _as_user(home, *statements)
    with pytest.raises(UnavailableError, match=message):
        checks.check_vector_db(uri)


def test_enough_privileges_in_the_vector_store_make_the_schema_there(home: Path) -> None:
    from beamrec.io.pgvector_schema import ensure_schema

    grants = ("GRANT CREATE ON DATABASE d TO plain", "GRANT CREATE ON SCHEMA public TO plain")
    uri = _as_user(home, "CREATE EXTENSION vector", *grants)
    assert "as plain" in checks.check_vector_db(uri)
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        ensure_schema(cursor)
    connection.close()
    assert "as plain" in checks.check_vector_db(uri), "and with the schema as well"


def test_down_stops_the_server_of_the_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = embedded.ensure_running(tmp_path / "pg")
    assert cli.main(["down", f"--home={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] is True
    assert embedded.find_server(tmp_path / "pg") is None
    assert process_start(server.pid) is None
    assert cli.main(["down", f"--home={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] is False
