"""Which run an output folder is in, and which of its readers have ended.

A runner's savepoint holds the sources of the run that it was taken in, with that run's id and options. A job
that resumes from it is another run: its readers find here whose they are now, and drain with it.
"""

import dataclasses
import json

from beamrec.io.events import SourceOptions
from beamrec.io.store import Store

__all__ = ["begin_run", "current_options", "ended_readers", "last_splits", "report_end"]

_BEGUN = "_ledger/begun"
_ENDS = "_ledger/ends"
# What a later run may have otherwise; `output`, `splits` and `written_us` say what is read, and stay.
_CHANGEABLE = (
    "run",
    "max_delay_seconds",
    "stop_when_idle_seconds",
    "batch_rows",
    "window_seconds",
    "max_in_flight_mb",
    "patience_seconds",
)


def begin_run(store: Store, options: SourceOptions) -> None:
    """Makes this the run of the folder; by who holds its lease, or takes its holder's place."""
    values = {name: getattr(options, name) for name in (*_CHANGEABLE, "splits")}
    data, number = json.dumps(values).encode(), _next_number(store)
    while not store.create(f"{_BEGUN}/{number:08d}-{options.run}.json", data):
        number += 1


def current_options(store: Store, options: SourceOptions) -> SourceOptions | None:
    """Those given, as the run that began last has them; None where they are of none that has begun.

    A pipeline that begins no runs has its own, and names as it likes.
    """
    names = store.names(_BEGUN)
    if not any(_run(name) == options.run for name in names):
        return None
    if _run(names[-1]) == options.run:
        return options
    values = json.loads(store.read(f"{_BEGUN}/{names[-1]}"))
    return dataclasses.replace(options, **{name: values[name] for name in _CHANGEABLE})


def last_splits(store: Store) -> int | None:
    """Number of readers of the run that began last; None if there was none."""
    names = store.names(_BEGUN)
    return int(json.loads(store.read(f"{_BEGUN}/{names[-1]}"))["splits"]) if names else None


def report_end(store: Store, run: str, split: int) -> None:
    """Says that a reader has reported its end to the runner, and seals nothing any more."""
    store.create(f"{_ENDS}/{run}/{split}", b"")


def ended_readers(store: Store, run: str) -> set[int]:
    """The splits of which that was said."""
    return {int(name) for name in store.names(f"{_ENDS}/{run}") if name.isdecimal()}


def _next_number(store: Store) -> int:
    names = store.names(_BEGUN)
    return int(names[-1][:8]) + 1 if names else 0


def _run(name: str) -> str:
    return name[9:].removesuffix(".json")
