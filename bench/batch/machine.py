"""What the bench ran on."""

import datetime as dt
import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from peers_setup import PEER_PYTHON, jars
from server import Server

__all__ = ["describe_machine"]

_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("apache-beam", "pyarrow", "numpy")
_PEERS = ("connectorx", "duckdb", "pyarrow", "pyspark")


def describe_machine(server: Server) -> dict[str, object]:
    """A `machine` record: hardware, system, versions of all that ran, and the commit."""
    ask = f"from importlib.metadata import version; print(*map(version, {_PEERS!r}))"
    return {
        "kind": "machine",
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "mariadb": server.execute("SELECT VERSION()")[0][0],
        "java": _output("java", "-version").splitlines()[0],
        "ours": {name: version(name) for name in _OURS},
        "peers": dict(zip(_PEERS, _output(str(PEER_PYTHON), "-c", ask).split(), strict=True)),
        "driver": jars()[0].stem,
        "commit": _output("git", "-C", str(_ROOT), "describe", "--always", "--dirty").strip(),
    }


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(errors="replace"))
    return found.group(1) if found else platform.processor()


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return done.stdout or done.stderr
