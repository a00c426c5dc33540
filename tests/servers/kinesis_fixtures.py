"""Two independent Kinesis servers, moto's and kinesalite, each behind a proxy that can refuse calls.

Of moto's there are two: as it comes, and with resharding as Kinesis does it (see moto_kinesis.py).
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

_HERE = Path(__file__).parent
_START_SECONDS = 180
_SEED = 42
# At SIGUSR2 its clock goes on by 25 hours, as moto's does.
_KINESALITE = """
const now = Date.now; let shift = 0; Date.now = () => now() + shift
process.on('SIGUSR2', () => { shift += 25 * 3600 * 1000 })
require('kinesalite')({shardLimit: 1000, createStreamMs: 20, updateStreamMs: 20, deleteStreamMs: 20})
  .prependListener('request', (_, answer) => answer.setHeader('Date', new Date(Date.now()).toUTCString()))
  .listen(Number(process.argv[1]), '127.0.0.1')
"""
# URLs of a server and of its proxy, and the server's process
_Served = tuple[str, str, int]
_MAGIC = b"\xf3\x89\x9a\xc2"


@dataclasses.dataclass(frozen=True)
class KinesisServer:
    """A server with one stream of the test's own.

    Attributes:
      kind: `moto`, `plain moto` or `kinesalite`.
      direct: URL of the server.
      endpoint: URL of the proxy.
      pid: of the server.
    """

    kind: str
    direct: str
    endpoint: str
    pid: int
    stream: str

    def uri(self, **options: object) -> str:
        """What `--input` takes."""
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"kinesis://{self.stream}?endpoint={self.endpoint}&region=us-east-1{more}"

    @property
    def client(self) -> Any:
        """A client that goes past the proxy."""
        config = Config(retries={"total_max_attempts": 10, "mode": "standard"})
        return boto3.client("kinesis", endpoint_url=self.direct, region_name="us-east-1", config=config)

    def put(self, *payloads: bytes, hash_key: str | None = None) -> None:
        """Records, each under a key of its own unless their hash key is given."""
        records: list[dict[str, Any]] = [
            {"Data": data, "PartitionKey": uuid.uuid4().hex} for data in payloads
        ]
        for record in records if hash_key is not None else ():
            record["ExplicitHashKey"] = hash_key
        client = self.client
        for first in range(0, len(records), 500):
            answer = client.put_records(StreamName=self.stream, Records=records[first : first + 500])
            assert not answer["FailedRecordCount"]

    def another(self) -> "KinesisServer":
        """Another stream of the same server."""
        made = dataclasses.replace(self, stream=f"test-{uuid.uuid4().hex[:12]}")
        made.create()
        return made

    def create(self) -> None:
        """Makes the stream, of two shards."""
        self.client.create_stream(StreamName=self.stream, ShardCount=2)
        self._wait_until_active()

    def stored(self) -> list[bytes]:
        """Data of every record in the stream, by another reader than ours."""
        return [data for _, data in self.stored_under()]

    def stored_under(self) -> list[tuple[str, bytes]]:
        """The same with the partition keys."""
        records = [record for shard in self.shards() for record in self._stored(shard["ShardId"])]
        return [(record["PartitionKey"], record["Data"]) for record in records]

    def _stored(self, shard: str) -> Iterator[dict[str, Any]]:
        client, quiet = self.client, 0
        iterator = client.get_shard_iterator(
            StreamName=self.stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator and quiet < 2:
            answer = client.get_records(ShardIterator=iterator)
            yield from answer["Records"]
            quiet = 0 if answer["Records"] else quiet + 1
            iterator = answer["NextShardIterator"]

    def shards(self) -> list[dict[str, Any]]:
        """As listed."""
        found: list[dict[str, Any]] = self.client.list_shards(StreamName=self.stream)["Shards"]
        return found

    def open_shards(self) -> list[dict[str, Any]]:
        """Those that records can go to, by hash key."""
        listed = [s for s in self.shards() if "EndingSequenceNumber" not in s["SequenceNumberRange"]]
        return sorted(listed, key=lambda shard: int(shard["HashKeyRange"]["StartingHashKey"]))

    def split(self, shard: dict[str, Any]) -> None:
        """Splits a shard in the middle."""
        first, last = (int(shard["HashKeyRange"][f"{end}HashKey"]) for end in ("Starting", "Ending"))
        middle = str((first + last + 1) // 2)
        self.client.split_shard(
            StreamName=self.stream, ShardToSplit=shard["ShardId"], NewStartingHashKey=middle
        )
        self._wait_until_active()

    def merge(self, shard: dict[str, Any], next_shard: dict[str, Any]) -> None:
        """Merges two neighbours."""
        self.client.merge_shards(
            StreamName=self.stream,
            ShardToMerge=shard["ShardId"],
            AdjacentShardToMerge=next_shard["ShardId"],
        )
        self._wait_until_active()

    def a_day_passes(self) -> None:
        """The server's clock goes on by 25 hours, beyond the retention; for a server of the test's own."""
        before, deadline = self._clock(), time.monotonic() + _START_SECONDS
        os.kill(self.pid, signal.SIGUSR2)
        while self._clock() < before + 24 * 3600:
            assert time.monotonic() < deadline, "the server's clock stands still"
            time.sleep(0.05)

    def _clock(self) -> float:
        answer = self.client.list_shards(StreamName=self.stream)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def make_anew(self) -> None:
        """Another stream of the same name."""
        client = self.client
        client.delete_stream(StreamName=self.stream)
        deadline = time.monotonic() + _START_SECONDS
        while self.stream in client.list_streams()["StreamNames"]:
            assert time.monotonic() < deadline, "the stream was not deleted"
            time.sleep(0.05)
        time.sleep(1)  # sequence numbers tell the time of creation to the second
        self.create()

    @contextlib.contextmanager
    def faults(self, rate: float = 0.2) -> Iterator[None]:
        """Refuses that part of all calls while in the block; fails if a kind never came."""
        before = self.report(rate)["kinds"]
        try:
            yield
        finally:
            after = self.report(0)["kinds"]
        assert sum(after.values()) > sum(before.values()), "no call was refused: the test has shown nothing"

    @contextlib.contextmanager
    def slow(self, above: int) -> Iterator[None]:
        """Answers that may hold more records than that take three seconds while in the block."""
        self._tell_proxy(f"/slow/{above}")
        try:
            yield
        finally:
            self._tell_proxy("/slow")

    @contextlib.contextmanager
    def denied(self, operation: str) -> Iterator[None]:
        """Nobody has the right to an operation while in the block."""
        self._tell_proxy(f"/deny/{operation}")
        try:
            yield
        finally:
            self._tell_proxy("/deny")

    def report(self, rate: float | None = None) -> dict[str, Any]:
        """What the proxy has seen and done; sets its rate of faults if one is given."""
        found: dict[str, Any] = json.loads(self._tell_proxy("/faults" if rate is None else f"/faults/{rate}"))
        return found

    def _tell_proxy(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.endpoint}{path}", timeout=60) as answer:  # noqa: S310
            told: bytes = answer.read()
            return told

    def _wait_until_active(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self._status() != "ACTIVE":
            assert time.monotonic() < deadline, "the stream did not become active"
            time.sleep(0.05)

    def _status(self) -> str:
        answer = self.client.describe_stream_summary(StreamName=self.stream)
        return str(answer["StreamDescriptionSummary"]["StreamStatus"])


def aggregate(payloads: Sequence[bytes]) -> bytes:
    """A record as the Kinesis Producer Library packs it, written by the format's document alone."""
    message = _field(1, b"key") + b"".join(
        _field(3, _varint(1 << 3) + _varint(0) + _field(3, data) + _field(4, _field(1, b"tag")))
        for data in payloads
    )
    return _MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


@pytest.fixture(scope="session")
def kpl_aggregate() -> Any:
    """`kpl_aggregate(payloads)`: the Kinesis record that holds them."""
    return aggregate


@contextlib.contextmanager
def _process(*command: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


@contextlib.contextmanager
def _serve(*command: str) -> Iterator[_Served]:
    """A server and the proxy before it; `PORT` in the command is a free one."""
    # Here, since modules of fixtures are loaded in any order.
    from ports_fixtures import free_port

    port = free_port()
    proxy_command = (sys.executable, str(_HERE / "kinesis_proxy.py"), str(port), str(_SEED))
    with (
        _process(*(str(port) if word == "PORT" else word for word in command)) as server,
        _process(*proxy_command) as proxy,
    ):
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the Kinesis server did not start: {' '.join(command)}")
            time.sleep(0.1)
        assert proxy.stdout is not None
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{proxy.stdout.readline().strip()}", server.pid


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def _missing(message: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


@pytest.fixture(scope="session")
def moto_kinesis() -> Iterator[_Served]:
    """Moto's server."""
    with _serve(*_moto()) as served:
        yield served


def _moto() -> list[str]:
    if importlib.util.find_spec("moto") is None:
        _missing("a Kinesis server is needed: pip install 'moto[server]'")
    return [sys.executable, str(_HERE / "moto_kinesis.py"), "PORT"]


@pytest.fixture(scope="session")
def plain_moto_kinesis() -> Iterator[_Served]:
    """Moto's server as it comes."""
    program, *_ = _moto()
    with _serve(program, "-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT") as served:
        yield served


@pytest.fixture(scope="session")
def kinesalite() -> Iterator[_Served]:
    """The other server."""
    with _serve(*_kinesalite()) as served:
        yield served


def _kinesalite() -> list[str]:
    folder = _kinesalite_folder()
    node = shutil.which("node")
    assert node is not None
    os.environ["NODE_PATH"] = str(folder / "node_modules")
    return [node, "-e", _KINESALITE, "PORT"]


def _kinesalite_folder() -> Path:
    """Where kinesalite lies; installed by npm, once, from the lock beside this file."""
    lock = _HERE / "kinesalite" / "package-lock.json"
    version = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = Path.home() / ".cache" / "beamrec" / f"kinesalite-{version}"
    if (folder / "node_modules" / "kinesalite").is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        _missing("a second Kinesis server is needed: Node.js with npm, to install kinesalite")
    partial = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}")
    shutil.copytree(lock.parent, partial)
    command = [str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=partial, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(partial)
        _missing(f"npm could not install kinesalite: {done.stderr[-500:]}")
    with contextlib.suppress(OSError):
        partial.rename(folder)
    return folder


@pytest.fixture
def moto_stream(moto_kinesis: _Served, monkeypatch: pytest.MonkeyPatch) -> KinesisServer:
    """A stream of two shards on moto's server, which knows roles too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto_kinesis[0])
    return _new_stream("moto", moto_kinesis, monkeypatch)


@pytest.fixture
def plain_moto(plain_moto_kinesis: _Served, monkeypatch: pytest.MonkeyPatch) -> KinesisServer:
    """A stream of two shards on moto's server as it comes."""
    return _new_stream("plain moto", plain_moto_kinesis, monkeypatch)


@pytest.fixture(params=["moto", "kinesalite"])
def kinesis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KinesisServer:
    """A stream of two shards, on each server in turn."""
    served = request.getfixturevalue("moto_kinesis" if request.param == "moto" else "kinesalite")
    return _new_stream(request.param, served, monkeypatch)


@pytest.fixture(params=["moto", "kinesalite"])
def ageing_kinesis(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KinesisServer]:
    """A stream of two shards on a server of the test's own, whose clock may be put forward."""
    with _serve(*(_moto() if request.param == "moto" else _kinesalite())) as served:
        yield _new_stream(request.param, served, monkeypatch)


def _new_stream(kind: str, served: _Served, monkeypatch: pytest.MonkeyPatch) -> KinesisServer:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = KinesisServer(kind, *served, f"test-{uuid.uuid4().hex[:12]}")
    server.create()
    return server
