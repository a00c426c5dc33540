"""A Flink cluster on this machine, with no container: `make flink-up`, `make flink-down`.

A JobManager, two TaskManagers, Beam's job server and a pool of Python workers, each a process of its own on
the loopback and a free port. What is where stands in `cluster.json` in the cluster's folder
(`.beamrec/flink`), beside configuration, logs and checkpoints.
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

from beamrec.runners.flink_parts import boot_program, flink_classpath, job_server_classpath
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["Cluster", "default_folder", "find_cluster", "flink_down", "flink_up"]

_STATE = "cluster.json"
_START_SECONDS = 180.0
_TASK_MANAGERS = 2
_SLOTS = 2
# Flink reflects into these since it serializes by itself.
_OPENED = ("lang", "util", "net", "io", "nio", "time", "text", "lang.reflect", "util.concurrent")
# All of them, as the start scripts would work them out; half a gigabyte a TaskManager.
_TASK_MANAGER = {
    "taskmanager.cpu.cores": "1.0",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.framework.heap.size": "64m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "32m",
    "taskmanager.memory.network.max": "32m",
    "taskmanager.memory.jvm-metaspace.size": "160m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
}

_LOG = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %-5p %c - %m%n
"""


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
        return f"http://localhost:{self.ports['rest']}"

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
    """The cluster of a folder, if all of it runs."""
    try:
        values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    cluster = Cluster(folder, values["ports"], values["pids"])
    return cluster if all(map(cluster.alive, cluster.pids)) else None


def flink_up(folder: Path, say: Callable[[str], None] = print) -> Cluster:
    """Starts a cluster, or returns the one that runs.

    Raises:
      UsageError: part of one runs there.
      UnavailableError: Java, Maven or a download is missing, or a part does not start.
    """
    running = find_cluster(folder)
    if running is not None:
        _wait_until_up(running)
        return running
    if not shutil.which("java"):
        raise UnavailableError("Flink needs Java: no program java (Debian: default-jre-headless)")
    flink, job_server, boot = flink_classpath(say), job_server_classpath(say), boot_program(say)
    _clear(folder)
    cluster = Cluster(folder, _free_ports(), {})
    _configure(cluster)
    commands = _commands(cluster, flink, job_server, boot)
    try:
        for name, command in commands.items():
            cluster = dataclasses.replace(cluster, pids={**cluster.pids, name: _spawn(name, command, folder)})
            cluster.save()
        _wait_until_up(cluster)
    except BaseException:
        _end(cluster)
        raise
    return cluster


def flink_down(folder: Path) -> bool:
    """Ends what runs of a cluster; False if nothing did. Checkpoints and logs stay."""
    try:
        values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ended = _end(Cluster(folder, values["ports"], values["pids"]))
    (folder / _STATE).unlink()
    return ended


def _clear(folder: Path) -> None:
    if (folder / _STATE).exists():
        flink_down(folder)
    for name in ("conf", "logs", "artifacts"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("conf", "logs", "artifacts", "checkpoints", "savepoints", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def _free_ports() -> dict[str, int]:
    names = ("rpc", "rest", "job", "artifact", "expansion", "pool")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def _configure(cluster: Cluster) -> None:
    folder = cluster.folder
    settings = {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.bind-host": "localhost",
        "jobmanager.rpc.port": cluster.ports["rpc"],
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.port": cluster.ports["rest"],
        "taskmanager.host": "localhost",
        "taskmanager.bind-host": "localhost",
        "taskmanager.numberOfTaskSlots": _SLOTS,
        "parallelism.default": 1,
        # A lost TaskManager is noticed after this, not after 50 s, so that recovery is a matter of seconds.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 20000,
        # On a machine that has other work the start takes longer than ten seconds.
        "pekko.startup-timeout": f"{_START_SECONDS:.0f} s",
        "pekko.ask.timeout": "60 s",
        "state.backend.type": "hashmap",
        "state.checkpoints.dir": (folder / "checkpoints").as_uri(),
        "state.savepoints.dir": (folder / "savepoints").as_uri(),
        # Two: one may be damaged when the machine dies.
        "state.checkpoints.num-retained": 2,
        "io.tmp.dirs": folder / "tmp",
        **_TASK_MANAGER,
    }
    lines = "".join(f"{name}: {value}\n" for name, value in settings.items())
    (folder / "conf" / "flink-conf.yaml").write_text(lines, encoding="utf-8")
    (folder / "conf" / "log4j.properties").write_text(_LOG, encoding="utf-8")


def _commands(cluster: Cluster, flink: str, job_server: str, boot: str) -> dict[str, list[str]]:
    """What to run; each command line names the cluster's folder, by which its process is known again."""
    opens = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED]
    conf = ["--configDir", str(cluster.folder / "conf")]
    log = f"-Dlog4j.configurationFile={cluster.folder / 'conf' / 'log4j.properties'}"
    java, ports = ["java", *opens, log], cluster.ports
    runtime = "org.apache.flink.runtime"
    manager = [*java, "-Xmx512m", "-cp", flink, f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint"]
    worker = [*java, "-Xmx320m", "-XX:MaxMetaspaceSize=160m", "-XX:MaxDirectMemorySize=160m", "-cp", flink]
    server = [*java, "-Xmx512m", "-cp", job_server, "org.apache.beam.runners.flink.FlinkJobServerDriver"]
    server_ports = [f"--{name}-port={ports[name]}" for name in ("job", "artifact", "expansion")]
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    return {
        "jobmanager": [*manager, *conf],
        **{
            f"taskmanager-{number}": [*worker, f"{runtime}.taskexecutor.TaskManagerRunner", *conf]
            for number in range(1, _TASK_MANAGERS + 1)
        },
        "job-server": [
            *server,
            f"--flink-master=localhost:{ports['rest']}",
            *server_ports,
            f"--artifacts-dir={cluster.folder / 'artifacts'}",
        ],
        "worker-pool": [
            *pool,
            f"--service_port={ports['pool']}",
            f"--container_executable={boot}",
            f"--home={cluster.folder}",
        ],
    }


def _spawn(name: str, command: Sequence[str], folder: Path) -> int:
    # Boot starts `python`: this one, with this project. It installs nothing into it: the pool's environment
    # is the project's own.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1"}
    with open(folder / "logs" / f"{name}.log", "ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    return process.pid


def _wait_until_up(cluster: Cluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (_task_managers(cluster) == _TASK_MANAGERS and _listens(cluster, "job", "pool")):
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
    for number in (signal.SIGTERM, signal.SIGKILL):
        for name in filter(cluster.alive, mine):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(cluster.pids[name], number)
        deadline = time.monotonic() + 10
        while any(map(cluster.alive, mine)) and time.monotonic() < deadline:
            _reap(cluster)
            time.sleep(0.1)
    return bool(mine)


def _reap(cluster: Cluster) -> None:
    """Takes the exit codes of processes that this one started: until then they look alive."""
    for pid in cluster.pids.values():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m beamrec.runners.flink_cluster up|down [FOLDER]`."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["?"]
    folder = Path(rest[0]).absolute() if rest else default_folder()
    if verb == "down":
        print("stopped" if flink_down(folder) else "no cluster was running")
        return 0
    if verb != "up":
        raise UsageError(f"expected up or down, got {verb!r}")
    cluster = flink_up(folder)
    print(
        f"Flink is up: {cluster.dashboard}; `beamrec stream --runner flink …` finds it; logs in {folder}/logs"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
