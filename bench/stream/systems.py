"""Systems under test: each reads the topic from its first offset until it is told to stop."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from servers import BEAMREC

__all__ = ["SYSTEMS", "WINDOW_SECONDS", "start"]

_PEERS = Path(__file__).parent / "peers"
_STOP_SECONDS = 120
WINDOW_SECONDS = 10

SYSTEMS = {
    "beamrec": (),
    "loop": ("loop.py",),
    "bytewax": ("bytewax_flow.py",),
    "function_warm": ("function.py", "--connect=warm"),
    "function_connect": ("function.py", "--connect=per-event"),
}
"""Name -> program of the peer with its options; beamrec is a command of its own."""


@contextlib.contextmanager
def start(
    system: str, broker: str, topic: str, uri: str, folder: Path, python: Path, more: Sequence[str] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """The running system; it is asked to stop at the end, and killed if it does not.

    Args:
      system: one of SYSTEMS.
      broker: host:port.
      topic: to read from its beginning.
      uri: of PostgreSQL.
      folder: for its files, empty.
      python: of the peers' environment.
      more: further options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [*_command(system, broker, topic, uri, folder, python), *more],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT if system == "beamrec" else signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{system} did not stop; its log: {folder / 'log'}", file=sys.stderr)
            process.kill()
            process.wait()


def _command(system: str, broker: str, topic: str, uri: str, folder: Path, python: Path) -> list[str]:
    if system == "beamrec":
        return [
            *(str(BEAMREC), "stream", "--input", f"kafka://{broker}/{topic}", "--vector-db", uri),
            *("--output", str(folder / "out"), "--home", str(folder / "home")),
            *("--window-seconds", str(WINDOW_SECONDS)),
        ]
    program, *options = SYSTEMS[system]
    interpreter = str(python) if system == "bytewax" else sys.executable
    return [
        *(interpreter, str(_PEERS / program), "--bootstrap", broker, "--topic", topic),
        *("--vector-db", uri, "--output", str(folder / "out"), *options),
    ]
