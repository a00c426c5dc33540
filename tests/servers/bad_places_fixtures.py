"""Places where nothing good is: ports that do not answer as they should, disks without room, certificates."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A client that still waits by then hears that it lost its server, and not that its own patience ended.
_SILENT_SECONDS = 60


@contextlib.contextmanager
def _listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose every connection is given to `answer`, in a thread of its own, and closed after it."""

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            answer(client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _say_nothing(client: socket.socket) -> None:
    client.settimeout(_SILENT_SECONDS)
    while client.recv(4096):
        pass


def _say_http(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="session")
def silent_port() -> Iterator[int]:
    """Accepts connections and says nothing for a minute."""
    with _listening(_say_nothing) as port:
        yield port


@pytest.fixture(scope="session")
def closing_port() -> Iterator[int]:
    """Accepts connections and closes them at once."""
    with _listening(lambda client: None) as port:
        yield port


@pytest.fixture(scope="session")
def http_port() -> Iterator[int]:
    """Speaks HTTP, and that first."""
    with _listening(_say_http) as port:
        yield port


@pytest.fixture(scope="session")
def refused_port() -> Iterator[int]:
    """Is taken, but nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.fixture(scope="session")
def authority(certificates: Path) -> Path:
    """The authority that vouches for the servers with TLS."""
    return certificates / "ca.pem"


@pytest.fixture(scope="session")
def mariadb_tls_port(tls_mariadb: tuple[object, Path]) -> int:
    """A MariaDB server with TLS."""
    port: int = tls_mariadb[0].port  # type: ignore[attr-defined]
    return port


@pytest.fixture(scope="session")
def postgresql_tls_port(tls_postgresql: tuple[int, Path]) -> int:
    """A PostgreSQL server with TLS."""
    return tls_postgresql[0]


@pytest.fixture(scope="session")
def wrong_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority that vouches for nobody here."""
    folder = tmp_path_factory.mktemp("other")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other"]
    files = ["-keyout", "ca.key", "-out", "ca.pem"]
    subprocess.run([*make, *files], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem"


@pytest.fixture(scope="session")
def expired_port(
    postgresql: object, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """A PostgreSQL server whose certificate, of the right authority and name, ended yesterday."""
    folder = tmp_path_factory.mktemp("expired")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    signed_by = ["-CA", certificates / "ca.pem", "-CAkey", certificates / "ca.key"]
    for command in (
        ["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=b", "-keyout", "key.pem", "-out", "request"],
        [
            "x509",
            "-req",
            "-in",
            "request",
            *signed_by,
            "-days",
            "-1",
            "-extfile",
            "names",
            "-out",
            "cert.pem",
        ],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    door = sys.modules["postgresql_fixtures"].tls_door
    with door(postgresql.port, folder) as port:  # type: ignore[attr-defined]
        yield port


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk(options)` mounts a tmpfs of its own, or gives the same one other options; returns its folder.

    Skipped, saying so, where mounting is not allowed; in CI that fails.
    """
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            message = f"a disk of a given size must be mounted, which only root may: {done.stderr.strip()}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)
