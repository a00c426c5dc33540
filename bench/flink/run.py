"""The bench of Flink: `PYTHONPATH=bench/stream .venv/bin/python bench/flink/run.py`; see bench/README.md."""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generate import PROBE_EVERY
from growth import RATES, READS, measure_growth
from jobs import CONTESTANTS, start
from outcome import clear, latencies, read_outcome, visible
from records import Records, describe_machine
from report import write_report
from servers import broker, store
from soak import soak

from beamrec.runners.flink_cluster import Cluster, flink_down, flink_up

_BENCH = Path(__file__).resolve().parents[1]
_WORK = _BENCH.parent / ".beamrec" / "bench-flink"
_RESULTS = _BENCH / "results" / "flink.jsonl"
_PARTITIONS = 2
_PATIENCE_SECONDS = 600.0
# Flink keeps the classes of jobs that have ended, and its TaskManagers have little room for them.
_JOBS_A_CLUSTER = 4

Record = dict[str, Any]


class Bench:
    """Servers that run, and a folder for a run's files."""

    def __init__(self, kafka: Any, uri: str, shop: str, work: Path, cluster: Cluster) -> None:
        self.kafka, self.uri, self.shop, self.work, self.cluster = kafka, uri, shop, work, cluster

    def topic(self) -> tuple[str, str]:
        """Name and URI of a new one."""
        name = str(self.kafka.create_topic(_PARTITIONS))
        return name, f"kafka://{self.kafka.address}/{name}"

    def folder(self) -> Path:
        """An empty one."""
        shutil.rmtree(self.work / "run", ignore_errors=True)
        return self.work / "run"

    def send(self, topic: str, run: str, count: int, rate: float | None = None) -> "subprocess.Popen[bytes]":
        """Events of a run, with `rate` each when it is due."""
        command = [
            *(sys.executable, str(_BENCH / "stream" / "generate.py")),
            *("--bootstrap", self.kafka.address, "--topic", topic, "--source", self.shop),
            *("--run", run, "--count", str(count), "--partitions", str(_PARTITIONS)),
            *(() if rate is None else ("--rate", str(rate))),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603

    def warm(self, topic: str, process: "subprocess.Popen[bytes]", folder: Path) -> None:
        """Until some events have gone through."""
        run = name()
        self.send(topic, run, 1_000, 200.0).wait()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while visible(self.uri, run) < 1_000 / PROBE_EVERY:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the job has not begun, or has ended; its log: {folder / 'log'}")
            time.sleep(0.5)


def name() -> str:
    """Of a run, as no other has it."""
    return f"r{uuid.uuid4().hex[:8]}"


def main() -> None:
    """Starts the servers, runs the contests, writes the report."""
    values = _arguments()
    records = Records(values.results)
    if not values.report:
        if "growth" in values.contest:
            _growth(values, records)
        if set(values.contest) & set(_CONTESTS):
            with _bench(values.work) as bench:
                records.append(describe_machine(bench.uri))
                for contest in filter(_CONTESTS.get, values.contest):
                    _CONTESTS[contest](bench, values, records)
    print(write_report(records, values.results.with_suffix(".md"), values.results == _RESULTS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--contest", nargs="+", choices=["growth", *_CONTESTS], default=["latency", "growth"])
    add("--contestant", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--rounds", type=int, default=3)
    add("--rate", type=float, default=1_000, help="events a second of `latency` and `soak`")
    add("--seconds", type=float, default=30, help="at that rate, for `latency` [s]")
    add("--burst", type=int, default=60_000, help="events sent at once, for the throughput")
    add("--setting", nargs="+", choices=READS, default=list(READS), help="for `growth`")
    add("--growth-minutes", type=float, default=3, help="of each read setting, for `growth` [min]")
    add("--minutes", type=float, default=30, help="for `soak` [min]")
    add("--results", type=Path, default=_RESULTS, help="JSON lines")
    add("--report", action="store_true", help="only write the report of what stands in --results")
    add("--work", type=Path, default=_WORK, help="the servers' folders, kept")
    return parser.parse_args()


@contextlib.contextmanager
def _bench(work: Path) -> Iterator[Bench]:
    shutil.rmtree(work / "kafka", ignore_errors=True)
    with broker(work / "kafka") as kafka, store(work, 110) as (uri, shop), _cluster(work) as cluster:
        yield Bench(kafka, uri, shop, work, cluster)


@contextlib.contextmanager
def _cluster(work: Path) -> Iterator[Cluster]:
    # Where `beamrec stream --runner flink` looks for a cluster.
    os.environ["BEAMREC_HOME"] = str(work.absolute())
    folder = work.absolute() / "flink"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield flink_up(folder)
    finally:
        flink_down(folder)


def _latency(bench: Bench, values: argparse.Namespace, records: Records) -> None:
    """In turns: each contestant at the same rate, and then with more than it can take."""
    for number in range(values.rounds):
        for contestant in values.contestant:
            key = {"contest": "latency", "contestant": contestant, "round": number, "rate": values.rate}
            if not records.has(key):
                record = {**key, **_measure(bench, contestant, values)}
                records.append(record)
                print(json.dumps(record), file=sys.stderr)


def _measure(bench: Bench, contestant: str, values: argparse.Namespace) -> Record:
    reads, options = CONTESTANTS[contestant]
    (topic, source), folder, run, burst = bench.topic(), bench.folder(), name(), name()
    clear(bench.uri)
    count = int(values.rate * values.seconds)
    with start(reads, [*options, "--max-delay=0.2"], source, bench.uri, folder) as job:
        bench.warm(topic, job, folder)
        sent = json.loads(bench.send(topic, run, count, values.rate).communicate()[0])
        _arrived(bench, run, count)
        paced = read_outcome(bench.uri, run, sent["start"], values.rate, count)
        begun = json.loads(bench.send(topic, burst, values.burst).communicate()[0])["start"]
        _arrived(bench, burst, values.burst)
        rushed = read_outcome(bench.uri, burst, begun, 1e9, values.burst)
    bench.kafka.delete_topic(topic)
    return {
        "complete": paced.complete and rushed.complete,
        "behind_seconds": sent["behind"],
        "events_per_second": values.burst / (rushed.seen.max() - rushed.seen.min()),
        **latencies(paced.seen - paced.due),
    }


def _arrived(bench: Bench, run: str, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while visible(bench.uri, run) < -(-count // PROBE_EVERY) and time.monotonic() < deadline:
        time.sleep(0.5)


def _growth(values: argparse.Namespace, records: Records) -> None:
    """Checkpoints by how a source is read, while it is quiet and while it is not."""
    keys = [
        {"contest": "growth", "setting": setting, "rate": rate}
        for setting, rate in itertools.product(values.setting, RATES)
    ]
    keys = [key for key in keys if not records.has(key)]
    for first in range(0, len(keys), _JOBS_A_CLUSTER):
        with _cluster(values.work) as cluster:
            for key in keys[first : first + _JOBS_A_CLUSTER]:
                found = measure_growth(cluster, key["setting"], key["rate"], values.growth_minutes * 60)
                records.append({**key, **found})
                print(json.dumps({**key, **found}), file=sys.stderr)


def _soak(bench: Bench, values: argparse.Namespace, records: Records) -> None:
    record = soak(bench, values.rate, values.minutes)
    records.append(record)
    print(json.dumps(record), file=sys.stderr)


_CONTESTS = {"latency": _latency, "soak": _soak}

if __name__ == "__main__":
    main()
