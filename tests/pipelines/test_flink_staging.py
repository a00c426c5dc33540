"""A worker on Flink imports the project that was staged with the job, not the one beside its worker pool."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults  # no kill, but a cluster

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("schemas", "transforms", "model", "io", "runners", "pipelines")
BUILD_FILES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "requirements.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)
MARKER = "edited-into-the-staged-copy"

# Its stage says where the worker finds our modules and what they hold.
LOCATE = """
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
output, *flags = sys.argv[1:]
code = '''__import__("json").dumps({
    "file": __import__("importlib").import_module("beamrec.schemas.version").__file__,
    "io": __import__("importlib").import_module("beamrec.io.registry").__file__,
    "marker": getattr(__import__("importlib").import_module("beamrec.schemas.version"), "MARKER", None),
    "prefix": __import__("sys").prefix,
})'''
with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
    found = pipeline | beam.Create([code]) | beam.Map(eval)
    _ = found | beam.Map(lambda text, path: open(path, "w").write(text) and None, output)
"""


def located(flink: Any, output: Path, *flags: str) -> dict[str, Any]:
    """What a worker says of the project that it imports."""
    where = [flag for flag in flink.flags(1) if not flag.startswith("--runner")]
    command = [sys.executable, "-c", LOCATE, str(output), "--runner=PortableRunner", *where, *flags]
    # From elsewhere: what is imported must not hang on the working folder.
    done = subprocess.run(
        command, cwd=output.parent, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_the_staged_project_counts_over_the_checkout(flink: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "schemas" / "version.py", "a") as version:
        version.write(f"\nMARKER = {MARKER!r}\n")
    found = located(flink, tmp_path / "staged.json", f"--setup_file={copy / 'setup.py'}")
    assert found["marker"] == MARKER
    workers = flink.folder / "workers"
    assert Path(found["prefix"]).is_relative_to(workers)
    for name in ("file", "io"):
        assert Path(found[name]).is_relative_to(workers), "in the worker's own environment"
        assert not Path(found[name]).is_relative_to(ROOT), "not in the checkout"


def test_a_job_that_stages_nothing_has_the_project_of_the_pool(flink: Any, tmp_path: Path) -> None:
    found = located(flink, tmp_path / "pool.json")
    assert Path(found["file"]) == ROOT / "schemas" / "version.py"
    assert found["marker"] is None
