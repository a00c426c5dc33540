"""The store on a real S3-protocol server: the same guarantees as on a file system, also when it is busy."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
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


def test_a_server_that_is_busy_for_long_is_asked_as_often_as_at_first(s3: Any, store: Store) -> None:
    """What boto3 tries again comes out of a budget, and that is used up here."""
    with s3.faults(0.7), ThreadPoolExecutor(32) as pool:
        assert not any(pool.map(store.exists, map(str, range(150))))


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


def test_more_than_a_page_of_objects_is_listed_and_removed(store: Store) -> None:
    store.put_all((f"many/{number:04d}", b"") for number in range(1005))
    assert len(store.sizes("many")) == len(store.names("many")) == 1005
    store.discard_tree("many")
    assert store.sizes("many") == {}


@pytest.mark.parametrize("size", [PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 1])
def test_sizes_that_go_in_parts(s3: Any, store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    # One request each below a part's size: so many that one of them is refused.
    with s3.faults(0.3):
        for _ in range(12 if size < PART_BYTES else 3):
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
