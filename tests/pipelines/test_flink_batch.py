"""`beamrec batch` on Flink writes what it writes on the direct runner, byte for byte."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults  # no kill, but minutes

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
RATINGS = 50_000 if SHORT else 5_000_000
CUSTOMERS, PRODUCTS = (1_000, 110) if SHORT else (20_000, 1_000)


def contents(lake: Path) -> dict[str, str]:
    """Hash of each training file's bytes, by its path."""
    root = lake / "ratings_ml_training"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.parquet")
    }


def listed(lake: Path) -> list[Any]:
    """What the manifest says of the files, in the order of their names."""
    manifest = json.loads((lake / "_manifest.json").read_text())
    return sorted(manifest["files"], key=lambda file: str(file["path"]))


def test_the_same_training_files_as_on_the_direct_runner(
    flink: Any, command_line: Any, tmp_path: Path, figures: Any
) -> None:
    home, source = tmp_path / "home", f"sqlite:///{tmp_path}/shop.db"
    sizes = (f"--ratings={RATINGS}", f"--customers={CUSTOMERS}", f"--products={PRODUCTS}")
    made = command_line("generate", "shop", f"--output={source}", *sizes, home=home, timeout=900)
    assert made["ok"], made
    seconds = {}
    for runner, flags in (("direct", ["--runner=direct"]), ("flink", flink.flags())):
        output = f"--output={tmp_path / runner}"
        result = command_line("batch", f"--source={source}", output, *flags, home=home, timeout=3600)
        assert result["ok"], result["stderr"][-3000:]
        assert result["in"] == result["out"] == RATINGS
        seconds[runner] = result["seconds"]
    assert contents(tmp_path / "flink") == contents(tmp_path / "direct")
    assert listed(tmp_path / "flink") == listed(tmp_path / "direct")
    figures(ratings=RATINGS, files=len(contents(tmp_path / "flink")), by_runner=seconds)
