"""The command line where its streams, arguments or configuration are not what a shell usually gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def beamrec(home: Path, *argv: str | bytes, redirection: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command line below a shell that redirects its streams."""
    shell = [
        "sh",
        "-c",
        f'exec "$0" "$@" {redirection}',
        sys.executable,
        "-m",
        "beamrec.pipelines.cli",
        *argv,
    ]
    environment = os.environ | {"BEAMREC_HOME": str(home)}
    return subprocess.run(
        shell, capture_output=True, text=True, errors="backslashreplace", env=environment, check=False
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("more", [["--json"], []])
def test_an_answer_that_cannot_be_written_is_one_line_and_no_traceback(
    tmp_path: Path, more: list[str]
) -> None:
    done = beamrec(tmp_path, "runs", "list", *more, redirection=">/dev/full")
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    assert done.returncode == (4 if more else 1)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing_else(tmp_path: Path, redirection: str) -> None:
    done = beamrec(tmp_path, "runs", "list", "--json", redirection=redirection)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    if redirection == "2>&-":
        assert json.loads(done.stdout)["ok"]


def test_an_argument_that_is_no_text_is_wrong_usage(tmp_path: Path) -> None:
    done = beamrec(tmp_path, "runs", "show", b"\xff", "--json")
    assert done.returncode == 2
    assert "expected UTF-8 text without NUL" in json.loads(done.stdout)["error"]
    config = tmp_path / "beamrec.toml"
    config.write_text('[release]\nreason = "a\\u0000b"\n')
    done = beamrec(tmp_path, "release", "rollback", "--config", str(config), "--json")
    assert done.returncode == 2
    assert "expected UTF-8 text without NUL" in json.loads(done.stdout)["error"]
