"""Google Cloud Storage: what is its own; `test_store.py` has what all stores promise."""

import os
from pathlib import Path

import pytest

from beamrec.io.store import open_store
from beamrec.schemas.errors import UnavailableError, UsageError


def test_a_missing_bucket_says_so(gcs_endpoint: str) -> None:
    with pytest.raises(UsageError, match="there is no bucket nosuch; create it"):
        open_store(f"gs://nosuch/x?endpoint={gcs_endpoint}").check()


def test_a_server_that_is_down_says_so() -> None:
    with pytest.raises(UnavailableError, match="gs://bucket/x: the server does not answer"):
        open_store("gs://bucket/x?endpoint=http://127.0.0.1:9").check()


def test_no_credentials_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(UnavailableError, match=r"no credentials.*GOOGLE_APPLICATION_CREDENTIALS"):
        open_store("gs://bucket/x").check()


def test_large_objects_arrive_whole(gcs: str, tmp_path: Path) -> None:
    data = os.urandom((8 << 20) + 1)
    (tmp_path / "file").write_bytes(data)
    store = open_store(gcs)
    store.put("_staging/run/put", data)
    store.put_file("file", tmp_path / "file")
    store.move_all("_staging/run", ["put"])
    assert store.read("put") == store.read("file") == data


def test_credentials_in_a_uri_are_refused() -> None:
    with pytest.raises(UsageError, match="never from the URI") as caught:
        open_store("gs://bucket/x?token=hunter2")
    assert "hunter2" not in str(caught.value)
