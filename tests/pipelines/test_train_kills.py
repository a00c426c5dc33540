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
KILLS = 2 if SHORT else 12
EPOCHS = 12 if SHORT else 30


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
        [*command, f"--epochs={EPOCHS}", f"--patience={EPOCHS}", "--json"],
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


def checkpoints(home: Path) -> list[int]:
    """Numbers of those that there are: one an epoch, of which old ones are removed."""
    return sorted(int(path.name) for path in (home / "training").glob("*/checkpoints/[0-9]*"))


def wait_for_epoch(home: Path, number: int, process: "subprocess.Popen[str]") -> None:
    """Waits for a checkpoint; before the first epoch, for the folder: earlier there is nothing to kill."""
    deadline = time.monotonic() + 300
    while max(checkpoints(home), default=-1) < number or not list((home / "training").glob("*/examples")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(lake: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `--json` object of a training that nobody disturbs."""
    return finished(lake, tmp_path_factory.mktemp("undisturbed"))[0]


def test_killed_trainings_go_on_and_end_with_the_same_metrics(
    lake: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    quiet, expected = tmp_path / "killed", undisturbed
    random_, went_on = random.Random(5), 0
    for number in sorted([EPOCHS // 2, *(random_.randrange(-1, EPOCHS - 3) for _ in range(KILLS - 1))]):
        with start(lake, quiet) as process:
            wait_for_epoch(quiet, number, process)
            time.sleep(random_.uniform(0, 0.2))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            went_on += "going on with the training" in (process.stderr.read() if process.stderr else "")
        for release in (quiet / "releases").glob("[!.]*"):
            verify_release(release)
    found, said = finished(lake, quiet)
    went_on += "going on with the training" in said
    assert found["metrics"] == expected["metrics"]
    assert went_on, "every training began anew"
    assert not (quiet / "training").exists()
    one, other = (Path(values["paths"]["release"]) for values in (found, expected))
    for name in ("embeddings/item_embeddings.csv", "embeddings/user_embeddings.csv", "evaluation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_spoilt_checkpoint_is_said_and_the_metrics_are_the_same(
    lake: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with start(lake, home) as process:
        wait_for_epoch(home, 1, process)
        os.killpg(process.pid, signal.SIGKILL)
    for path in (home / "training").glob("*/checkpoints/[0-9]*/variables.index"):
        path.write_bytes(path.read_bytes()[:-5])
    found, said = finished(lake, home)
    assert "checkpoint discarded: its files are not what was written" in said
    assert found["metrics"] == undisturbed["metrics"]
