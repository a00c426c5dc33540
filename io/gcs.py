"""The store on Google Cloud Storage, by Google's own client.

Credentials are the application's default ones, on every worker. A role needs to list, get, create and
delete objects (roles/storage.objectUser). A killed run's unfinished uploads cost nothing and expire.
"""

import contextlib
import functools
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import google.auth.exceptions
import pyarrow as pa
import pyarrow.fs
import requests
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    Unauthorized,
)
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage  # type: ignore[attr-defined]
from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]

from beamrec.io.objects import Address, Listed, ObjectStore, each
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["GcsStore", "open_store", "with_beam_options"]

_RETRY = DEFAULT_RETRY.with_delay(initial=0.2, maximum=20.0).with_timeout(90.0)
_QUICK_RETRY = _RETRY.with_timeout(5.0)
_CONNECTIONS = 32
_connecting = threading.Lock()


class GcsStore(ObjectStore):
    """Objects below `gs://bucket/prefix`. Picklable: a worker connects by itself, once a process."""

    def create(self, path: str, data: bytes) -> bool:
        writer, blob = uuid.uuid4().hex, self._blob(path)
        blob.metadata = {"writer": writer}
        with self._explained(path):
            try:
                blob.upload_from_string(data, if_generation_match=0, retry=_RETRY)
            except PreconditionFailed:
                # An attempt that was told to have failed may have succeeded: then it is ours.
                return self._writer(path) == writer
        return True

    def _writer(self, path: str) -> str | None:
        found = self._find(path)
        return (found.metadata or {}).get("writer") if found else None

    def read(self, path: str) -> bytes:
        with self._explained(path):
            data: bytes = self._blob(path).download_as_bytes(retry=_RETRY)
        return data

    def put(self, path: str, data: bytes | pa.Buffer, durable: bool = False) -> None:
        content = data.to_pybytes() if isinstance(data, pa.Buffer) else data
        with self._explained(path):
            self._blob(path).upload_from_string(content, "application/octet-stream", retry=_RETRY)

    def put_file(self, path: str, local_file: str | Path) -> None:
        with self._explained(path):
            self._blob(path).upload_from_filename(str(local_file), "application/octet-stream", retry=_RETRY)

    def get_file(self, path: str, local_file: str | Path) -> None:
        with self._explained(path):
            self._blob(path).download_to_filename(str(local_file), retry=_RETRY)

    def size(self, path: str) -> int | None:
        found = self._find(path)
        return found.size if found else None

    def age_seconds(self, path: str) -> float:
        found = self._find(path)
        if found is None:
            raise FileNotFoundError(path)
        # Both times are the server's.
        probe = self.stage(b"")
        try:
            age: float = (self._find(probe).updated - found.updated).total_seconds()
        finally:
            self.discard(probe)
        return age

    def names(self, folder: str) -> list[str]:
        prefix = self.address.below(folder)
        with self._explained(folder):
            listed = self._list(prefix, delimiter="/")
            found = {blob.name[len(prefix) :] for blob in listed}
        return sorted((found | {name[len(prefix) : -1] for name in listed.prefixes}) - {""})

    def sizes(self, folder: str) -> dict[str, int]:
        with self._explained(folder):
            return {
                self.address.path(blob.name): blob.size for blob in self._list(self.address.below(folder))
            }

    def listed(self, folder: str) -> Iterator[Listed]:
        with self._explained(folder):
            for blob in self._list(self.address.below(folder)):
                modified_us = int(blob.updated.timestamp() * 1e6)
                tag, path = blob.md5_hash or blob.crc32c, self.address.path(blob.name)
                yield Listed(path, blob.size, modified_us, tag, str(blob.generation))

    def read_range(self, listed: Listed, begin: int, end: int) -> bytes:
        # As it is stored: an object marked as gzip would be unpacked on the way.
        options = {"start": begin, "end": end - 1, "raw_download": True, "retry": _RETRY}
        with self._explained(listed.path):
            try:
                blob = self._blob(listed.path)
                data: bytes = blob.download_as_bytes(if_generation_match=int(listed.version), **options)
            except PreconditionFailed:
                raise FileNotFoundError(f"{self.uri}/{listed.path}") from None
        return data

    def copy(self, source: str, target: str) -> None:
        with self._explained(source):
            token, blob = None, self._blob(target)
            while True:
                # Large objects take several calls.
                token, _, _ = blob.rewrite(self._blob(source), token, retry=_RETRY)
                if token is None:
                    return

    def discard_all(self, paths: Iterable[str]) -> None:
        def discard(path: str) -> None:
            with self._explained(path), contextlib.suppress(NotFound):
                self._blob(path).delete(retry=_RETRY)

        each(discard, paths)

    def abort_uploads(self, folder: str) -> None:
        return

    def try_access(self) -> None:
        with self._explained(""):
            next(iter(self._list(self.address.below(""), max_results=1, retry=_QUICK_RETRY)), None)

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """Arrow has a client of its own, with the same kinds of credentials."""
        endpoint = urlsplit(_endpoint(self.address))
        own = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme, "anonymous": True}
        files = pyarrow.fs.GcsFileSystem(**own if endpoint.netloc else {})
        return files, f"{self.address.bucket}/{self.address.prefix}".rstrip("/")

    @property
    def _client(self) -> Any:
        return _connect(self.address, os.getpid())

    def _blob(self, path: str) -> Any:
        return self._client.bucket(self.address.bucket).blob(self.address.key(path))

    def _find(self, path: str) -> Any:
        with self._explained(path):
            return self._client.bucket(self.address.bucket).get_blob(self.address.key(path), retry=_RETRY)

    def _list(self, prefix: str, **options: Any) -> Any:
        options = {"retry": _RETRY, **options}
        return self._client.list_blobs(self.address.bucket, prefix=prefix, **options)

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        where = f"{self.uri}/{path}".rstrip("/")
        try:
            yield
        except NotFound as error:
            if "bucket does not exist" in str(error).lower() or not path:
                raise UsageError(
                    f"{self.uri}: there is no bucket {self.address.bucket}; create it, or mend the name"
                ) from None
            raise FileNotFoundError(where) from None
        except (Forbidden, Unauthorized) as error:
            raise UnavailableError(
                f"{where}: access refused ({error}); check the credentials, and that they may list, read, "
                "write and delete there"
            ) from None
        except google.auth.exceptions.GoogleAuthError as error:
            raise UnavailableError(
                f"{self.uri}: no credentials ({error}); expected the application's default ones: "
                "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's"
            ) from None
        except (GoogleAPIError, requests.RequestException) as error:
            raise UnavailableError(
                f"{where}: the server does not answer ({error}); check the network, then run it again"
            ) from None


def open_store(uri: str, option: str) -> GcsStore:
    """The store behind a `gs://` URI; raises UsageError."""
    return GcsStore(Address.parse(uri, option))


def with_beam_options(uri: str, beam_args: Sequence[str], option: str) -> str:
    """The URI with the endpoint of `STORAGE_EMULATOR_HOST`, if it has none; Beam has no such option."""
    address = Address.parse(uri, option)
    return address.with_options(
        {"endpoint": _endpoint(address)} if _endpoint(address) else {}, option
    ).full_uri


def _endpoint(address: Address) -> str:
    """Of a server that is not Google's; empty for Google's."""
    endpoint = address.endpoint or os.environ.get("STORAGE_EMULATOR_HOST", "")
    return endpoint if "://" in endpoint or not endpoint else f"http://{endpoint}"


@functools.cache
def _connect_once(address: Address, pid: int) -> Any:
    endpoint = _endpoint(address)
    own: dict[str, Any] = {
        "client_options": {"api_endpoint": endpoint},
        "credentials": AnonymousCredentials(),  # type: ignore[no-untyped-call]
        "project": "none",
    }
    client = storage.Client(**own if endpoint else {})
    adapter = requests.adapters.HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS)
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, adapter)
    return client


def _connect(address: Address, pid: int) -> Any:
    """One client for all threads of a process; a forked process needs connections of its own."""
    with _connecting:
        try:
            return _connect_once(address, pid)
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise UnavailableError(
                f"{address.uri}: no credentials; expected the application's default ones: "
                "GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's"
            ) from error
