"""A TCP proxy that cuts connections in the middle of what the server sends."""

import contextlib
import random
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

import pytest


class DroppingProxy:
    """Forwards to a port of this machine; connections are cut after a random number of bytes.

    Attributes:
      port: where it listens.
      left: how many connections it will still cut.
      cut: how many it has cut.
    """

    def __init__(self, target: int, drops: int, most_bytes: int, seed: int) -> None:
        self._target, self._most_bytes = target, most_bytes
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.left, self.cut = drops, 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def cut_all(self) -> None:
        """Cuts the connections that are open now."""
        for client in tuple(self._open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # Most cuts come while rows are sent, some already at the login.
            budget = self._random.randrange(self._most_bytes) if self.left else None
            threading.Thread(target=self._forward, args=(client, budget), daemon=True).start()

    def _forward(self, client: socket.socket, budget: int | None) -> None:
        with (
            contextlib.suppress(OSError),
            self._listed(client),
            socket.create_connection(("127.0.0.1", self._target)) as server,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source, target = key.fileobj, key.data
                    data = source.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    if source is server and budget is not None:
                        budget -= len(data)
                    if budget is not None and budget <= 0 and self._may_cut():
                        target.sendall(data[:budget])
                        return
                    target.sendall(data)

    def _may_cut(self) -> bool:
        with self._lock:
            may = self.left > 0
            self.left -= may
            self.cut += may
            return may

    @contextlib.contextmanager
    def _listed(self, client: socket.socket) -> Iterator[None]:
        self._open.add(client)
        try:
            with client:
                yield
        finally:
            self._open.discard(client)


@pytest.fixture
def dropping_proxy() -> Iterator[Callable[..., DroppingProxy]]:
    """`dropping_proxy(target, drops=, most_bytes=, seed=)`: a proxy, closed at the end of the test."""
    proxies: list[DroppingProxy] = []

    def make(target: int, drops: int, most_bytes: int, seed: int) -> DroppingProxy:
        proxies.append(DroppingProxy(target, drops, most_bytes, seed))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()
