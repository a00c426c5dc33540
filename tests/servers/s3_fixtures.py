"""A private S3 server (moto), and before it a proxy that refuses requests when it is told to."""

import contextlib
import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

_START_SECONDS = 60
_SEED = 42


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A running server with one bucket of the test's own.

    Attributes:
      endpoint: of the proxy.
      direct: of the server, which neither refuses nor delays.
    """

    endpoint: str
    bucket: str
    direct: str

    @property
    def uri(self) -> str:
        """What `--output` takes, in this bucket."""
        return self.uri_of("lake")

    def uri_of(self, prefix: str) -> str:
        """What `--output` takes, for any prefix."""
        return f"s3://{self.bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    @contextlib.contextmanager
    def faults(self, rate: float = 0.05) -> Iterator[None]:
        """Refuses that part of all requests with 503 while in the block; fails if there was none."""
        before = self._ask(f"/faults/{rate}")
        try:
            yield
        finally:
            injected = self._ask("/faults/0") - before
        assert injected, "no request was refused: the test has shown nothing"

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Each request takes so much longer while in the block."""
        self._ask(f"/delay/{seconds}")
        try:
            yield
        finally:
            self._ask("/delay/0")

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Key → bytes of everything in the bucket, by another client than the one under test."""
        config = Config(s3={"addressing_style": "path"})
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", config=config)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}

    def download(self, key: str, path: Path) -> None:
        """Copies an object to a local file."""
        boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1").download_file(
            self.bucket, key, str(path)
        )

    def unfinished_uploads(self) -> list[str]:
        """Keys of multi-part uploads that were begun and neither completed nor aborted."""
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")
        return [
            upload["Key"] for upload in client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())
        ]

    def _ask(self, path: str) -> int:
        with urllib.request.urlopen(f"{self.endpoint}{path}", timeout=30) as answer:  # noqa: S310
            return int(answer.read())


@pytest.fixture(scope="session")
def s3_endpoints() -> Iterator[tuple[str, str]]:
    """URLs of the proxy and of the server; both processes end with the session."""
    # Here, since modules of fixtures are loaded in any order.
    from ports_fixtures import free_port

    if importlib.util.find_spec("moto") is None:
        message = "a real S3 server is needed: pip install 'moto[server]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    port = free_port()
    with (
        _process("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)) as server,
        _process(str(Path(__file__).with_name("fault_proxy.py")), str(port), "0", str(_SEED)) as proxy,
    ):
        _wait_until_up(server, port)
        assert proxy.stdout is not None
        yield f"http://127.0.0.1:{proxy.stdout.readline().strip()}", f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def s3_endpoint(s3_endpoints: tuple[str, str]) -> str:
    """URL of the proxy."""
    return s3_endpoints[0]


@pytest.fixture
def s3(s3_endpoints: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A bucket of its own for a test, and credentials where boto3 and Arrow look for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    proxy, server = s3_endpoints
    bucket = f"test-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=proxy, region_name="us-east-1").create_bucket(Bucket=bucket)
    return S3Server(proxy, bucket, server)


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_up(process: "subprocess.Popen[str]", port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("the S3 server did not start")
        time.sleep(0.1)
