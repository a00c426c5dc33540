"""`train` and `release`, as the command line calls them, on a real store."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from beamrec.io import embedded
from beamrec.pipelines.commands import release, train
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import BadDataError, UsageError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a generated shop's training files; its embedded server is stopped at the end."""
    from beamrec.pipelines.batch_options import BatchConfig
    from beamrec.pipelines.batch_training import run_batch
    from beamrec.pipelines.generate_shop import ShopSize, generate_shop
    from beamrec.schemas.shop import CLASSICMODELS

    folder = tmp_path_factory.mktemp("home")
    source = f"sqlite:///{folder}/shop.db"
    generate_shop(source, ShopSize())
    run_batch(BatchConfig(source, f"{folder}/lake", CLASSICMODELS, "run"))
    yield folder
    embedded.stop_server(folder / "pg")


@pytest.fixture(scope="module")
def trained(home: Path) -> list[dict]:
    """Two releases of different dimensions."""
    console = Console(home, err=io.StringIO(), out=io.StringIO())
    return [train.run(["--data", f"{home}/lake", *more], console) for more in ([], ["--dim", "8"])]


def test_train_then_load_promote_and_roll_back(home: Path, trained: list[dict]) -> None:
    out = io.StringIO()
    console = Console(home, out=out, err=io.StringIO())
    first, second = (entry["release"] for entry in trained)
    assert trained[0]["metrics"]["recall_at_10"] > trained[0]["metrics"]["recall_at_10_popularity"]
    assert Path(trained[0]["paths"]["release"]) == home / "releases" / first
    assert release.run(["list"], console)["releases"] == []
    assert release.run(["load", first], console)["out"] == 230
    assert release.run(["load", str(home / "releases" / second)], console)["release"] == second
    release.run(["load", second], console)  # once more changes nothing
    assert release.run(["promote", first], console)["release"] == first
    with pytest.raises(UsageError, match="--allow-dimension-change"):
        release.run(["promote", second, "--max-drop", "1"], console)
    given = ["--reason", "smaller", "--allow-dimension-change", "--max-drop", "1"]
    assert release.run(["promote", second, *given], console)["from"] == first
    assert release.run(["rollback"], console)["release"] == first
    listed = release.run(["list"], console)
    assert listed["release"] == first
    assert [(r["id"], r["dim"], r["active"]) for r in listed["releases"]] == [
        (second, 8, False),
        (first, 32, True),
    ]
    shown = release.run(["show", second], console)
    assert [h["action"] for h in shown["history"]] == ["load", "promote", "rollback"]
    json.dumps([listed, shown, *trained])  # what --json prints
    assert "smaller" in out.getvalue()


def test_what_is_not_there_is_wrong_usage(home: Path, trained: list[dict]) -> None:
    console = Console(home, err=io.StringIO(), out=io.StringIO())
    for argv, message in (
        (["load", "20260101T0000-00000000"], "no release of that id"),
        (["promote", "20260101T0000-00000000"], "is not loaded"),
        (["show", "nothing"], "is not loaded"),
        (["load"], "RELEASE"),
        (["list", "--nonsense"], "--nonsense"),
        (["list", "--vector-db", "postgresql://a:b@c/d"], "holds a password"),
    ):
        with pytest.raises(UsageError, match=message):
            release.run(argv, console)
    with pytest.raises(UsageError, match="--data is missing"):
        train.run([], console)
    with pytest.raises(UsageError, match="expected one of a path"):
        train.run(["--data", f"{home}/lake", "--releases", "ftp://bucket/x"], console)


def test_a_changed_release_is_not_loaded(home: Path, trained: list[dict]) -> None:
    console = Console(home, err=io.StringIO(), out=io.StringIO())
    folder = Path(trained[1]["paths"]["release"])
    path = folder / "embeddings" / "user_embeddings.csv"
    original = path.read_bytes()
    path.write_bytes(original[:-2] + b"9\n")
    try:
        with pytest.raises(BadDataError, match=r"user_embeddings.csv is not what the manifest says"):
            release.run(["load", str(folder)], console)
    finally:
        path.write_bytes(original)
