"""`beamrec batch` killed at random moments over existing output, local and on S3: whole data, no orphan."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from beamrec.io.manifest import MANIFEST, TRAINING_FOLDER, open_training, read_manifest
from beamrec.io.store import open_store
from beamrec.pipelines.batch_training import run
from beamrec.pipelines.console import Console
from beamrec.pipelines.generate_shop import ShopSize, generate_shop

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
KILLS = 2 if SHORT else 10
# Each object of the S3 server costs some milliseconds.
SIZES = {"local": ShopSize(customers=800, products=60, ratings=12_000), "s3": ShopSize(80, 60, 2_000)}

Totals = dict[int, tuple[int, int]]


@pytest.fixture(params=SIZES)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output folder on each kind of store."""
    if request.param == "local":
        return str(tmp_path / "out")
    uri: str = request.getfixturevalue("s3").uri
    return uri


def change(path: Path, round_: int) -> None:
    """Other ratings for everybody, one customer gone and one come back."""
    keys = [103 + 3 * number for number in (round_ + 1, round_)]
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE ratings SET productRating = 6 - productRating")
        connection.execute("DELETE FROM ratings WHERE customerNumber = ?", keys[:1])
        connection.execute(
            "INSERT OR IGNORE INTO ratings SELECT ?, productCode, 3 FROM products LIMIT 7", keys[1:]
        )


def wanted(path: Path) -> Totals:
    """Customer → number and sum of ratings, as SQL says."""
    sql = "SELECT customerNumber, COUNT(*), SUM(productRating) FROM ratings GROUP BY customerNumber"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {customer: (rows, total) for customer, rows, total in connection.execute(sql)}


def by_manifest(output: str) -> Totals:
    """The same, as a reader of the manifest sees it; a file that goes away means that it is a new one."""
    for _ in range(20):
        with contextlib.suppress(FileNotFoundError, OSError):
            table = open_training(output).to_table(columns=["customerNumber", "productRating"])
            grouped = table.group_by("customerNumber").aggregate(
                [("productRating", "count"), ("productRating", "sum")]
            )
            return {
                row["customerNumber"]: (row["productRating_count"], row["productRating_sum"])
                for row in grouped.to_pylist()
            }
    raise AssertionError(f"{output}: no reading without a missing file")


class Reader(threading.Thread):
    """Reads by manifest again and again, and keeps what it saw."""

    def __init__(self, output: str) -> None:
        super().__init__(daemon=True)
        self._output, self._stopped = output, threading.Event()
        self.seen: list[Totals] = []

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            self.seen.append(by_manifest(self._output))

    def stop(self) -> list[Totals]:
        """What it saw."""
        self._stopped.set()
        self.join()
        return self.seen


@contextlib.contextmanager
def running(source: str, output: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in processes of its own, killed at the end of the `with` block."""
    argv = ["-m", "beamrec.pipelines.batch_training", "--source", source, "--output", output]
    with subprocess.Popen(
        [sys.executable, *argv, "--home", str(home)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_staging(output: str, process: subprocess.Popen[bytes]) -> None:
    """Until the run has taken the folder: before that there is nothing to kill."""
    store = open_store(output)
    deadline = time.monotonic() + 120
    while not any(name != "lock" for name in store.names("_staging")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def batch(source: str, output: str, home: Path) -> dict[str, Any]:
    """The next command."""
    return run(["--source", source, "--output", output, "--mode", "incremental"], Console(home=home))


def test_killed_runs_leave_whole_data_and_the_next_command_no_orphan(tmp_path: Path, output: str) -> None:
    database, home = tmp_path / "shop.db", tmp_path / "home"
    source = f"sqlite:///{database}"
    generate_shop(source, SIZES["s3" if output.startswith("s3") else "local"])
    batch(source, output, home)
    random_ = random.Random(4)
    work_seconds = _work_seconds(source, output, home, database)
    killed = 0
    for round_ in range(1, KILLS + 1):
        old = wanted(database)
        change(database, round_)
        new = wanted(database)
        reader = Reader(output)
        reader.start()
        with running(source, output, home) as process:
            wait_until_staging(output, process)
            time.sleep(random_.uniform(0, 1.1) * work_seconds)
            killed += process.poll() is None
        assert all(seen in (old, new) for seen in reader.stop())
        assert by_manifest(output) in (old, new)
        batch(source, output, home)
        assert by_manifest(output) == new
        _check_no_orphan(output, new)
    assert killed >= KILLS // 2, "most runs ended before they were killed"


def _work_seconds(source: str, output: str, home: Path, database: Path) -> float:
    """From the first staged file to the end of a run that is not killed."""
    change(database, 0)
    with running(source, output, home) as process:
        wait_until_staging(output, process)
        began = time.monotonic()
        assert process.wait(300) == 0
        return time.monotonic() - began


def _check_no_orphan(output: str, new: Totals) -> None:
    manifest = read_manifest(output)
    assert manifest is not None
    store = open_store(output)
    found = {path for path in store.sizes("") if not path.startswith("_lease/")}
    assert found == manifest.paths | {MANIFEST}
    if output.startswith("s3"):
        return
    # A reader that knows nothing of manifests.
    plain = pl.read_parquet(f"{output}/{TRAINING_FOLDER}/**/*.parquet")
    assert plain.height == sum(rows for rows, _ in new.values())
    assert plain["productRating"].sum() == sum(total for _, total in new.values())
