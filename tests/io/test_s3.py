"""The store on a real S3-protocol server: the same guarantees as on a file system, also when it is busy."""

import os
import pickle
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beamrec.io.store import Store, open_store, with_beam_options
from beamrec.schemas.errors import UnavailableError, UsageError

PART_BYTES = 8 << 20


@pytest.fixture
def store(s3: Any) -> Store:
    """An empty output."""
    return open_store(s3.uri)


def test_of_many_who_create_an_object_one_wins_whatever_the_server_refuses(s3: Any, store: Store) -> None:
    with s3.faults(0.2), ThreadPoolExecutor(8) as pool:
        for number in range(6):
            path = f"race/{number}"
            contents = [f"{number} {writer}".encode() for writer in range(8)]
            won = list(pool.map(lambda data, path=path: store.create(path, data), contents))
            assert won.count(True) == 1
            assert store.read(path) == contents[won.index(True)]


def test_a_staged_object_is_published_once(store: Store) -> None:
    first, second = store.stage(b"one"), store.stage(b"two")
    assert store.publish(first, "out/0")
    assert not store.publish(second, "out/0")
    assert store.read("out/0") == b"one"
    with pytest.raises(FileNotFoundError):
        store.publish(first, "out/1")
    assert store.names("_ledger/staged") == []


def test_objects_move_in_bulk_although_the_server_refuses_some_requests(s3: Any, store: Store) -> None:
    objects = {f"data/k={number}/part": bytes([number]) * number for number in range(120)}
    with s3.faults():
        store.put_all((f"_staging/run/{path}", data) for path, data in objects.items())
        store.move_all("_staging/run", sorted(objects))
        store.move_all("_staging/run", sorted(objects))
        assert store.sizes("data") == {path: len(data) for path, data in objects.items()}
        assert store.sizes("_staging") == {}
        some = sorted(objects)[:50]
        assert store.sizes_of([*some, "data/none"]) == {path: len(objects[path]) for path in some}
        store.discard_all(some)
    assert set(s3.objects()) == {f"lake/{path}" for path in sorted(objects)[50:]}
    assert store.read("data/k=99/part") == objects["data/k=99/part"]


def test_an_object_that_is_in_neither_place_is_not_moved_silently(store: Store) -> None:
    with pytest.raises(FileNotFoundError, match="_staging/run/a"):
        store.move_all("_staging/run", ["a"])


def test_a_folder_is_not_another_whose_name_begins_alike(store: Store) -> None:
    store.put_all([("a/x", b"1"), ("ab/x", b"2"), ("a/b/c", b"3")])
    assert store.sizes("a") == {"a/x": 1, "a/b/c": 1}
    assert store.names("a") == ["b", "x"]
    assert store.names("") == ["a", "ab"]
    store.discard_tree("a")
    assert store.names("") == ["ab"]


def test_more_than_a_page_of_objects_is_listed_and_removed(store: Store) -> None:
    store.put_all((f"many/{number:04d}", b"") for number in range(1005))
    assert len(store.sizes("many")) == len(store.names("many")) == 1005
    store.discard_tree("many")
    assert store.sizes("many") == {}


@pytest.mark.parametrize("size", [PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 1])
def test_sizes_that_go_in_parts(s3: Any, store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with s3.faults(0.1):
        for _ in range(3):
            store.put("put", pa.py_buffer(data))
            store.put_file("file", tmp_path / "file")
    assert store.read("put") == store.read("file") == data
    store.put("_staging/run/put", data)
    store.move_all("_staging/run", ["put"])
    assert store.sizes("_staging") == {}
    assert store.read("put") == data


def test_unfinished_uploads_of_a_killed_run_go_with_its_folder(s3: Any, store: Any) -> None:
    for key in ("lake/_staging/run/big", "lake/data/another"):
        store._client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    store.discard_tree("_staging/run")
    assert s3.unfinished_uploads() == ["lake/data/another"]


def test_ages_are_by_the_server(store: Store) -> None:
    store.put("x", b"")
    assert 0 <= store.age_seconds("x") < 60
    with pytest.raises(FileNotFoundError):
        store.age_seconds("y")


def test_arrow_reads_what_was_put(store: Store) -> None:
    table = pa.table({"n": list(range(1000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put("t/part.parquet", sink.getvalue())
    files, base = pickle.loads(pickle.dumps(store.arrow()))  # noqa: S301
    assert pq.read_table(f"{base}/t/part.parquet", filesystem=files).equals(table)


def test_a_store_travels_to_a_worker_without_its_connection(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"  # noqa: S301


def test_a_lease_keeps_a_second_run_out_until_its_holder_is_dead(s3: Any, store: Store) -> None:
    store.check()
    with store.exclusive("one"), pytest.raises(UsageError, match="run one"), store.exclusive("two"):
        pass
    code = f"store = open_store({s3.uri!r}); store.exclusive('dead').__enter__(); print('in'); time.sleep(60)"
    code = f"import time; from beamrec.io.store import open_store; {code}"
    with subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="run dead"), store.exclusive("three"):
            pass
        child.send_signal(signal.SIGKILL)
    with store.exclusive("four"):
        pass
    # A lease leaves two small objects, and not more with every run.
    assert len(s3.objects("lake/_lease")) == 2


def test_a_missing_bucket_says_so(s3: Any) -> None:
    missing = open_store(s3.uri.replace(s3.bucket, f"no-{uuid.uuid4().hex}"))
    with pytest.raises(UsageError, match=r"there is no bucket no-.*; create it"):
        missing.check()


def test_no_credentials_say_where_to_put_them(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        open_store(s3.uri_of("elsewhere").replace("region=us-east-1", "region=eu-west-1")).check()


def test_a_server_that_is_down_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(
        UnavailableError, match=r"s3://bucket/x: the server does not answer .*--s3_endpoint_url"
    ):
        open_store("s3://bucket/x?endpoint=http://127.0.0.1:9").check()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///prefix",
        "s3://AKIA:hunter2@bucket/x",
        "s3://bucket/x?aws_secret_access_key=hunter2",
        "s3://bucket/x?endpoint=http://user:hunter2@host",
        "s3://bucket/x?endpoint=host:9000",
        "s3://Bucket_/x",
    ],
)
def test_a_wrong_uri_is_refused_without_repeating_a_secret(uri: str) -> None:
    with pytest.raises(UsageError, match="--output") as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)


def test_beams_own_options_and_the_environment_travel_in_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert with_beam_options("s3://bucket/x", ["--runner=direct"]) == "s3://bucket/x"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://env:1")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    flags = ["--s3_endpoint_url", "https://flag:2", "--s3_verify=/ca.pem"]
    by_flag = with_beam_options("s3://bucket/x/", flags)
    assert by_flag == "s3://bucket/x?endpoint=https%3A%2F%2Fflag%3A2&region=eu-central-1&verify=%2Fca.pem"
    assert open_store(by_flag).uri == "s3://bucket/x"
    by_uri = with_beam_options("s3://bucket/x?endpoint=http://uri:3&region=r", flags[:2])
    assert by_uri == "s3://bucket/x?endpoint=http%3A%2F%2Furi%3A3&region=r"
    assert with_beam_options("/local", flags) == "/local"


@pytest.mark.parametrize("flag", ["s3_access_key_id", "s3_secret_access_key", "s3_session_token"])
def test_credentials_as_options_are_refused(flag: str) -> None:
    with pytest.raises(UsageError, match="put it into the environment") as caught:
        with_beam_options("s3://bucket/x", [f"--{flag}=hunter2"])
    assert "hunter2" not in str(caught.value)
