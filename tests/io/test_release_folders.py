"""Releases on a real S3 server: published, listed, copied, and refused when a byte differs."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from apache_beam.internal import pickler

from beamrec.io.release_folders import FetchRelease, local_copy, publish, release_ids, release_uri
from beamrec.model import release as folders
from beamrec.schemas.errors import BadDataError, UsageError

VECTORS = np.eye(4, dtype=np.float32)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A small release, large enough in one file that it goes up in parts."""
    with folders.staged_release(tmp_path / "made") as staging:
        folders.write_embeddings(staging / folders.ITEM_EMBEDDINGS, ["a", "b", "c", "d"], VECTORS)
        folders.write_embeddings(staging / folders.USER_EMBEDDINGS, ["1"], VECTORS[:1])
        folders.write_popularity(staging / folders.POPULARITY, ["a"], [3])
        (staging / "scalers").mkdir()
        (staging / "scalers/large.txt").write_bytes(b"0123456789abcdef" * 2**20)
        values: dict[str, Any] = {
            "shop": "s", "user_key_type": "int", "item_key_type": "string", "dim": 4, "items": 4, "users": 1,
        }  # fmt: skip
        return folders.publish_release(staging, tmp_path / "made", values)[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def put(s3: Any, key: str, data: bytes) -> None:
    boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1").put_object(
        Bucket=s3.bucket, Key=key, Body=data
    )


def test_the_same_release_made_a_second_later_is_there_already(
    s3: Any, release: Path, tmp_path: Path
) -> None:
    uri = publish(release, s3.uri_of("again"))
    later = shutil.copytree(release, tmp_path / "later" / release.name)
    made = json.loads((release / "manifest.json").read_text())
    (later / "manifest.json").write_text(json.dumps(made | {"created_at": "2026-01-01T00:00:59Z"}))
    assert publish(later, s3.uri_of("again")) == uri
    assert contents(local_copy(uri, tmp_path / "cache")) == contents(release)
    (later / "manifest.json").write_text(json.dumps(made | {"shop": "another"}))
    with pytest.raises(BadDataError, match="another content is there"):
        publish(later, s3.uri_of("again"))


def test_a_release_comes_back_byte_by_byte_though_requests_fail(
    s3: Any, release: Path, tmp_path: Path
) -> None:
    releases = s3.uri_of("shop/releases")
    with s3.faults(0.2):
        uri = publish(release, releases)
        assert publish(release, releases) == uri
        copy = local_copy(uri, tmp_path / "cache")
    assert uri == release_uri(releases, release.name)
    assert contents(copy) == contents(release)
    assert copy.name == release.name
    assert folders.read_release(copy).item_ids == ("a", "b", "c", "d")
    assert release_ids(releases) == [release.name]
    assert s3.unfinished_uploads() == []


def test_an_upload_that_nobody_knows_of_is_forgotten(s3: Any, release: Path) -> None:
    key = f"releases/{release.name}/scalers/large.txt"
    boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1").create_multipart_upload(
        Bucket=s3.bucket, Key=key
    )
    assert s3.unfinished_uploads() == [key]
    publish(release, s3.uri_of("releases"))
    assert s3.unfinished_uploads() == []


def test_a_release_without_its_manifest_is_not_there_yet(s3: Any, release: Path, tmp_path: Path) -> None:
    releases = s3.uri_of("releases")
    put(s3, f"releases/{release.name}/popularity.csv", b"half of it")
    assert release_ids(releases) == []
    with pytest.raises(UsageError, match=r"no manifest\.json there"):
        local_copy(release_uri(releases, release.name), tmp_path / "cache")
    assert contents(local_copy(publish(release, releases), tmp_path / "cache")) == contents(release)


def test_another_content_of_the_same_id_is_refused(s3: Any, release: Path) -> None:
    publish(release, s3.uri_of("releases"))
    manifest = release / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"shop": "s"', b'"shop": "t"'))
    with pytest.raises(BadDataError, match="another content is there"):
        publish(release, s3.uri_of("releases"))


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("popularity.csv", b"id,ratings\nb,3\n", r"popularity\.csv is not what the manifest says"),
        ("popularity.csv", b"id,ratings\n", "the manifest says 15 bytes, there is 11 bytes"),
        ("model/best_model.pth", b"\x80\x04.", "the manifest says no such file, there is 3 bytes"),
        ("manifest.json", b"{}", "manifest:"),
    ],
)
def test_what_was_changed_in_the_bucket_is_refused_and_leaves_nothing(
    s3: Any, release: Path, tmp_path: Path, path: str, data: bytes, message: str
) -> None:
    uri = publish(release, s3.uri_of("releases"))
    put(s3, f"releases/{release.name}/{path}", data)
    with pytest.raises(BadDataError, match=message):
        local_copy(uri, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_release_is_that_of_the_stamp_or_none(s3: Any, release: Path, tmp_path: Path) -> None:
    uri = publish(release, s3.uri_of("releases"))
    fetch: FetchRelease = pickler.loads(pickler.dumps(FetchRelease(str(tmp_path / "cache"))))
    checksum = folders.read_release(release).checksum
    assert contents(fetch(uri, checksum)) == contents(release)
    put(s3, f"releases/{release.name}/manifest.json", b"{}")
    assert contents(fetch(uri, checksum)) == contents(release)  # the copy is known to be the one asked for
    with pytest.raises(BadDataError, match=r"manifest\.json was changed: expected SHA-256 000000000000"):
        fetch(uri, "0" * 64)


def test_a_damaged_copy_is_made_anew(s3: Any, release: Path, tmp_path: Path) -> None:
    uri = publish(release, s3.uri_of("releases"))
    copy = local_copy(uri, tmp_path / "cache")
    (copy / "popularity.csv").write_bytes(b"id,ratings\nb,3\n")
    shutil.rmtree(copy / "scalers")
    assert local_copy(uri, tmp_path / "cache") == copy
    assert contents(copy) == contents(release)


def test_many_may_ask_at_once(s3: Any, release: Path, tmp_path: Path) -> None:
    uri = publish(release, s3.uri_of("releases"))
    with ThreadPoolExecutor(6) as pool:
        copies = set(pool.map(lambda _: local_copy(uri, tmp_path / "cache"), range(6)))
    assert len(copies) == 1
    assert contents(copies.pop()) == contents(release)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing is left of the others


def test_google_cloud_storage_holds_releases_too(gcs: str, release: Path, tmp_path: Path) -> None:
    uri = publish(release, gcs)
    assert release_ids(gcs) == [release.name]
    assert contents(local_copy(uri, tmp_path / "cache")) == contents(release)


def test_local_releases_are_used_where_they_are(release: Path, tmp_path: Path) -> None:
    assert local_copy(str(release), tmp_path / "cache") == release
    assert local_copy(f"file://{release}", tmp_path / "cache") == release
    published = publish(release, str(tmp_path / "other"))
    assert contents(Path(published)) == contents(release)
    assert release_ids(str(tmp_path / "other")) == [release.name]
    assert not (tmp_path / "cache").exists()
