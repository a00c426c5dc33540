"""Durable, write-once objects below a root: what the ledger and the segments are made of.

Two operations carry every guarantee, and both exist on file systems and on object stores: create an
object that must not exist yet (`os.link` here, `If-None-Match: *` there) and publish a staged object
under such a name. Nothing is ever overwritten, and nothing is visible before it is complete.
"""

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Protocol

from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.paths import local_path

__all__ = ["LocalStore", "Store", "clean_staged", "open_store"]


class Store(Protocol):
    """Write-once objects, named by relative paths with forward slashes."""

    def create(self, path: str, data: bytes) -> bool:
        """Writes a new object durably; False, and no change, if the name is taken."""

    def stage(self, data: bytes) -> str:
        """Writes an object durably under a name of its own that no reader looks at; returns the name."""

    def publish(self, staged: str, path: str) -> bool:
        """Makes a staged object visible as `path`; False, and no change, if the name is taken.

        Raises:
          FileNotFoundError: the staged object is gone.
        """

    def discard(self, path: str) -> None:
        """Removes an object that nothing refers to; no error if it is gone."""

    def read(self, path: str) -> bytes:
        """The object's bytes; raises FileNotFoundError."""

    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    def names(self, folder: str) -> list[str]:
        """Names directly below a folder, sorted; empty if there is no such folder."""

    def age_seconds(self, path: str) -> float:
        """Seconds since the object was written, by the store's clock."""


_STAGED = "_ledger/staged"
_STALE_SECONDS = 86_400.0


class LocalStore:
    """A folder on a POSIX file system. `os.link` gives the atomic create that `rename` cannot."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def create(self, path: str, data: bytes) -> bool:
        staged = self.stage(data)
        try:
            return self._link(staged, path)
        finally:
            self.discard(staged)

    def stage(self, data: bytes) -> str:
        staged = f"{_STAGED}/{uuid.uuid4().hex}"
        target = self.root / staged
        try:
            _make_folder(target.parent)
            with open(target, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A full disk leaves a partial file behind: nobody refers to it.
            self.discard(staged)
            raise UnavailableError(f"output {self.root}: cannot be written: {error.strerror}") from error
        return staged

    def publish(self, staged: str, path: str) -> bool:
        created = self._link(staged, path)
        self.discard(staged)
        return created

    def discard(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.root / path)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def age_seconds(self, path: str) -> float:
        # Both times come from the file system that holds the store, not from this machine's clock.
        probe = self.stage(b"")
        try:
            return os.stat(self.root / probe).st_mtime - os.stat(self.root / path).st_mtime
        finally:
            self.discard(probe)

    def _link(self, staged: str, path: str) -> bool:
        target = self.root / path
        _make_folder(target.parent)
        try:
            os.link(self.root / staged, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
                raise UsageError(
                    f"output {self.root}: its file system has no hard links, which effect-once files need; "
                    "give an output on another one"
                ) from error
            raise
        _sync_folder(target.parent)
        return True


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """A new name survives a power loss only once its folder is on disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean_staged(store: Store) -> None:
    """Removes what killed writers left staged, once no writer can still be at work on it.

    To be called after `finish_publications`: what a committed entry refers to is no longer staged then.
    """
    for name in store.names(_STAGED):
        with contextlib.suppress(FileNotFoundError):
            if store.age_seconds(f"{_STAGED}/{name}") > _STALE_SECONDS:
                store.discard(f"{_STAGED}/{name}")


def open_store(uri: str) -> LocalStore:
    """The store behind a path or a `file://` URI.

    Raises:
      UsageError: the scheme is not known.
    """
    return LocalStore(local_path(uri, "--output"))
