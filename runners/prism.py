"""`prism`: Beam's own local streaming runner, one process started here and ended with the job."""

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from beamrec.runners.preset import Job, Preset, Say, register
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["PRISM", "find_prism"]

_LOGGER = logging.getLogger(__name__)
_PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
_ATTEMPTS = 3
_START_SECONDS = 30.0
_OPTIONS = (
    # Workers are threads of this process: no container, and a drain reaches them at once.
    "--environment_type=LOOPBACK",
    # Prism's split requests made 2 of 4 shuffled runs die with "cannot convert float NaN to integer".
    "--experiments=prism_disable_sdf_split",
    # Beam's default of 300 s is the deadline of the state stream too: every job would end after it.
    f"--job_server_timeout={10 * 365 * 86_400}",
)


def find_prism(location: str | None = None, say: Say = _LOGGER.warning) -> str:
    """Path of a Prism binary of Beam's version.

    It is `location` if given, else the one in Beam's cache, else built with Go if Go is present, else
    downloaded by Beam itself.

    Raises:
      UsageError: `location` does not exist.
      UnavailableError: none of the ways works.
    """
    if location:
        if not os.path.isfile(location):
            raise UsageError(f"--prism_location {location}: no such file")
        return location
    cached = _cache() / f"prism-v{_beam_version()}"
    if cached.is_file():
        return str(cached)
    go = shutil.which("go")
    problem = _build(go, cached, say) if go else "Go is not installed"
    return str(cached) if problem is None else _download(problem)


def _cache() -> Path:
    from apache_beam.runners.portability.prism_runner import PrismJobServer

    return Path(PrismJobServer.BIN_CACHE)


def _beam_version() -> str:
    from apache_beam.version import __version__

    return str(__version__)


def _build(go: str, target: Path, say: Say) -> str | None:
    """Builds Prism into the cache; returns what went wrong, or None."""
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"building Prism {_beam_version()}, the streaming runner, with Go: a few minutes, once …")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [go, "install", f"{_PACKAGE}@v{_beam_version()}"]
        built = subprocess.run(  # noqa: S603
            command, env={**os.environ, "GOBIN": folder}, capture_output=True, text=True, check=False
        )
        if built.returncode:
            return f"`{' '.join(command)}` failed: {built.stderr.strip()[-300:]}"
        os.replace(Path(folder) / "prism", target)
    return None


def _download(problem: str) -> str:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.prism_runner import PrismJobServer

    try:
        return str(PrismJobServer(PipelineOptions([]))._get_executable_path())
    except Exception as error:  # noqa: BLE001  (any failure is one way less)
        raise UnavailableError(
            f"Prism {_beam_version()} is needed to stream and could not be had: {problem}; Beam's download "
            f"failed: {error}. Install Go, or give a binary with --prism_location, or use --runner=direct "
            "(which emits only when its input ends)"
        ) from None


@contextlib.contextmanager
def _start(job: Job, beam_args: Sequence[str], say: Say) -> Iterator[list[str]]:
    location, rest = _split_location(beam_args)
    process, port = _serve(find_prism(location, say))
    try:
        yield ["--runner=PrismRunner", f"--job_endpoint=localhost:{port}", *_OPTIONS, *rest]
    finally:
        process.kill()
        process.wait()


def _serve(prism: str) -> "tuple[subprocess.Popen[bytes], int]":
    """Prism on a free port, up."""
    for attempt in range(1, _ATTEMPTS + 1):
        port = _free_port()
        process = subprocess.Popen(  # noqa: S603
            [prism, f"--job_port={port}", "--log_kind=json", "--serve_http=false"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A session of its own, or Ctrl-C would end Prism before anything drains.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )
        threading.Thread(target=_copy_log, args=(process,), name="prism-log", daemon=True).start()
        try:
            _wait_until_up(process, port)
            return process, port
        except BaseException as error:
            # Between the choice of a port and its use another process may take it.
            ended = isinstance(error, UnavailableError) and process.poll() is not None
            again = ended and attempt < _ATTEMPTS
            process.kill()
            process.wait()
            if not again:
                raise
    raise AssertionError("the last attempt returns or raises")


def _split_location(beam_args: Sequence[str]) -> tuple[str | None, list[str]]:
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--prism_location", default=os.environ.get("BEAMREC_PRISM_LOCATION"))
    known, rest = parser.parse_known_args(list(beam_args))
    return known.prism_location, rest


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Linux: when this process is killed, so is Prism; else a `kill -9` would leave it behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _copy_log(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None  # noqa: S101  (PIPE was asked for)
    for line in process.stdout:
        _LOGGER.info("%s", line.decode(errors="replace").rstrip())


def _wait_until_up(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(
                f"Prism ended at its start with exit code {process.returncode}; see the log"
            )
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise UnavailableError(f"Prism did not answer on port {port} within {_START_SECONDS:g} s; see the log")


PRISM = register(Preset("prism", _start, is_own=True))
