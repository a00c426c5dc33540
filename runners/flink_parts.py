"""What a local Flink cluster is made of, fetched once for a version into `~/.cache/beamrec`."""

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from beamrec.schemas.errors import UnavailableError

__all__ = ["boot_program", "flink_classpath", "job_server_classpath"]

FLINK_VERSION = "1.19.3"
JOB_SERVER_VERSION = "2.70.0"
_POM = Path(__file__).resolve().parents[1] / "deploy" / "flink" / "pom.xml"
_BOOT = "github.com/apache/beam/sdks/v2/python/container"

Say = Callable[[str], None]


def flink_classpath(say: Say) -> str:
    """Class path of Flink itself: PyFlink's libraries are the distribution's jars."""
    wanted = f"apache-flink-libraries=={FLINK_VERSION}"

    def fetch(target: Path) -> list[str]:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
        return [*command, f"--target={target}", wanted]

    return f"{_fetched(f'flink-{FLINK_VERSION}', fetch, say)}/pyflink/lib/*"


def job_server_classpath(say: Say) -> str:
    """Class path of Beam's job server for it, put together from Maven by `deploy/flink/pom.xml`."""

    def fetch(target: Path) -> list[str]:
        if not _POM.is_file():
            raise UnavailableError(
                f"{_POM} is missing: a local Flink cluster needs a checkout of the project"
            )
        goal = "dependency:copy-dependencies"
        return [_program("mvn", "maven"), "-q", "-B", "-f", str(_POM), goal, f"-DoutputDirectory={target}"]

    return f"{_fetched(f'flink-job-server-{JOB_SERVER_VERSION}', fetch, say)}/*"


def boot_program(say: Say) -> str:
    """Beam's boot program, which the worker pool starts workers with, built with Go."""
    from apache_beam.version import __version__

    environment: dict[str, str] = {}

    def fetch(target: Path) -> list[str]:
        environment["GOBIN"] = str(target)
        return [_program("go", "golang-go"), "install", f"{_BOOT}@v{__version__}"]

    return f"{_fetched(f'beam-boot-{__version__}', fetch, say, environment)}/container"


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if not found:
        raise UnavailableError(f"a local Flink cluster needs the program {name} (Debian: {package})")
    return found


def _fetched(
    name: str, fetch: Callable[[Path], list[str]], say: Say, environment: dict[str, str] | None = None
) -> Path:
    """The folder of a part; it gets its name when all of it is there.

    Raises:
      UnavailableError: it cannot be had; the message ends with what the program said.
    """
    folder = Path.home() / ".cache" / "beamrec" / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{name}-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    command = fetch(partial)
    say(f"fetching {name}, once: a few minutes …")
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise UnavailableError(f"{name} could not be had: `{' '.join(command)}` failed: {said}")
    with contextlib.suppress(OSError):  # another process was faster
        partial.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)
    return folder
