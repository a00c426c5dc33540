"""What the peers need: a venv of their own from `bench/requirements.lock`, and two jars for Spark."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["PEER_PYTHON", "install_peers", "jars"]

_BENCH = Path(__file__).resolve().parents[1]
_VENV = _BENCH / ".venv"
_LOCK = _BENCH / "requirements.lock"
_JARS = _VENV / "jars"
_MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
# The JDBC driver, and a local file system for Hadoop that forks no `chmod` for every file it makes.
_ARTIFACTS = (
    "org.mariadb.jdbc:mariadb-java-client:3.5.6",
    "com.globalmentor:hadoop-bare-naked-local-fs:0.1.0",
)

PEER_PYTHON = _VENV / "bin" / "python"


def jars() -> list[Path]:
    """Where the jars stand once `install_peers` has fetched them."""
    return [_JARS / "{1}-{2}.jar".format(*artifact.split(":")) for artifact in _ARTIFACTS]


def install_peers() -> None:
    """Makes the venv and fetches the jars; does nothing if that was done for this lock.

    Raises:
      SystemExit: Java or Maven is not installed.
    """
    stamp = _VENV / ".installed"
    wanted = hashlib.sha256(_LOCK.read_bytes() + repr(_ARTIFACTS).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise SystemExit(
                f"no program {program}: PySpark needs Java 17 or later, and Maven fetches its jars"
            )
    print("installing the peers into bench/.venv", file=sys.stderr)
    _run(sys.executable, "-m", "venv", "--clear", str(_VENV))
    _install_lock()
    for artifact in _ARTIFACTS:
        _run("mvn", "-q", "-B", _MAVEN_COPY, f"-Dartifact={artifact}", f"-DoutputDirectory={_JARS}")
    stamp.write_text(wanted)


def _install_lock() -> None:
    uv = Path(sys.executable).with_name("uv")
    locked = ("--require-hashes", "-r", str(_LOCK))
    if uv.exists():
        _run(str(uv), "pip", "install", "-q", "--system-certs", "--python", str(PEER_PYTHON), *locked)
    else:
        _run(str(PEER_PYTHON), "-m", "pip", "install", "-q", *locked)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    install_peers()
