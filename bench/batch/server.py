"""A private MariaDB server on the loopback, whose data folder is kept so that a shop is made only once."""

import contextlib
import dataclasses
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql

__all__ = ["Server", "serve", "start", "stop"]

_START_SECONDS = 60
_STOP_SECONDS = 120
_STATE = "server.json"


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server; `root` needs no password, over TCP on 127.0.0.1 either.

    Attributes:
      pid: process of the server.
      port: TCP port on 127.0.0.1.
      socket: path of its Unix socket.
    """

    pid: int
    port: int
    socket: str

    def uri(self, database: str) -> str:
        """What `--source` takes."""
        return f"mysql://root@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements; returns the rows of the last one."""
        with (
            pymysql.connect(
                unix_socket=self.socket, user="root", autocommit=True, charset="utf8mb4"
            ) as connection,
            connection.cursor() as cursor,
        ):
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())


def start(folder: Path) -> Server:
    """The server of a data folder: the one that runs there, else a new one, on a new folder if need be.

    Raises:
      SystemExit: MariaDB is not installed, or does not start.
    """
    running = _running(folder)
    if running:
        return running
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    if not (data / "mysql").is_dir():
        _install(data)
    server, process = _launch(folder, data)
    _wait_until_up(server, process, folder / "log")
    (folder / _STATE).write_text(json.dumps(dataclasses.asdict(server)))
    return server


def stop(folder: Path) -> None:
    """Stops the server of a data folder, if one runs, and waits until it has written everything."""
    server = _running(folder)
    if server is None:
        return
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while _is_ours(server.pid, folder):
        if time.monotonic() > deadline:
            raise SystemExit(f"the server of {folder} (pid {server.pid}) did not stop in {_STOP_SECONDS} s")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(server.pid, os.WNOHANG)
        time.sleep(0.1)
    (folder / _STATE).unlink()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """The server of a data folder; stopped at the end only if it was started here."""
    found = _running(folder) is not None
    try:
        yield start(folder)
    finally:
        if not found:
            stop(folder)


def _running(folder: Path) -> Server | None:
    try:
        server = Server(**json.loads((folder / _STATE).read_text()))
    except FileNotFoundError:
        return None
    return server if _is_ours(server.pid, folder) else None


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether the process is the server of this folder: its id may have gone to another one since."""
    try:
        return f"--datadir={folder}/data".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _program(*names: str) -> str:
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise SystemExit(f"no program {' or '.join(names)}: install MariaDB (Debian: mariadb-server)")
    return found


def _install(data: Path) -> None:
    command = [
        _program("mariadb-install-db", "mysql_install_db"),
        "--no-defaults",
        f"--datadir={data}",
        f"--user={getpass.getuser()}",
        "--auth-root-authentication-method=normal",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def _launch(folder: Path, data: Path) -> tuple[Server, "subprocess.Popen[bytes]"]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    path = f"/tmp/beamrec-bench-{port}.sock"  # noqa: S108  (a socket's path must be short)
    command = [
        _program("mariadbd", "mysqld"),
        "--no-defaults",
        f"--user={getpass.getuser()}",
        f"--datadir={data}",
        "--bind-address=127.0.0.1",
        f"--socket={path}",
        f"--port={port}",
        "--character-set-server=utf8mb4",
        # The tables that are read stand in memory, so that the readers are measured and not the disk.
        "--innodb-buffer-pool-size=4G",
        # A shop that was lost halfway is made again: no need to pay for durability while loading.
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--innodb-log-file-size=1G",
        "--max-allowed-packet=256M",
        "--secure-file-priv=",
    ]
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    return Server(process.pid, port, path), process


def _wait_until_up(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.execute("SELECT 1")
            return
        except pymysql.err.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"MariaDB did not start; see {log}") from None
            time.sleep(0.1)
