"""Real outside systems for the tests: a private MariaDB server, and the real sample data."""

import contextlib
import dataclasses
import getpass
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pymysql
import pytest

# Time says nothing on a machine that has other work: no example is too slow.
hypothesis.settings.register_profile("beamrec", deadline=None)
hypothesis.settings.load_profile("beamrec")

PASSWORD = "s€cret pass:word/@%"  # noqa: S105  (each character once broke some URL or encoding)
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "classicmodels"
START_SECONDS = 180


@dataclasses.dataclass(frozen=True)
class MariaDB:
    """A running server; `shop` may do everything in it and needs the password, `root` needs none."""

    socket: Path
    port: int

    def uri(self, database: str, user: str = "shop") -> str:
        """What `--source` takes."""
        return f"mysql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs statements as root; returns the rows of the last one."""
        with (
            pymysql.connect(
                unix_socket=str(self.socket),
                user="root",
                database=database,
                autocommit=True,
                charset="utf8mb4",
            ) as connection,
            connection.cursor() as cursor,
        ):
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def load(self, script: Path) -> None:
        """Runs a dump with the server's own client, the only parser that agrees with it."""
        with open(script, "rb") as file:
            subprocess.run(
                [
                    _program("mariadb", "mysql"),
                    "--no-defaults",
                    f"--socket={self.socket}",
                    "--user=root",
                    "--default-character-set=utf8mb4",
                ],
                stdin=file,
                check=True,
            )


def _program(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    if found:
        return found
    message = (
        f"a real MariaDB server is needed: no program {' or '.join(names)} (Debian: mariadb-server, openssl)"
    )
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _wait_until_up(server: MariaDB, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.execute("SELECT 1")
            return
        except pymysql.err.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"MariaDB did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)


def _create_user(server: MariaDB) -> None:
    server.execute(
        # Anonymous users of the local host would win over `shop`@`%`.
        "DELETE FROM mysql.global_priv WHERE User = ''",
        "FLUSH PRIVILEGES",
        f"CREATE USER 'shop'@'%' IDENTIFIED BY '{PASSWORD}'",
        "GRANT ALL ON *.* TO 'shop'@'%'",
    )


@contextlib.contextmanager
def _serve(folder: Path, *options: str) -> Iterator[MariaDB]:
    """A server with its data below `folder`, stopped at the end of the `with` block."""
    # Here, since the modules of fixtures are loaded later.
    from ports_fixtures import free_port

    install = _program("mariadb-install-db", "mysql_install_db")
    user = getpass.getuser()
    subprocess.run(
        [
            install,
            "--no-defaults",
            f"--datadir={folder}/data",
            f"--user={user}",
            "--auth-root-authentication-method=normal",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # A socket's path must be short; pytest's folders are not.
    port = free_port()
    server = MariaDB(Path(f"/tmp/beamrec-{port}.sock"), port)  # noqa: S108
    log = folder / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [
                _program("mariadbd", "mysqld"),
                "--no-defaults",
                f"--user={user}",
                f"--datadir={folder}/data",
                # Servers that share one delete the temporary tables of each other.
                f"--tmpdir={folder}",
                "--bind-address=127.0.0.1",
                f"--socket={server.socket}",
                f"--port={server.port}",
                "--character-set-server=utf8mb4",
                *options,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_up(server, process, log)
        _create_user(server)
        yield server
    finally:
        process.terminate()
        process.wait(120)


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A private MariaDB server on a free port; without one tests are skipped, saying so (in CI they fail)."""
    with _serve(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an authority (`ca.pem`) and of the server `localhost` that it vouches for (`cert`, `key`)."""
    folder = tmp_path_factory.mktemp("tls")
    make = [_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    authority = ["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    server_name = ["-subj", "/CN=server", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    for arguments in (authority, [*server_name, *signed, *files]):
        subprocess.run([*make, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def tls_mariadb(certificates: Path) -> Iterator[tuple[MariaDB, Path]]:
    """A second server that speaks TLS as `localhost`, and the file of the authority that vouches for it."""
    with _serve(
        certificates, f"--ssl-cert={certificates}/cert.pem", f"--ssl-key={certificates}/key.pem"
    ) as server:
        yield server, certificates / "ca.pem"


@pytest.fixture
def source_password(monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts the password of `shop` where workers look for it."""
    monkeypatch.setenv("BEAMREC_SOURCE_PASSWORD", PASSWORD)
    return PASSWORD


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the public sample data; skipped, saying so, where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the sample data is not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def classicmodels(mariadb: MariaDB, real_data: Path) -> str:
    """Name of a database with the public dump and the ratings; tests must not change it."""
    mariadb.load(real_data / "mysqlsampledatabase.sql")
    lines = (real_data / "ratings.csv").read_text().splitlines()[1:]
    mariadb.execute(
        "CREATE TABLE ratings (customerNumber int, productCode varchar(15), productRating int, "
        "PRIMARY KEY (customerNumber, productCode))",
        f"INSERT INTO ratings VALUES {_values(lines)}",  # noqa: S608
        database="classicmodels",
    )
    return "classicmodels"


def _values(lines: Sequence[str]) -> str:
    return ",".join("('{}','{}','{}')".format(*line.split(",")) for line in lines)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the fixtures of `servers/`: in importlib mode no import finds them."""
    for path in (Path(__file__).parent / "servers").glob("*_fixtures.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        config.pluginmanager.register(module, path.stem)
