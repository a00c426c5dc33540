"""Half an hour on Flink with bad records and promotes: what it holds in memory, and in its checkpoints."""

import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from confluent_kafka import Producer
from jobs import CONTESTANTS, Checkpoints, account, start
from outcome import clear, latencies, read_outcome
from servers import BEAMREC

from beamrec.io.pgvector import ReleaseStore

if TYPE_CHECKING:
    from run import Bench

__all__ = ["soak"]

_BAD_SHARE = 0.01
_PROMOTE_SECONDS = 60.0
_SAMPLE_SECONDS = 5.0
_BAD = (b"{", b"\xff\xfe", b'{"event_id": 7}', b"[]")


def soak(bench: "Bench", rate: float, minutes: float) -> dict[str, Any]:
    """One job for that long; its account, its checkpoints, and the memory of each process by tenths."""
    releases = _two_releases(bench)
    (topic, source), folder = bench.topic(), bench.folder()
    clear(bench.uri)
    seconds, run = minutes * 60, "soak"
    checkpoints, ended = Checkpoints(bench.cluster.dashboard), threading.Event()
    with start(None, CONTESTANTS["flink"][1], source, bench.uri, folder) as job:
        bench.warm(topic, job, folder)
        memory = _Memory({**bench.cluster.pids, "beamrec": job.pid}, ended)
        spoiler = _Spoiler(bench.kafka.address, topic, rate * _BAD_SHARE, ended)
        promoter = _Promoter(bench, releases, ended)
        threads = [memory, spoiler, promoter]
        for thread in threads:
            thread.start()
        sent = bench.send(topic, run, int(rate * seconds), rate)
        checkpoints.watch(seconds)
        start_at = json.loads(sent.communicate()[0])["start"]
        ended.set()
        for thread in threads:
            thread.join()
        time.sleep(10)
    outcome = read_outcome(bench.uri, run, start_at, rate, int(rate * seconds))
    return {
        "contest": "soak",
        "rate": rate,
        "minutes": minutes,
        "bad_records": spoiler.sent,
        "promotes": promoter.done,
        "complete": outcome.complete,
        "account": account(folder),
        "memory_mib": memory.by_tenths(start_at, seconds),
        "checkpoints": [(round(at - start_at), size, took) for at, size, took in checkpoints.sizes[::6]],
        "checkpoint_bytes_per_hour": checkpoints.bytes_per_hour(),
        "splits": 2,
        **latencies(outcome.seen - outcome.due),
    }


class _Memory(threading.Thread):
    """Resident memory of processes with their children, by name [MiB]."""

    def __init__(self, pids: Mapping[str, int], ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._roots = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._ended = ended
        self._samples: list[tuple[float, dict[str, float]]] = []

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._samples.append(
                (time.time(), {name: _resident(root) / 2**20 for name, root in self._roots.items()})
            )

    def by_tenths(self, begun: float, seconds: float) -> dict[str, list[int]]:
        """Means over each tenth of the time."""
        edges = np.linspace(begun, begun + seconds, 11)
        found: dict[str, list[int]] = {}
        for name in self._roots:
            for first, last in itertools.pairwise(edges):
                held = [sample[name] for at, sample in self._samples if first <= at < last]
                found.setdefault(name, []).append(round(sum(held) / max(len(held), 1)))
        return found


def _resident(root: psutil.Process) -> float:
    held = 0.0
    try:
        for process in (root, *root.children(recursive=True)):
            held += process.memory_info().rss
    except psutil.Error:
        pass
    return held


class _Spoiler(threading.Thread):
    """Sends records that are no events."""

    def __init__(self, broker: str, topic: str, rate: float, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._producer = Producer({"bootstrap.servers": broker})
        self._topic, self._rate, self._ended = topic, rate, ended
        self.sent = 0

    def run(self) -> None:
        while not self._ended.wait(1 / self._rate):
            self._producer.produce(self._topic, _BAD[self.sent % len(_BAD)], partition=self.sent % 2)
            self._producer.poll(0)
            self.sent += 1
        self._producer.flush(60)


class _Promoter(threading.Thread):
    """Promotes one release and the other, in turns."""

    def __init__(self, bench: "Bench", releases: list[str], ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self._bench, self._releases, self._ended = bench, releases, ended
        self.done = 0

    def run(self) -> None:
        while not self._ended.wait(_PROMOTE_SECONDS):
            release = self._releases[self.done % len(self._releases)]
            _beamrec(
                self._bench.work, "release", "promote", release, f"--vector-db={self._bench.uri}", "--force"
            )
            self.done += 1


def _two_releases(bench: "Bench") -> list[str]:
    """The one that is active, and another of the same data, loaded too."""
    store, home = ReleaseStore(bench.uri), bench.work.resolve() / "shop-110"
    active = store.active()
    if active is None:
        raise SystemExit("no release is active")
    known = home / "second-release"
    if not known.exists():
        options = [f"--data={home / 'lake'}", f"--releases={home / 'releases'}", "--epochs=1", "--seed=43"]
        other = _beamrec(home, "train", *options)["release"]
        _beamrec(
            home, "release", "load", other, f"--releases={home / 'releases'}", f"--vector-db={bench.uri}"
        )
        known.write_text(other)
    return [known.read_text(), active.id]


def _beamrec(home: Path, *arguments: str) -> dict[str, Any]:
    command = [str(BEAMREC), *arguments, "--json", "--home", str(home)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ, check=True)  # noqa: S603
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
