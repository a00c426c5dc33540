"""An output on an object store as clients see it that know nothing of beamrec."""

import abc
import json
import threading
import urllib.parse
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config

from beamrec.io.store import Store, open_store


class Objects(abc.ABC):
    """The objects below `lake/` of one bucket.

    Attributes:
      uri: what `--output` takes.
      store: the same for the ledger's own reader, past all faults that are injected.
    """

    uri: str
    store: Store

    @abc.abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Path → bytes of everything below a folder, at any depth."""

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes of an object."""

    def records(self, folder: str = "recommendations") -> list[tuple[str, dict[str, Any]]]:
        """(hour folder, record) of every line below a folder; each file must be whole."""
        found = []
        for path in sorted(self.sizes(folder)):
            hour = path.removeprefix(f"{folder}/").rpartition("/")[0]
            found += [(hour, record) for record in whole_lines(path, self.read(path))]
        return found


class S3Objects(Objects):
    """By boto3, from the server itself, so that no fault that is injected meets the one who looks."""

    def __init__(self, s3: Any) -> None:
        self.uri, self._bucket = s3.uri, s3.bucket
        self.store = open_store(s3.uri.replace(s3.endpoint, s3.direct))
        config = Config(s3={"addressing_style": "path"})
        self._client = boto3.client("s3", endpoint_url=s3.direct, region_name="us-east-1", config=config)

    def sizes(self, folder: str) -> dict[str, int]:
        pages = self._client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self._bucket, Prefix=f"lake/{folder}/")
        return {
            entry["Key"].removeprefix("lake/"): entry["Size"]
            for page in found
            for entry in page.get("Contents", ())
        }

    def read(self, path: str) -> bytes:
        data: bytes = self._client.get_object(Bucket=self._bucket, Key=f"lake/{path}")["Body"].read()
        return data


class GcsObjects(Objects):
    """By plain requests."""

    def __init__(self, uri: str) -> None:
        self.uri, self.store = uri, open_store(uri)
        parts = urllib.parse.urlsplit(uri)
        endpoint = urllib.parse.parse_qs(parts.query)["endpoint"][0]
        self._bucket = f"{endpoint}/storage/v1/b/{parts.netloc}/o"
        self._session = requests.Session()

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        query = {"prefix": f"lake/{folder}/"}
        while True:
            answer = self._get(self._bucket, query).json()
            found |= {
                item["name"].removeprefix("lake/"): int(item["size"]) for item in answer.get("items", ())
            }
            if not answer.get("nextPageToken"):
                return found
            query["pageToken"] = answer["nextPageToken"]

    def read(self, path: str) -> bytes:
        name = urllib.parse.quote(f"lake/{path}", safe="")
        return self._get(f"{self._bucket}/{name}", {"alt": "media"}).content

    def _get(self, url: str, query: dict[str, str]) -> requests.Response:
        answer = self._session.get(url, params=query, timeout=60)
        answer.raise_for_status()
        return answer


def whole_lines(path: str, data: bytes) -> list[dict[str, Any]]:
    """The records of a file; raises ValueError if it is not whole."""
    if not data.endswith(b"\n"):
        raise ValueError(f"{path} is not whole")
    return [json.loads(line) for line in data.splitlines()]


class ObjectReader(threading.Thread):
    """Lists an output again and again; an object that was seen must be whole, and stay as it was.

    Attributes:
      seen: path → its bytes when it was first seen.
      faults: what was wrong, in words.
      looks: how often it has listed.
    """

    def __init__(self, objects: Objects) -> None:
        super().__init__(name="reader of objects", daemon=True)
        self._objects, self._stopped = objects, threading.Event()
        self.seen: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.looks = 0

    def run(self) -> None:
        while not self._stopped.wait(0.2):
            for folder in ("recommendations", "errors"):
                for path, size in self._objects.sizes(folder).items():
                    if path not in self.seen:
                        self._meet(path, size)
            self.looks += 1

    def _meet(self, path: str, size: int) -> None:
        data = self.seen[path] = self._objects.read(path)
        try:
            whole_lines(path, data)
        except ValueError as error:
            self.faults.append(str(error))
        if len(data) != size:
            self.faults.append(f"{path} was listed with {size} bytes and has {len(data)}")

    def stop(self) -> None:
        """Ends the reading, and looks whether every object is still what it was."""
        if not self.is_alive():
            self.faults.append("the reader has died")
        self._stopped.set()
        self.join()
        for path, data in self.seen.items():
            if self._objects.read(path) != data:
                self.faults.append(f"{path} has changed")


@pytest.fixture(params=["s3", "gs"])
def object_output(request: pytest.FixtureRequest) -> Objects:
    """An output on each kind of object store."""
    if request.param == "gs":
        return GcsObjects(request.getfixturevalue("gcs"))
    return S3Objects(request.getfixturevalue("s3"))


@pytest.fixture
def s3_output(s3: Any) -> S3Objects:
    """An output on S3."""
    return S3Objects(s3)
