"""`beamrec train` killed at random moments: run again, it goes on by itself and ends the same."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from beamrec.model.release import verify_release
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.batch_training import run_batch
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.schemas.shop import CLASSICMODELS

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
KILLS = 3 if SHORT else 12


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shop")
    generate_shop(f"sqlite:///{folder}/shop.db", ShopSize(400, 150, 12_000))
    run_batch(BatchConfig(f"sqlite:///{folder}/shop.db", str(folder / "lake"), CLASSICMODELS, "run"))
    return str(folder / "lake")


def start(lake: str, home: Path) -> "subprocess.Popen[str]":
    """A training of its own process group; patience beyond the epochs, so that all are trained."""
    command = [sys.executable, "-m", "beamrec.pipelines.cli", "train", "--data", lake, "--home", str(home)]
    return subprocess.Popen(
        [*command, "--epochs", "30", "--patience", "30", "--json"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(lake: str, home: Path) -> tuple[dict[str, Any], str]:
    """The `--json` object of a training that nobody disturbs, and what it said."""
    with start(lake, home) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    values: dict[str, Any] = json.loads(out.splitlines()[-1])
    return values, err


def work_begins(home: Path, process: "subprocess.Popen[str]") -> None:
    """Waits for the work folder: before that there is nothing to kill."""
    deadline = time.monotonic() + 300
    while not list((home / "training").glob("*/examples")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_trainings_go_on_and_end_with_the_same_metrics(lake: str, tmp_path: Path) -> None:
    undisturbed, quiet = tmp_path / "undisturbed", tmp_path / "killed"
    with start(lake, undisturbed) as process:
        work_begins(undisturbed, process)
        began = time.monotonic()
        expected = json.loads(process.communicate(timeout=600)[0].splitlines()[-1])
        seconds = time.monotonic() - began
    random_, killed, went_on = random.Random(5), 0, 0
    for _ in range(KILLS):
        with start(lake, quiet) as process:
            work_begins(quiet, process)
            time.sleep(random_.uniform(0, 0.8) * seconds)
            killed += process.poll() is None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            went_on += "going on with the training" in (process.stderr.read() if process.stderr else "")
        for release in (quiet / "releases").glob("[!.]*"):
            verify_release(release)
    found, _ = finished(lake, quiet)
    assert found["metrics"] == expected["metrics"]
    assert killed >= KILLS // 2, "most trainings ended before they were killed"
    assert went_on, "every training began anew"
    assert not (quiet / "training").exists()
    one, other = (Path(values["paths"]["release"]) for values in (found, expected))
    for name in ("embeddings/item_embeddings.csv", "embeddings/user_embeddings.csv", "evaluation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_spoilt_checkpoint_is_said_and_the_metrics_are_the_same(lake: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with start(lake, home) as process:
        deadline = time.monotonic() + 300
        while len(list((home / "training").glob("*/checkpoints/[0-9]*"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    for path in (home / "training").glob("*/checkpoints/[0-9]*/variables.index"):
        path.write_bytes(path.read_bytes()[:-5])
    found, said = finished(lake, home)
    assert "checkpoint discarded: its files are not what was written" in said
    assert found["metrics"] == finished(lake, tmp_path / "other")[0]["metrics"]
