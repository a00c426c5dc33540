"""`beamrec doctor --runner X` says what a job on that runner lacks, one finding a check."""

import json
from pathlib import Path
from typing import Any

import pytest

from beamrec.pipelines import cli
from beamrec.runners.dataflow import DATAFLOW

GOOD = (
    "--runner=dataflow",
    "--project=shop-project",
    "--region=europe-west1",
    "--temp_location=gs://temp/tmp",
    "--sdk_container_image=example/worker:1",
    "--source=mysql://shop@db.example/shop",
    "--source-secret=gcp-secretmanager://projects/p/secrets/s",
    "--output=gs://lake/training",
)


def of_the_runner(*argv: str, home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The findings of the runner's checks, by their names; a store that is away ends no other check."""
    cli.main(["doctor", *argv, "--vector-db=postgresql://nobody@127.0.0.1:1/x", f"--home={home}", "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    prefix = "dataflow: "
    return {c["check"].removeprefix(prefix): c for c in checks if c["check"].startswith(prefix)}


def test_a_sound_job_is_all_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = of_the_runner(*GOOD, home=tmp_path, capsys=capsys)
    assert found.keys() == DATAFLOW.checks.keys()
    assert all(check["ok"] for check in found.values()), found


def test_every_fault_is_a_finding_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = of_the_runner("--runner=dataflow", "--input=clicks", home=tmp_path, capsys=capsys)
    failed = {name for name, check in found.items() if not check["ok"]}
    assert failed == {"project", "locations", "code on workers", "places"}
    assert found["places"]["detail"].startswith("--input: workers are other machines")
    assert {check["exit_code"] for check in found.values() if not check["ok"]} == {2}


def test_unknown_flags_are_refused_with_and_without_a_runner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["--runner=dataflow", "--projcet=x"], ["--project=x"]):
        assert cli.main(["doctor", *argv, f"--home={tmp_path}", "--json"]) == 2
        assert "unrecognized arguments: --proj" in json.loads(capsys.readouterr().out)["error"]
