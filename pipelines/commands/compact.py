"""`beamrec compact`: one file for each closed hour of recommendations, below `compacted/`."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import UsageError

__all__ = ["HELP", "parser", "run"]

HELP = "copies closed hours of recommendations into one file each, below compacted/"


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    top = VerbParser(prog="beamrec compact", description=HELP)
    top.add_argument("--output", default=default("output"), help="what stream --output was given [URI]")
    which = top.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--hour", metavar="YYYY-MM-DDTHH", help="one closed hour, event time in UTC; 2026-11-22T07"
    )
    which.add_argument("--closed", action="store_true", help="all closed hours that have something new")
    top.add_argument(
        "--allowed-lateness",
        type=float,
        default=default("allowed_lateness"),
        help="an hour is closed this long after its end, as stream was given it [s]",
    )
    return top


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Compacts; may be run again at any time, and beside a running stream."""
    from beamrec.io.compact import compact_hour
    from beamrec.io.lease import Lease
    from beamrec.io.store import open_store, with_beam_options

    options = parser().parse_args(argv)
    if not options.output:
        raise UsageError("--output is missing: expected what stream --output was given")
    store = open_store(with_beam_options(options.output, []))
    hours = _wanted(store, options)
    done = []
    with Lease(store, console.run_id("compact"), "_ledger/compact"):
        for hour in hours:
            console.progress(hour.folder)
            result = compact_hour(store, hour)
            if result is not None:
                done.append(result)
    changed = [result for result in done if result.added]
    rows, added = sum(r.rows for r in done), sum(r.added for r in done)
    console.print(
        f"{len(done)} closed hours with {rows:,} rows in {store.uri}/compacted; "
        f"{added:,} rows of {len(changed)} hours are new there"
    )
    return {
        "hours": len(done),
        "hours_changed": len(changed),
        "rows": rows,
        "rows_added": added,
        "segments": sum(result.segments for result in done),
        "bytes": sum(result.bytes for result in done),
        "files": [f"{store.uri}/{result.path}" for result in done],
    }


def _wanted(store: Any, options: argparse.Namespace) -> list[Any]:
    """The hours that were asked for; raises UsageError for one that is open or not there."""
    from beamrec.io.compact import hours_of

    now, lateness = datetime.now(UTC), timedelta(seconds=options.allowed_lateness)
    hours = hours_of(store)
    if not hours:
        raise UsageError(f"--output {store.uri}: no recommendations there; expected what a stream wrote")
    if options.closed:
        return [hour for hour in hours if hour.closed(now, lateness)]
    begin = _parse(options.hour)
    found = [hour for hour in hours if hour.begin == begin]
    if not found:
        raise UsageError(f"--hour {options.hour}: no recommendations of that hour in {store.uri}")
    if not found[0].closed(now, lateness):
        at = begin + timedelta(hours=1) + lateness
        raise UsageError(f"--hour {options.hour} is open until {at:%Y-%m-%dT%H:%M:%SZ}: rows may still come")
    return found


def _parse(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC)
    except ValueError:
        raise UsageError(f"--hour: expected YYYY-MM-DDTHH in UTC, got {text!r}") from None
