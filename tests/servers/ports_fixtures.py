"""Ports for servers that must be told theirs; whoever needs one imports this where it starts the server."""

import contextlib
import os
import secrets
import socket

_FIRST, _STEPS, _WORKERS = 15_000, 1_100, 16
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody has, and that nobody gets before the server has it.

    It lies below those that the system hands out to whoever asks for any: one of them may be another's in the
    seconds that a server takes to start, even the one of a client that waits for the server and is then
    connected with itself. Each worker of pytest has ports of its own.
    """
    while True:
        port = _FIRST + _WORKERS * secrets.randbelow(_STEPS) + _worker
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port
