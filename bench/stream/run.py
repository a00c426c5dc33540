"""The streaming bench: `.venv/bin/python bench/stream/run.py`; see bench/README.md."""

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from generate import PROBE_EVERY
from outcome import clear, file_times, latencies, read_outcome, visible
from records import Records, describe_machine
from report import write_report
from servers import broker, store
from systems import SYSTEMS, WINDOW_SECONDS, start
from watch import Watch

_BENCH = Path(__file__).resolve().parents[1]
_WORK = _BENCH.parent / ".beamrec" / "bench-stream"
_RESULTS = _BENCH / "results" / "stream.jsonl"
_PARTITIONS = 2
_START_SECONDS = 180
# Enough to keep each busy for half a minute.
_WAITING = {"function_warm": 30_000, "function_connect": 3_000}
_WAITING_OTHERS = 200_000
_DRAIN_SECONDS = 45.0
_SHARES = (10, 25, 50, 75, 90, 100, 110)  # of the capacity, in percent
_HALF = 50

Record = dict[str, Any]


def main() -> None:
    """Starts the servers, runs the contests, writes the report."""
    values = _arguments()
    records = Records(values.results)
    if not values.report:
        for products in values.products:
            with _bench(values.work, products) as bench:
                records.append(describe_machine(bench.uri))
                for contest in values.contest:
                    _CONTESTS[contest](bench, values, records)
    print(write_report(records, values.results.with_suffix(".md"), values.results == _RESULTS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--products", type=int, nargs="+", default=[110, 200_000], help="sizes of the catalogue")
    add("--contest", nargs="+", choices=_CONTESTS, default=["throughput", "latency"])
    add("--system", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=20, help="of each rate [s]")
    add("--flat-minutes", type=float, default=30, help="of the contest `flat` [min]")
    add("--rate", type=float, help="instead of half the capacity, for `flat` and `floor` [1/s]")
    add(
        "--results", type=Path, default=_RESULTS, help="JSON lines; rounds that stand there are not run again"
    )
    add("--report", action="store_true", help="only write the report of what stands in --results")
    add("--work", type=Path, default=_WORK, help="the servers' folders, kept")
    add("--peer-python", type=Path, default=_BENCH / ".venv" / "bin" / "python", help="has bytewax")
    return parser.parse_args()


class _Bench:
    """Servers that run, and a folder for a run's files."""

    def __init__(self, kafka: Any, uri: str, shop: str, products: int, work: Path) -> None:
        self.kafka, self.uri, self.shop, self.products, self._work = kafka, uri, shop, products, work

    def topic(self) -> str:
        return str(self.kafka.create_topic(_PARTITIONS))

    def folder(self) -> Path:
        shutil.rmtree(self._work / "run", ignore_errors=True)
        return self._work / "run"

    def send(self, topic: str, run: str, count: int, rate: float | None = None) -> "subprocess.Popen[bytes]":
        command = [
            *(sys.executable, str(Path(__file__).with_name("generate.py"))),
            *("--bootstrap", self.kafka.address, "--topic", topic, "--source", self.shop),
            *("--run", run, "--count", str(count), "--partitions", str(_PARTITIONS)),
            *(() if rate is None else ("--rate", str(rate))),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603


@contextlib.contextmanager
def _bench(work: Path, products: int) -> Iterator[_Bench]:
    shutil.rmtree(work / "kafka", ignore_errors=True)
    with broker(work / "kafka") as kafka, store(work, products) as (uri, shop):
        yield _Bench(kafka, uri, shop, products, work)


def _name() -> str:
    return f"r{uuid.uuid4().hex[:8]}"


def _throughput(bench: _Bench, values: argparse.Namespace, records: Records) -> None:
    """Each system on a topic that is full already: how fast it is when it never waits."""
    for number in range(values.rounds):
        for system in values.system:
            key = {"contest": "throughput", "products": bench.products, "system": system, "round": number}
            if not records.has(key):
                records.append({**key, **_drain(bench, system, values.peer_python)})


def _drain(bench: _Bench, system: str, python: Path) -> Record:
    topic, run, folder = bench.topic(), _name(), bench.folder()
    count = _WAITING.get(system, _WAITING_OTHERS)
    if bench.send(topic, run, count).wait():
        raise SystemExit("the generator failed")
    clear(bench.uri)
    with start(system, bench.kafka.address, topic, bench.uri, folder, python) as process:
        with Watch(process.pid) as watch:
            first = _wait(lambda: visible(bench.uri, run) > 0, process, folder)
            _wait(
                lambda: visible(bench.uri, run) >= count / PROBE_EVERY,
                process,
                folder,
                first + _DRAIN_SECONDS,
            )
        outcome = read_outcome(bench.uri, run, first, 1e9, count)
    bench.kafka.delete_topic(topic)
    begun, ended = outcome.seen.min(), outcome.seen.max()
    events = len(outcome.seen) * PROBE_EVERY
    record = {
        "events_per_second": events / max(ended - begun, 1e-9),
        "cpu_us_per_event": 1e6 * watch.cpu_seconds(begun, ended) / events,
        "peak_mib": watch.peak_mib(begun, ended),
        "events": events,
    }
    print(f"{bench.products} {system}: {json.dumps(record)}", file=sys.stderr)
    return record


def _wait(
    done: Callable[[], bool], process: "subprocess.Popen[bytes]", folder: Path, until: float | None = None
) -> float:
    """Until something holds, or the time is over; returns when that was."""
    give_up = time.time() + _START_SECONDS
    while not done():
        if process.poll() is not None or (until is None and time.time() > give_up):
            raise SystemExit(f"the system has not begun, or has ended; its log: {folder / 'log'}")
        if until is not None and time.time() > until:
            break
        time.sleep(0.25)
    return time.time()


def _latency(bench: _Bench, values: argparse.Namespace, records: Records) -> None:
    """beamrec in one long run at rates around its capacity; the capacity is the highest that holds."""
    top = records.median({"contest": "throughput", "products": bench.products, "system": "beamrec"})
    if top is None:
        raise SystemExit("the contest `latency` needs that of `throughput`")
    folder, topic = bench.folder(), bench.topic()
    clear(bench.uri)
    options = ["--max-delay=0.2"]
    held, half = 0.0, ""
    with start("beamrec", bench.kafka.address, topic, bench.uri, folder, values.peer_python, options) as job:
        with Watch(job.pid) as watch:
            _at_rate(bench, topic, 200.0, 5, watch)  # warms up
            # Upwards, or what a higher rate has left behind would be a lower one's burden.
            for share in range(20, 130, 10):
                found = _at_rate(bench, topic, share / 100 * top, values.seconds, watch)
                if found["grows"]:
                    break
                held = share / 100 * top
            time.sleep(2 * WINDOW_SECONDS)  # until the files of what was too much are written
            for share in _SHARES:
                # Long enough for some windows, of which the files are looked at.
                seconds = (3 if share == _HALF else 1) * values.seconds
                run = _name()
                found = _at_rate(bench, topic, share / 100 * held, seconds, watch, run)
                half = run if share == _HALF else half
                records.append(
                    {
                        "contest": "latency",
                        "products": bench.products,
                        "system": "beamrec",
                        "share": share,
                        "capacity": held,
                        **found,
                    }
                )
        job.send_signal(signal.SIGINT)
        job.wait(120)
        written = latencies(file_times(folder / "out", WINDOW_SECONDS, half))
        records.append({"contest": "files", "products": bench.products, **written})


def _at_rate(
    bench: _Bench, topic: str, rate: float, seconds: float, watch: Watch, run: str | None = None
) -> Record:
    run, count = run or _name(), int(rate * seconds)
    sent = json.loads(bench.send(topic, run, count, rate).communicate()[0])
    start_, due = sent["start"], -(-count // PROBE_EVERY)
    deadline = time.time() + 60 + seconds
    while visible(bench.uri, run) < due and time.time() < deadline:
        time.sleep(0.25)
    outcome = read_outcome(bench.uri, run, start_, rate, count)
    end = start_ + seconds
    record = {
        "rate": rate,
        "grows": outcome.grows() or not outcome.complete,
        "behind_seconds": sent["behind"],
        "cpu_us_per_event": 1e6 * watch.cpu_seconds(start_, end) / count,
        "peak_mib": watch.peak_mib(start_, end),
        **latencies(outcome.seen - outcome.due),
    }
    print(f"{bench.products} at {rate:,.0f}/s: {json.dumps(record)}", file=sys.stderr)
    return record


def _floor(bench: _Bench, values: argparse.Namespace, records: Records) -> None:
    """Two stages of Beam on Prism that do nothing, at half of beamrec's capacity."""
    rate = values.rate or _half(bench, records)
    topic, run, folder = bench.topic(), _name(), bench.folder()
    program = str(Path(__file__).with_name("floor.py"))
    options = ("--bootstrap", bench.kafka.address, "--topic", topic, "--output", str(folder))
    process = subprocess.Popen([sys.executable, program, *options])  # noqa: S603
    try:
        bench.send(topic, "warm", 2_000, 200.0).wait()
        time.sleep(5)
        sent = json.loads(bench.send(topic, run, int(rate * values.seconds), rate).communicate()[0])
        time.sleep(3)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    lines = (json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines())
    pairs = [(int(key.rpartition("-")[2]), at) for key, at in lines if key.startswith(f"{run}-")]
    seconds = np.array([at - (sent["start"] + number / rate) for number, at in pairs])
    record = {"contest": "floor", "products": bench.products, "rate": rate, **latencies(seconds)}
    records.append(record)
    print(json.dumps(record), file=sys.stderr)


def _half(bench: _Bench, records: Records) -> float:
    found = records.last({"contest": "latency", "products": bench.products, "share": _HALF})
    if found is None:
        raise SystemExit("give --rate, or run the contest `latency` before")
    return float(found["rate"])


def _flat(bench: _Bench, values: argparse.Namespace, records: Records) -> None:
    """Half an hour at half the capacity: memory and processor time at its beginning and its end."""
    rate = values.rate or _half(bench, records)
    topic, run, folder = bench.topic(), _name(), bench.folder()
    seconds = values.flat_minutes * 60
    clear(bench.uri)
    running = start("beamrec", bench.kafka.address, topic, bench.uri, folder, values.peer_python)
    with running as job, Watch(job.pid) as watch:
        _at_rate(bench, topic, 200.0, 5, watch)  # warms up
        sent = json.loads(bench.send(topic, run, int(rate * seconds), rate).communicate()[0])
        time.sleep(5)
        outcome = read_outcome(bench.uri, run, sent["start"], rate, int(rate * seconds))
    begun, minute = sent["start"], 60.0
    tenths = np.linspace(begun, begun + seconds, 11)
    record = {
        "contest": "flat",
        "products": bench.products,
        "rate": rate,
        "minutes": values.flat_minutes,
        "complete": outcome.complete,
        "memory_mib": [round(watch.mean_mib(a, z)) for a, z in itertools.pairwise(tenths)],
        "cpu_us_per_event": [
            round(1e6 * watch.cpu_seconds(a, z) / (rate * (z - a)), 1) for a, z in itertools.pairwise(tenths)
        ],
        "last_minute": latencies((outcome.seen - outcome.due)[outcome.due > outcome.due.max() - minute]),
        **latencies(outcome.seen - outcome.due),
    }
    records.append(record)
    print(json.dumps(record), file=sys.stderr)


_CONTESTS = {"throughput": _throughput, "latency": _latency, "floor": _floor, "flat": _flat}

if __name__ == "__main__":
    main()
