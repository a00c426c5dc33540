"""What the processes of a local Flink cluster are: settings, command lines, a folder for each worker."""

import shlex
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SLOTS", "TASK_MANAGERS", "commands", "configure"]

TASK_MANAGERS = 2
SLOTS = 2
_START_SECONDS = 180
# Flink reflects into these since it serializes by itself.
_OPENED = ("lang", "util", "net", "io", "nio", "time", "text", "lang.reflect", "util.concurrent")
# All of them, as the start scripts would work them out; half a gigabyte a TaskManager, and its metaspace.
_TASK_MANAGER = {
    "taskmanager.cpu.cores": "1.0",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.framework.heap.size": "64m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    # Each shuffle of a batch run wants these; of the default, 512, two took all of the memory.
    "taskmanager.network.sort-shuffle.min-buffers": "64",
    # It keeps the classes of every job and of every restart of one, 20 MB each (apache/beam#25510).
    "taskmanager.memory.jvm-metaspace.size": "640m",
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
_WORKER = """\
#!/bin/sh
exec {python} -ESs {program} {folder} {boot} {packages} "$@"
"""


def configure(folder: Path, ports: Mapping[str, int], boot: str) -> None:
    """Writes the files below `folder/conf` that the processes read."""
    settings = {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.bind-host": "localhost",
        "jobmanager.rpc.port": ports["rpc"],
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.port": ports["rest"],
        "taskmanager.host": "localhost",
        "taskmanager.bind-host": "localhost",
        "taskmanager.numberOfTaskSlots": SLOTS,
        "parallelism.default": 1,
        # A job with less parallelism than slots: on both TaskManagers.
        "cluster.evenly-spread-out-slots": "true",
        # A lost TaskManager is noticed after this, not after 50 s, so that recovery is a matter of seconds.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 20000,
        # On a machine that has other work the start takes longer than ten seconds.
        "pekko.startup-timeout": f"{_START_SECONDS} s",
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
    conf = folder / "conf"
    (conf / "flink-conf.yaml").write_text(lines, encoding="utf-8")
    (conf / "log4j.properties").write_text(_LOG, encoding="utf-8")
    words = {
        "python": sys.executable,
        "program": Path(__file__).with_name("flink_worker.py"),
        "folder": folder / "workers",
        "boot": boot,
        "packages": sysconfig.get_path("purelib"),
    }
    worker = _WORKER.format(**{name: shlex.quote(str(word)) for name, word in words.items()})
    (conf / "worker").write_text(worker, encoding="utf-8")
    (conf / "worker").chmod(0o755)


def commands(folder: Path, ports: Mapping[str, int], flink: str, job_server: str) -> dict[str, list[str]]:
    """What to run by name; each command line names the cluster's folder, by which its process is known again.

    Args:
      flink, job_server: their class paths.
    """
    opens = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED]
    conf = ["--configDir", str(folder / "conf")]
    log = f"-Dlog4j.configurationFile={folder / 'conf' / 'log4j.properties'}"
    java, runtime = ["java", *opens, log], "org.apache.flink.runtime"
    manager = [*java, "-Xmx512m", "-cp", flink, f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint"]
    worker = [*java, "-Xmx320m", "-XX:MaxMetaspaceSize=640m", "-XX:MaxDirectMemorySize=192m", "-cp", flink]
    server = [*java, "-Xmx512m", "-cp", job_server, "org.apache.beam.runners.flink.FlinkJobServerDriver"]
    server_ports = [f"--{name}-port={ports[name]}" for name in ("job", "artifact", "expansion")]
    pool = [sys.executable, "-m", "beamrec.runners.flink_pool"]
    return {
        "jobmanager": [*manager, *conf],
        **{
            f"taskmanager-{number}": [*worker, f"{runtime}.taskexecutor.TaskManagerRunner", *conf]
            for number in range(1, TASK_MANAGERS + 1)
        },
        "job-server": [
            *server,
            f"--flink-master=localhost:{ports['rest']}",
            *server_ports,
            f"--artifacts-dir={folder / 'artifacts'}",
        ],
        "worker-pool": [
            *pool,
            f"--port={ports['pool']}",
            f"--executable={folder / 'conf' / 'worker'}",
        ],
    }
