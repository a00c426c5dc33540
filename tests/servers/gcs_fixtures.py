"""A private server that speaks the protocol of Google Cloud Storage (fake-gcs-server, one Go program)."""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

_START_SECONDS = 60


@pytest.fixture(scope="session")
def gcs_endpoint() -> Iterator[str]:
    """URL of a server that keeps its objects in memory."""
    name = "fake-gcs-server"
    program = shutil.which(name) or shutil.which(name, path=str(Path.home() / "go" / "bin"))
    if program is None:
        message = f"a real GCS server is needed: go install github.com/fsouza/{name}@v1.56.1"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    # Here, since modules of fixtures are loaded in any order.
    from ports_fixtures import free_port

    host = f"127.0.0.1:{free_port()}"
    options = ["-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={host.partition(':')[2]}"]
    urls = [f"-public-host={host}", f"-external-url=http://{host}", "-log-level=error"]
    process = subprocess.Popen([program, *options, *urls], stderr=subprocess.DEVNULL)
    try:
        _wait_until_up(process, f"http://{host}/storage/v1/b")
        yield f"http://{host}"
    finally:
        process.terminate()
        process.wait(120)


@pytest.fixture
def gcs(gcs_endpoint: str) -> str:
    """What `--output` takes, in a bucket of the test's own."""
    bucket = f"test-{uuid.uuid4().hex}"
    requests.post(f"{gcs_endpoint}/storage/v1/b", json={"name": bucket}, timeout=30).raise_for_status()
    return f"gs://{bucket}/lake?endpoint={gcs_endpoint}"


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            requests.get(url, timeout=5)
        except requests.ConnectionError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("the GCS server did not start")
            time.sleep(0.1)
        else:
            return
