"""What the stores on object stores have in common: addresses, concurrency, staging, and the lease."""

import abc
import argparse
import contextlib
import dataclasses
import os.path
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow as pa
import pyarrow.fs

from beamrec.io.lease import Lease, lease_holder
from beamrec.schemas.errors import UsageError

__all__ = ["Address", "Listed", "ObjectStore", "each", "known_flags"]

_URI = re.compile(
    r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[^/?]*)(?P<prefix>/[^?]*)?(\?(?P<query>.*))?", re.DOTALL
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_STAGED = "_ledger/staged"
_LEASE = "_lease"
_THREADS = 16
# Below this number, asking for each object is cheaper than listing what else may be there.
_FEW = 16

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where an output is: everything that a worker needs to find it, and no credential.

    Attributes:
      prefix: of every object's name, without slashes at its ends; may be empty.
      endpoint: URL of the server; empty for the provider's own.
      region: of the bucket; empty for the provider's or the environment's default.
      verify: `false`, or a file of certificate authorities; empty for the system's.
    """

    scheme: str
    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""
    verify: str = ""

    @classmethod
    def parse(cls, uri: str, option: str) -> "Address":
        """Raises UsageError, which does not repeat what may be a secret."""
        match = _URI.fullmatch(uri)
        if match is None or not _BUCKET.fullmatch(match["bucket"]):
            raise UsageError(
                f"{option}: expected {uri.partition('://')[0]}://bucket/prefix, a bucket of 3 to 222 small "
                "letters, digits, dots and hyphens; credentials come from the environment, never from the URI"
            )
        values = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
        address = cls(match["scheme"], match["bucket"], (match["prefix"] or "").strip("/"))
        return address.with_options(values, option)

    def with_options(self, values: Mapping[str, str], option: str) -> "Address":
        """The address with `endpoint`, `region` and `verify` from elsewhere; raises UsageError."""
        unknown = sorted(values.keys() - {"endpoint", "region", "verify"})
        if unknown:
            raise UsageError(
                f"{option}: {unknown[0]!r} is no option of a {self.scheme}:// URI; expected endpoint, region "
                "or verify. Credentials come from the environment, never from the URI"
            )
        endpoint = urlsplit(values.get("endpoint", ""))
        if endpoint.geturl() and (endpoint.scheme not in ("http", "https") or not endpoint.hostname):
            raise UsageError(f"{option}: endpoint: expected http://host:port or https://host:port")
        if endpoint.username is not None or endpoint.query:
            raise UsageError(
                f"{option}: endpoint: must not carry credentials; they come from the environment"
            )
        return dataclasses.replace(self, **values)

    @property
    def uri(self) -> str:
        """The root without options, as it is shown."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def full_uri(self) -> str:
        """What `parse` reads back."""
        options = {name: getattr(self, name) for name in ("endpoint", "region", "verify")}
        query = urlencode({name: value for name, value in options.items() if value})
        return f"{self.uri}?{query}" if query else self.uri

    def key(self, path: str) -> str:
        """The object's name in the bucket."""
        return f"{self.prefix}/{path}" if self.prefix else path

    def below(self, folder: str) -> str:
        """What the names of all objects below a folder begin with."""
        return self.key(f"{folder}/" if folder else "")

    def path(self, key: str) -> str:
        """The inverse of `key`."""
        return key[len(self.prefix) + 1 :] if self.prefix else key


@dataclasses.dataclass(frozen=True)
class Listed:
    """An object as a listing shows it.

    Attributes:
      path: below the root.
      size: bytes.
      modified_us: when the store last wrote it, microseconds since the epoch.
      tag: another one if the content is another.
      version: another one after each write.
    """

    path: str
    size: int
    modified_us: int
    tag: str
    version: str


class ObjectStore(abc.ABC):
    """A `Store` but for what differs between providers, all of it given by objects' paths."""

    def __init__(self, address: Address) -> None:
        self.address = address

    @property
    def uri(self) -> str:
        return self.address.uri

    @abc.abstractmethod
    def create(self, path: str, data: bytes) -> bool: ...

    @abc.abstractmethod
    def read(self, path: str) -> bytes: ...

    @abc.abstractmethod
    def put(self, path: str, data: bytes | pa.Buffer, durable: bool = False) -> None: ...

    @abc.abstractmethod
    def put_file(self, path: str, local_file: str | Path) -> None: ...

    @abc.abstractmethod
    def get_file(self, path: str, local_file: str | Path) -> None:
        """Copies an object of any size into a local file; raises FileNotFoundError."""

    @abc.abstractmethod
    def names(self, folder: str) -> list[str]: ...

    @abc.abstractmethod
    def age_seconds(self, path: str) -> float: ...

    @abc.abstractmethod
    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]: ...

    @abc.abstractmethod
    def discard_all(self, paths: Iterable[str]) -> None: ...

    @abc.abstractmethod
    def sizes(self, folder: str) -> dict[str, int]: ...

    @abc.abstractmethod
    def listed(self, folder: str) -> Iterator[Listed]:
        """All objects below a folder, at any depth."""

    @abc.abstractmethod
    def read_range(self, listed: Listed, begin: int, end: int) -> bytes:
        """Bytes from `begin` up to `end`; raises FileNotFoundError if it is gone, or another one by now."""

    @abc.abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of one object; None if it is not there."""

    @abc.abstractmethod
    def try_access(self) -> None:
        """Asks for something small with few attempts, so that a wrong address is told soon."""

    @abc.abstractmethod
    def copy(self, source: str, target: str) -> None:
        """Copies an object on the server, replacing; raises FileNotFoundError."""

    @abc.abstractmethod
    def abort_uploads(self, folder: str) -> None:
        """Forgets unfinished uploads below a folder."""

    def check(self) -> None:
        self.try_access()
        # Some servers that speak the protocol ignore the condition: no lock would hold there. A run that
        # tidies up at this moment may remove a probe, which looks the same, but hardly three.
        if not any(self._keeps_what_is_there() for _ in range(3)):
            raise UsageError(
                f"{self.uri}: this server replaces an object that must not exist yet (If-None-Match: *), so "
                "that two runs could not be kept apart; expected one that honours conditional writes"
            )

    def _keeps_what_is_there(self) -> bool:
        probe = f"_staging/{uuid.uuid4().hex}.tmp"
        try:
            return self.create(probe, b"") and not self.create(probe, b"")
        finally:
            self.discard(probe)

    def exclusive(self, run: str) -> contextlib.AbstractContextManager[Any]:
        return Lease(self, run, _LEASE)

    def let_in_last(self) -> str | None:
        return lease_holder(self, _LEASE)

    def stage(self, data: bytes) -> str:
        staged = f"{_STAGED}/{uuid.uuid4().hex}"
        self.put(staged, data)
        return staged

    def publish(self, staged: str, path: str) -> bool:
        created = self.create(path, self.read(staged))
        self.discard(staged)
        return created

    def discard(self, path: str) -> None:
        self.discard_all([path])

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def put_all(self, objects: Iterable[tuple[str, bytes | pa.Buffer]]) -> None:
        each(lambda item: self.put(*item), objects)

    def flush(self) -> None:
        # An object that the server has acknowledged is durable.
        return

    def sizes_of(self, paths: Collection[str]) -> dict[str, int]:
        folders = defaultdict(list)
        for path in paths:
            folders[path.partition("/")[0]].append(path)
        found: dict[str, int] = {}
        for top, inside in folders.items():
            found.update(
                self._sizes_of_few(inside) if len(inside) < _FEW else self.sizes(_common(inside, top))
            )
        return {path: found[path] for path in paths if path in found}

    def _sizes_of_few(self, paths: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}

        def ask(path: str) -> None:
            size = self.size(path)
            if size is not None:
                found[path] = size

        each(ask, paths)
        return found

    def move_all(self, folder: str, paths: Sequence[str]) -> None:
        def move(path: str) -> None:
            try:
                self.copy(f"{folder}/{path}", path)
            except FileNotFoundError:
                if not self.exists(path):
                    raise

        # Everything is in place before the first staged object goes.
        each(move, paths)
        self.discard_all(f"{folder}/{path}" for path in paths)

    def discard_tree(self, folder: str) -> None:
        self.discard_all([folder, *self.sizes(folder)])
        self.abort_uploads(folder)


def each(function: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Calls a function for every item, on several threads; holds few items at a time.

    Raises the first error, after the calls under way have ended.
    """
    with ThreadPoolExecutor(_THREADS, "store") as pool:
        pending: set[Future[None]] = set()
        for item in items:
            pending.add(pool.submit(function, item))
            if len(pending) >= 2 * _THREADS:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                _raise_errors(done)
        _raise_errors(wait(pending).done)


def _raise_errors(done: Iterable["Future[None]"]) -> None:
    for future in done:
        future.result()


def _common(paths: Sequence[str], top: str) -> str:
    """The folder that all of the paths are in."""
    return os.path.commonpath([path.rpartition("/")[0] for path in paths]) or top


def known_flags(beam_args: Sequence[str], *names: str) -> dict[str, str]:
    """The values of those flags that are given, by name without dashes."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(f"--{name}")
    return dict(vars(parser.parse_known_args(list(beam_args))[0]))
