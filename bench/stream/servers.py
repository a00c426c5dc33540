"""What all contestants use: one Kafka broker, and one PostgreSQL with pgvector that serves a release."""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect

__all__ = ["BEAMREC", "broker", "store"]

ROOT = Path(__file__).resolve().parents[2]
BEAMREC = ROOT / ".venv" / "bin" / "beamrec"

# The time of each commit is kept by the server: when a row became visible is read behind the run, not probed.
_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB", "jit": "off", "track_commit_timestamp": "on"}
# Of the large shop that the release is trained on; a sixth of its products is never rated: in no release.
_CUSTOMERS, _RATINGS = 10_000, 4_000_000


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[Any]:
    """The Kafka broker of the tests, with room for what waits in a topic; killed at the end."""
    sys.path.insert(0, str(ROOT / "tests" / "servers"))
    module: Any = importlib.import_module("kafka_fixtures")
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = module.KafkaBroker(folder, port, {"log.flush.interval.ms": "1000"})
    started.start()
    try:
        yield started
    finally:
        started.kill()


@contextlib.contextmanager
def store(folder: Path, products: int) -> Iterator[tuple[str, str]]:
    """The URIs of PostgreSQL, with a release of so many products active, and of the shop's database."""
    home = folder.resolve() / f"shop-{products}"
    home.mkdir(parents=True, exist_ok=True)
    pg = home / "pg"
    _settle(embedded.ensure_running(pg).uri)
    embedded.stop_server(pg)  # the settings are taken at a start
    shop = f"sqlite:///{home / 'shop.sqlite'}"
    try:
        uri = embedded.ensure_running(pg).uri
        if ReleaseStore(uri).active() is None:
            _train(home, shop, uri, products)
        yield uri, shop
    finally:
        embedded.stop_server(pg)


def _settle(uri: str) -> None:
    connection = connect(uri)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name, value in _SETTINGS.items():
            cursor.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.close()


def _train(home: Path, shop: str, uri: str, products: int) -> None:
    """From a generated shop to an active release, by the verbs that a user calls."""
    customers, ratings, listed = 120, 2_500, products
    if products >= 1_000:
        customers, ratings, listed = _CUSTOMERS, _RATINGS, products * 6 // 5
    size = [f"--customers={customers}", f"--products={listed}", f"--ratings={ratings}"]
    _beamrec(home, "generate", "shop", f"--output={shop}", *size, "--overwrite")
    lake, releases = home / "lake", home / "releases"
    _beamrec(home, "batch", f"--source={shop}", f"--output={lake}")
    trained = _beamrec(home, "train", f"--data={lake}", f"--releases={releases}", "--epochs=1")
    release = trained["release"]
    _beamrec(home, "release", "load", release, f"--releases={releases}", f"--vector-db={uri}")
    _beamrec(home, "release", "promote", release, f"--vector-db={uri}", "--force")


def _beamrec(home: Path, *arguments: str) -> dict[str, Any]:
    command = [str(BEAMREC), *arguments, "--json", "--home", str(home)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ, check=True)  # noqa: S603
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
