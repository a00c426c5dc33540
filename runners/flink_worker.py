"""One Python worker of a local Flink cluster, as its pool starts it: Beam's boot program in its own folder.

What the worker installs goes into an environment of its own, which sees the pool's packages behind it: two
workers do not meet, and a job's `--setup_file` counts over what the pool has. A TaskManager that was killed
tells no worker to end, and boot would start the worker again four times, each time for ten seconds of a core,
while the job recovers elsewhere: so it ends when nobody listens any more.

A program of the standard library alone, which is not imported: it has to start at once.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_LOOK_SECONDS = 1.0
_REFUSALS = 3


def main(folder: str, boot: str, packages: str, *flags: str) -> int:
    """Runs boot with `flags` until it ends, or the TaskManager has."""
    work = Path(tempfile.mkdtemp(dir=folder))
    environment = work / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)  # noqa: S603
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = environment / "lib" / version / "site-packages" / "pool.pth"
    own.write_text(f"import site; site.addsitedir({packages!r})\n", encoding="utf-8")
    # With this set, boot makes no environment of its own.
    variables = {**os.environ, "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1"}
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [boot, f"--semi_persist_dir={work}", *flags]
    # The pool reads no standard output: a worker that filled the pipe would stand still.
    process = subprocess.Popen(command, cwd=work, env=variables, stdout=sys.stderr)  # noqa: S603
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    control = next(flag.partition("=")[2] for flag in flags if flag.startswith("--control_endpoint="))
    refused = 0
    while process.poll() is None:
        refused = 0 if _listens(control) else refused + 1
        if refused == _REFUSALS:
            process.terminate()
        time.sleep(_LOOK_SECONDS)
    return process.returncode


def _listens(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=30).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
