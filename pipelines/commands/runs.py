"""`beamrec runs list | show ID | logs ID`: what ran here, how it ended and what it logged."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.runs import RunRecord, list_runs, load_run
from beamrec.schemas.errors import UsageError

__all__ = ["HELP", "parser", "run"]

HELP = "lists the runs of batch, train, release, stream and demo, their counts and logs"


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    top = VerbParser(prog="beamrec runs", description=HELP)
    verbs = top.add_subparsers(dest="action", required=True, metavar="list|show|logs")
    listing = verbs.add_parser("list", help="all runs, newest first")
    listing.add_argument("--limit", type=int, default=20, metavar="RUNS", help="show at most this many")
    for name, text in (("show", "one run: state, arguments, counts, error"), ("logs", "the log of one run")):
        one = verbs.add_parser(name, help=text)
        one.add_argument("id", metavar="ID", help="as `beamrec runs list` shows it, or `last`")
        if name == "logs":
            one.add_argument("--tail", type=int, metavar="LINES", help="only the last lines")
    return top


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Prints runs; returns them for `--json`."""
    options = parser().parse_args(argv)
    if options.action == "list":
        return _list(console, options.limit)
    record = _find(console, options.id)
    return _show(console, record) if options.action == "show" else _logs(console, record, options.tail)


def _find(console: Console, run_id: str) -> RunRecord:
    if run_id != "last":
        return load_run(console.home, run_id)
    records = list_runs(console.home)
    if not records:
        raise UsageError(f"there are no runs under {console.home / 'runs'}")
    return records[0]


def _line(record: RunRecord) -> str:
    return f"{record.id:<32} {record.state:<10} {record.started:<25} {record.detail}"


def _list(console: Console, limit: int) -> dict[str, Any]:
    if limit < 1:
        raise UsageError(f"--limit: expected at least 1, got {limit}")
    records = list_runs(console.home)[:limit]
    if not records:
        console.print(f"no runs under {console.home / 'runs'}")
    for record in records:
        console.print(_line(record))
    return {"runs": [dataclasses.asdict(record) for record in records]}


def told(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A stream's metrics for people: (what, figures), none for a run without."""
    if not metrics:
        return
    yield "rate", f"{metrics['events_per_second']:,} events/s in the last minute"
    for kind in ("latency_ms", "times_ms"):
        for name, found in metrics[kind].items():
            figures = f"p50 {found['p50']:,} ms, p99 {found['p99']:,} ms, {found['count']:,} times"
            yield kind.removesuffix("_ms"), f"{name.replace('_', ' ')}: {figures}"
    lags = ", ".join(f"{lag} s (split {split})" for split, lag in metrics["watermark_lag_seconds"].items())
    yield "watermark", f"behind by {lags or 'an unknown time'}"
    yield "serving", f"release {metrics['release'] or '(none yet)'}"


def _show(console: Console, record: RunRecord) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if name != "metrics":
            console.print(f"{name:<10} {text}")
    for name, text in told(record.metrics):
        console.print(f"{name:<10} {text}")
    console.print(f"{'log':<10} {console.home / 'runs' / record.id / 'log'}")
    return values


def _logs(console: Console, record: RunRecord, tail: int | None) -> dict[str, Any]:
    path = console.home / "runs" / record.id / "log"
    with open(path, encoding="utf-8", errors="replace") as log:
        lines = log.readlines() if tail is None else log.readlines()[-tail:]
    console.print("".join(lines).rstrip("\n"))
    return {"id": record.id, "log": str(path), "lines": len(lines)}
