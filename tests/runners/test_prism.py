"""Prism: found in the order that is promised, and ended with the job that started it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beamrec.runners.preset import launch
from beamrec.runners.prism import find_prism
from beamrec.schemas.errors import UnavailableError, UsageError

HOLD = """
import sys, time
from beamrec.runners.preset import launch
with launch("prism", []) as (_, args):
    print([a for a in args if a.startswith("--job_endpoint")][0].rpartition(":")[2], flush=True)
    time.sleep(60)
"""


def up(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_given_location_is_taken_or_refused(tmp_path: Path) -> None:
    binary = tmp_path / "prism"
    binary.write_bytes(b"")
    assert find_prism(str(binary)) == str(binary)
    with pytest.raises(UsageError, match="no such file"):
        find_prism(str(tmp_path / "missing"))


def test_without_a_cache_go_and_a_download_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apache_beam.runners.portability.prism_runner import PrismJobServer

    monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    # Whatever the network is, nothing may be downloaded here.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"Go is not installed.*--prism_location") as caught:
        find_prism()
    assert caught.value.exit_code == 4


def test_prism_is_up_inside_the_block_and_gone_after_it() -> None:
    with launch("prism", ["--job_name=x"]) as (preset, args):
        port = int(next(a for a in args if a.startswith("--job_endpoint")).rpartition(":")[2])
        assert up(port)
        assert args[-1] == "--job_name=x"
        assert preset.streams
    assert not up(port)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal of Linux")
def test_prism_does_not_outlive_a_killed_job() -> None:
    job = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert job.stdout is not None
    port = int(job.stdout.readline())
    assert up(port)
    job.kill()
    job.wait()
    deadline = time.monotonic() + 10
    while up(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_name_that_is_no_preset_goes_to_beam_as_it_is() -> None:
    with launch("FlinkRunner", ["--flink_master=x"]) as (_, args):
        assert args == ["--runner=FlinkRunner", "--flink_master=x"]
