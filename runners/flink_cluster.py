"""A Flink cluster on this machine, with no container: `make flink-up`, `make flink-down`.

A JobManager, two TaskManagers, Beam's job server and a pool of Python workers, each a process of its own on
the loopback and a free port. What is where stands in `cluster.json` in the cluster's folder
(`.beamrec/flink`), beside configuration, logs and checkpoints. A part that was lost is started again by
`python -m beamrec.runners.flink_cluster restart NAME`: Flink's jobs recover from the loss of a TaskManager,
`beamrec stream` from that of the JobManager, which takes the jobs with it.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from beamrec.runners import flink_settings
from beamrec.runners.flink_parts import boot_program, flink_classpath, job_server_classpath
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["Cluster", "default_folder", "find_cluster", "flink_down", "flink_up", "restart"]

_STATE = "cluster.json"
_START_SECONDS = 180.0
_KEPT = ("checkpoints", "savepoints")
_ANEW = ("conf", "logs", "artifacts", "workers", "tmp")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
      folder: of everything that it keeps.
      ports: by what listens there: rpc, rest, job, artifact, expansion, pool.
      pids: of its processes, by their names.
    """

    folder: Path
    ports: Mapping[str, int]
    pids: Mapping[str, int]

    @property
    def dashboard(self) -> str:
        """URL of Flink's own pages and REST interface."""
        return f"http://{self.master}"

    @property
    def master(self) -> str:
        """Beam's `--flink_master`."""
        return f"localhost:{self.ports['rest']}"

    @property
    def job_endpoint(self) -> str:
        """Beam's `--job_endpoint`."""
        return f"localhost:{self.ports['job']}"

    @property
    def pool(self) -> str:
        """Beam's `--environment_config` with `--environment_type=EXTERNAL`."""
        return f"localhost:{self.ports['pool']}"

    def save(self) -> None:
        """Writes `cluster.json`."""
        values = {"ports": dict(self.ports), "pids": dict(self.pids)}
        (self.folder / _STATE).write_text(json.dumps(values, indent=1), encoding="utf-8")

    def alive(self, name: str) -> bool:
        """Whether the process is there, and is ours: its command line names the cluster's folder."""
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{self.pids[name]}/cmdline").read_bytes()
            return str(self.folder).encode() in command
        return False


def default_folder() -> Path:
    """`flink` below `$BEAMREC_HOME`, else below `.beamrec` in the working folder."""
    return Path(os.environ.get("BEAMREC_HOME") or ".beamrec").absolute() / "flink"


def find_cluster(folder: Path) -> Cluster | None:
    """The cluster that runs in a folder, all of it; None if part of it is missing."""
    cluster = _recorded(folder)
    return cluster if cluster and all(map(cluster.alive, cluster.pids)) else None


def _recorded(folder: Path) -> Cluster | None:
    try:
        values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Cluster(folder, values["ports"], values["pids"])


def flink_up(folder: Path, say: Callable[[str], None] = print) -> Cluster:
    """Starts a cluster; of one that runs, what is missing; returns it.

    Raises:
      UnavailableError: Java, Maven or a download is missing, or a part does not start.
    """
    cluster = _recorded(folder)
    if cluster and any(map(cluster.alive, cluster.pids)):
        return _start(cluster, say)
    if not shutil.which("java"):
        raise UnavailableError("Flink needs Java: no program java (Debian: default-jre-headless)")
    boot = boot_program(say)
    for name in _ANEW:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (*_ANEW, *_KEPT):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, _free_ports(), {})
    flink_settings.configure(folder, cluster.ports, boot)
    try:
        return _start(cluster, say)
    except BaseException:
        _end(_recorded(folder) or cluster)
        raise


def restart(folder: Path, name: str, say: Callable[[str], None] = print) -> Cluster:
    """Ends a part of a running cluster by force, if it is there, and starts it again; jobs recover.

    Raises:
      UsageError: no cluster runs there, or it has no such part.
      UnavailableError: it does not start.
    """
    cluster = _recorded(folder)
    if cluster is None or not any(map(cluster.alive, cluster.pids)):
        raise UsageError(f"no Flink cluster runs in {folder}: `make flink-up` starts one")
    if name not in cluster.pids:
        raise UsageError(f"expected one of {', '.join(cluster.pids)}, got {name!r}")
    if cluster.alive(name):
        _signal(cluster, [name], signal.SIGKILL)
    return _start(cluster, say)


def _start(cluster: Cluster, say: Callable[[str], None]) -> Cluster:
    """Starts what does not run, and waits until all of it answers."""
    classpaths = flink_classpath(say), job_server_classpath(say)
    for name, command in flink_settings.commands(cluster.folder, cluster.ports, *classpaths).items():
        if name not in cluster.pids or not cluster.alive(name):
            pid = _spawn(name, command, cluster.folder)
            cluster = dataclasses.replace(cluster, pids={**cluster.pids, name: pid})
            cluster.save()
    _wait_until_up(cluster)
    return cluster


def flink_down(folder: Path) -> bool:
    """Ends what runs of a cluster; False if nothing did. Checkpoints and logs stay."""
    cluster = _recorded(folder)
    if cluster is None:
        return False
    ended = _end(cluster)
    (folder / _STATE).unlink()
    return ended


def _free_ports() -> dict[str, int]:
    names = ("rpc", "rest", "job", "artifact", "expansion", "pool")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _spawn(name: str, command: Sequence[str], folder: Path) -> int:
    with open(folder / "logs" / f"{name}.log", "ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=folder / "tmp", stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return process.pid


def _wait_until_up(cluster: Cluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (_task_managers(cluster) >= flink_settings.TASK_MANAGERS and _listens(cluster, "job", "pool")):
        gone = [name for name in cluster.pids if not cluster.alive(name)]
        if gone or time.monotonic() > deadline:
            what = f"{gone[0]} ended at its start" if gone else "the cluster did not start"
            log = cluster.folder / "logs" / f"{gone[0] if gone else 'jobmanager'}.log"
            raise UnavailableError(f"{what}: {log}: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.2)


def _task_managers(cluster: Cluster) -> int:
    with contextlib.suppress(OSError, ValueError):
        answer: Any = json.load(urllib.request.urlopen(f"{cluster.dashboard}/overview", timeout=5))  # noqa: S310
        return int(answer["taskmanagers"])
    return 0


def _listens(cluster: Cluster, *names: str) -> bool:
    with contextlib.suppress(OSError):
        for name in names:
            socket.create_connection(("localhost", cluster.ports[name]), timeout=5).close()
        return True
    return False


def _end(cluster: Cluster) -> bool:
    """SIGTERM, and SIGKILL to what is there after ten seconds; each process and those that it started."""
    mine = [name for name in cluster.pids if cluster.alive(name)]
    _signal(cluster, mine, signal.SIGTERM)
    _signal(cluster, mine, signal.SIGKILL)
    return bool(mine)


def _signal(cluster: Cluster, names: Sequence[str], number: int) -> None:
    """Sends it to the process groups of those that live, and waits ten seconds for their end."""
    for name in filter(cluster.alive, names):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(cluster.pids[name], number)
    deadline = time.monotonic() + 10
    while any(map(cluster.alive, names)) and time.monotonic() < deadline:
        _reap(cluster)
        time.sleep(0.1)


def _reap(cluster: Cluster) -> None:
    """Takes the exit codes of processes that this one started: until then they look alive."""
    for pid in cluster.pids.values():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m beamrec.runners.flink_cluster up|down|restart NAME [FOLDER]`."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["?"]
    name = rest.pop(0) if verb == "restart" and rest else None
    folder = Path(rest[0]).absolute() if rest else default_folder()
    if verb == "down":
        print("stopped" if flink_down(folder) else "no cluster was running")
    elif verb == "restart" and name:
        restart(folder, name)
        print(f"{name} runs again")
    elif verb == "up":
        cluster = flink_up(folder)
        found = "`beamrec stream --runner flink …` finds it"
        print(f"Flink is up: {cluster.dashboard}; {found}; logs in {folder}/logs")
    else:
        raise UsageError(f"expected up, down or restart NAME, got {' '.join([verb, *rest])!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
