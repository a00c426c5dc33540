"""The store on a POSIX file system: a folder."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.paths import local_path

__all__ = ["LocalStore", "open_store", "with_beam_options"]

_LEDGER_STAGED = "_ledger/staged"
_STAGING = "_staging"
_THREADS = 8
_MANY = 64
_NOT_THERE = (FileNotFoundError, NotADirectoryError)


class LocalStore:
    """A folder. `os.link` gives the atomic create that `rename` cannot."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._base = str(root)

    @property
    def uri(self) -> str:
        return self._base

    def create(self, path: str, data: bytes) -> bool:
        staged = self.stage(data)
        try:
            return self._link(staged, path)
        finally:
            self.discard(staged)

    def stage(self, data: bytes) -> str:
        staged = f"{_LEDGER_STAGED}/{uuid.uuid4().hex}"
        with self._explained():
            try:
                _make_folder(self.root / _LEDGER_STAGED)
                _write_new(self._at(staged), data, sync=True)
            except OSError:
                # A full disk leaves a partial file behind: nobody refers to it.
                self.discard(staged)
                raise
        return staged

    def publish(self, staged: str, path: str) -> bool:
        created = self._link(staged, path)
        self.discard(staged)
        return created

    def discard(self, path: str) -> None:
        with self._explained(), contextlib.suppress(*_NOT_THERE):
            os.unlink(self._at(path))

    def read(self, path: str) -> bytes:
        with self._explained("read"):
            try:
                return (self.root / path).read_bytes()
            except NotADirectoryError as error:
                raise FileNotFoundError(path) from error

    def exists(self, path: str) -> bool:
        # `os.path.isfile` takes a file that cannot be looked at for one that is not there.
        with self._explained("read"), contextlib.suppress(*_NOT_THERE):
            return stat.S_ISREG(os.stat(self._at(path)).st_mode)
        return False

    def names(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder))

    def age_seconds(self, path: str) -> float:
        # Both times come from the file system that holds the store, not from this machine's clock.
        probe = self.stage(b"")
        try:
            with self._explained("read"):
                return os.stat(self._at(probe)).st_mtime - os.stat(self._at(path)).st_mtime
        finally:
            self.discard(probe)

    def check(self) -> None:
        with self._explained():
            try:
                os.makedirs(self._base, exist_ok=True)
            except FileNotFoundError:
                raise OSError(errno.EPERM, "no folder can be made there") from None  # as in /proc
            # Nothing is written: another run may hold the folder.
            if not os.access(self._base, os.W_OK | os.X_OK):
                raise OSError(*_why_not(self._base))

    @contextlib.contextmanager
    def exclusive(self, run: str) -> Iterator[None]:
        # The kernel's lock ends with the process.
        with self._explained():
            descriptor = os.open(self._base, os.O_RDONLY)
        try:
            with self._explained():
                locked = _lock(descriptor)
            if not locked:
                raise UsageError(
                    f"--output {self.uri}: another batch run writes there; wait for its end to run {run}"
                )
            yield
        finally:
            os.close(descriptor)

    def let_in_last(self) -> None:
        return None

    def put(self, path: str, data: bytes | pa.Buffer, durable: bool = False) -> None:
        target = self._at(path)
        with self._explained():
            if durable:
                self._replace(target, data)
                return
            try:
                _write_new(target, data)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                _write_new(target, data)
            except FileExistsError:
                # Another attempt wrote it, or died at it, or is still writing: it must not be cut under it.
                self._replace(target, data)

    def put_all(self, objects: Iterable[tuple[str, bytes | pa.Buffer]]) -> None:
        for path, data in objects:
            self.put(path, data)

    def put_file(self, path: str, local_file: str | Path) -> None:
        with self._explained(), self._temporary() as temporary:
            shutil.copyfile(local_file, temporary)
            self._rename(temporary, self._at(path))

    def flush(self) -> None:
        # One call for all files: 10,000 of 12 kB took 0.3 s, `fsync` of each some 10 s.
        with self._explained():
            descriptor = os.open(self._base, os.O_RDONLY)
            try:
                _sync_file_system(descriptor)
            finally:
                os.close(descriptor)

    def sizes(self, folder: str) -> dict[str, int]:
        found = {}
        for path, entry in self._tree(folder):
            if not entry.is_dir(follow_symlinks=False):
                with self._explained("read"), contextlib.suppress(FileNotFoundError):
                    found[path] = entry.stat(follow_symlinks=False).st_size
        return found

    def sizes_of(self, paths: Collection[str]) -> dict[str, int]:
        found = {}
        with self._explained("read"):
            for path in paths:
                with contextlib.suppress(*_NOT_THERE):
                    found[path] = os.stat(self._at(path)).st_size
        return found

    def move_all(self, folder: str, paths: Sequence[str]) -> None:
        parents = defaultdict(list)
        for path in paths:
            parents[path.rpartition("/")[0]].append(path)
        with self._explained():
            # A new folder moves as a whole, a first publication with a single rename.
            tops = {parent.partition("/")[0] for parent in parents}
            moved = {top for top in tops if self._move_folder(f"{folder}/{top}", top)}
            for parent, children in parents.items():
                if parent.partition("/")[0] in moved or self._move_folder(f"{folder}/{parent}", parent):
                    continue
                for path in children:
                    self._move(f"{folder}/{path}", path)

    def discard_all(self, paths: Iterable[str]) -> None:
        gone = list(paths)
        with self._explained():
            _each(self.discard, gone)
            self._remove_empty({path.rpartition("/")[0] for path in gone})

    def discard_tree(self, folder: str) -> None:
        entries = list(self._tree(folder))
        folders = {path for path, entry in entries if entry.is_dir(follow_symlinks=False)}
        with self._explained():
            _each(self.discard, [path for path, _ in entries if path not in folders])
            if not os.path.isdir(self._at(folder)):
                self.discard(folder)
            self._remove_empty({folder, folder.rpartition("/")[0], *folders})

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.LocalFileSystem(), self._base

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}"

    def _tree(self, folder: str) -> "Iterator[tuple[str, os.DirEntry[str]]]":
        """Everything below a folder."""
        folders = [folder]
        while folders:
            above = folders.pop()
            for entry in self._entries(above):
                path = f"{above}/{entry.name}" if above else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                yield path, entry

    def _entries(self, folder: str) -> "list[os.DirEntry[str]]":
        with (
            self._explained("read"),
            contextlib.suppress(*_NOT_THERE),
            os.scandir(self._at(folder)) as entries,
        ):
            return list(entries)
        return []

    def _link(self, staged: str, path: str) -> bool:
        target = self.root / path
        with self._explained():
            _make_folder(target.parent)
            try:
                os.link(self.root / staged, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
                    raise UsageError(
                        f"output {self.root}: its file system has no hard links, which effect-once files "
                        "need; give an output on another one"
                    ) from error
                raise
            _sync_folder(target.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[str]:
        """A name below the staging folder, where the next run finds what a kill left."""
        os.makedirs(self._at(_STAGING), exist_ok=True)
        temporary = self._at(f"{_STAGING}/{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def _replace(self, target: str, data: bytes | pa.Buffer) -> None:
        with self._temporary() as temporary:
            _write_new(temporary, data, sync=True)
            self._rename(temporary, target)
        _sync_folder(Path(target).parent)

    def _rename(self, source: str, target: str) -> None:
        try:
            os.replace(source, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(source, target)

    def _move_folder(self, source: str, target: str) -> bool:
        """Moves a folder to a place where there is none; False, and no change, if there is one."""
        if not target or os.path.isdir(self._at(target)) or not os.path.isdir(self._at(source)):
            return False
        self._rename(self._at(source), self._at(target))
        return True

    def _move(self, source: str, target: str) -> None:
        try:
            self._rename(self._at(source), self._at(target))
        except FileNotFoundError:
            if not self.exists(target):
                raise FileNotFoundError(f"{self._at(source)} is gone, and {target} is not there") from None

    def _remove_empty(self, folders: set[str]) -> None:
        """Removes those of the folders that are empty, and what is empty then; the root is the user's."""
        left = folders - {""}
        while left:
            # The deepest first.
            depth = max(folder.count("/") for folder in left)
            deepest = [folder for folder in left if folder.count("/") == depth]
            removed: set[str] = set()

            def remove(folder: str, removed: set[str] = removed) -> None:
                with contextlib.suppress(OSError):
                    os.rmdir(self._at(folder))
                    removed.add(folder)

            _each(remove, deepest)
            left = (left - set(deepest)) | {folder.rpartition("/")[0] for folder in removed} - {""}

    @contextlib.contextmanager
    def _explained(self, what: str = "written") -> Iterator[None]:
        """What the system says of the folder, as an error for the user; a missing file stays what it is."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if what == "read":
                raise UnavailableError(f"{self.uri}: cannot be read: {error.strerror}") from error
            raise UnavailableError(
                f"--output {self.uri}: cannot be written: {error.strerror}; expected a writable folder with "
                "room for the data. What was published before is unchanged or finished by the next run"
            ) from error


def open_store(uri: str, option: str) -> LocalStore:
    """The store behind a path or a `file://` URI; raises UsageError."""
    return LocalStore(local_path(uri, option))


def with_beam_options(uri: str, beam_args: Sequence[str], option: str) -> str:
    """The URI as it is: Beam has no options for local folders."""
    return uri


def _each(function: Callable[[str], None], paths: Sequence[str]) -> None:
    """Calls a function for every path, on threads if there are many.

    To free what is on disk can take a millisecond a file, all of it waiting for the disk: 10,000 files went
    in 20 s one by one and in 1.5 s on eight threads. To create and to rename is not faster so.
    """
    if len(paths) < _MANY:
        for path in paths:
            function(path)
        return

    def some(at: int) -> None:
        for path in paths[at : at + _MANY]:
            function(path)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(some, range(0, len(paths), _MANY)))


def _write_new(target: str, data: bytes | pa.Buffer, sync: bool = False) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _why_not(folder: str) -> tuple[int, str]:
    """Why a folder may not be written to, as an error number and its text."""
    read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    number = errno.EROFS if read_only else errno.EACCES if os.path.isdir(folder) else errno.ENOTDIR
    return number, os.strerror(number)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_file_system(descriptor: int) -> None:
    """`syncfs`, which Python lacks; where the system lacks it too, all file systems."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


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
