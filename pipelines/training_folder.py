"""The work folder of a training: one for each data set and options, so that a killed training goes on."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["training_folder", "writing"]

_STALE_SECONDS = 86_400.0
_LOCK = ".lock"
# Who removes a stale folder, or is about to end, holds its lock for a moment.
_WAIT_SECONDS, _POLL_SECONDS = 2.0, 0.05
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}


@contextlib.contextmanager
def training_folder(root: Path, name: str) -> Iterator[Path]:
    """The folder `root/name`, for this process alone while in the `with` block.

    It is removed at the end, and after an error that would come again. It stays, for the next training of
    that name to go on with, after a kill, an interrupt (Ctrl-C), and an error that may pass, such as a full
    disk. Folders that nobody has been at work in for a day are removed on the way.

    Raises:
      UsageError: another process is at work in it.
      UnavailableError: it cannot be written, or there is no room.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root, name)
        with _locked(root, name, _WAIT_SECONDS) as locked:
            if not locked:
                raise UsageError(
                    f"another training of the same data and options is at work in {root / name}; "
                    "wait for its end"
                )
            folder = root / name
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            except Exception as error:
                if not _may_pass(error):
                    _remove(folder)
                raise
            _remove(folder)
        with contextlib.suppress(OSError):
            root.rmdir()  # if nothing else is in it


def _may_pass(error: Exception) -> bool:
    """Whether another try with what was done so far may end well.

    A file that is missing in the folder would be missing again.
    """
    passing = isinstance(error, UnavailableError | OSError | MemoryError)
    return passing and not isinstance(error, FileNotFoundError)


def _remove_stale(root: Path, name: str) -> None:
    for path in root.iterdir():
        if path.name == name or path.name.endswith(_LOCK) or not path.is_dir() or not _is_stale(path):
            continue
        with _locked(root, path.name) as locked:
            if locked and _is_stale(path):
                _remove(path)


def _is_stale(folder: Path) -> bool:
    return time.time() - _last_change(folder) > _STALE_SECONDS


def _last_change(folder: Path) -> float:
    """When anything directly in the folder, or in a folder there, was last made or renamed."""
    with contextlib.suppress(OSError):
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    return time.time()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(root: Path, name: str, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Whether this process got the lock of a folder; it ends with the process, however that ends."""
    path = root / f"{name}{_LOCK}"
    deadline = time.monotonic() + wait_seconds
    while (descriptor := _lock(path)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """The descriptor of a file that is now locked by this process alone; None if another one has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_the_file(descriptor, path):
            return descriptor
    os.close(descriptor)
    return None


def _is_the_file(descriptor: int, path: Path) -> bool:
    """Whether a locked file still stands under its name: its last holder may have removed it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Explains the errors of a disk on which `folder` is written in the `with` block."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise UnavailableError(
            f"{folder}: cannot be written: {os.strerror(error.errno)}; make room there, or give another "
            "place, and run this again: it goes on from here"
        ) from error
