"""A verb that prints, logs, waits or fails as it is told: what the command line must bear from any verb."""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError

HELP = "behaves as it is told"


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = VerbParser(prog="beamrec probe", description=HELP)
    acts = top.add_subparsers(dest="act", required=True)
    for name in ("echo", "noise", "wait", "fail"):
        act = acts.add_parser(name)
        act.add_argument("--window-seconds", type=int, default=60)
        act.add_argument("--tag", action="append", default=[])
        act.add_argument("--names", nargs="*", default=[])
        act.add_argument("--fast", action=argparse.BooleanOptionalAction, default=True)
        act.add_argument("--loud", action="store_true")
        act.add_argument("--how", default="usage")
    return top


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Does it."""
    options = parser().parse_args(argv)
    console.status("working")
    if options.act == "noise":
        _noise()
    if options.act == "wait":
        console.record({"in": 7})
        console.status("waiting")
        time.sleep(60)
    if options.act == "fail":
        _FAILURES[options.how]()
    console.print("done")
    values = vars(options)
    return {"in": 2, "out": 1, "dead_letters": 1, "options": values, "home": str(console.home)}


def _noise() -> None:
    print("noise of print")
    print("noise of stderr", file=sys.stderr)
    os.write(1, b"noise of descriptor 1\n")
    os.write(2, b"noise of descriptor 2\n")
    subprocess.run([sys.executable, "-c", "print('noise of a child')"], check=True)
    logging.getLogger("apache_beam").warning("noise of a library")
    logging.getLogger("apache_beam").info("information of a library")
    logging.getLogger("beamrec.io.somewhere").warning("warning of ours")


def _usage() -> None:
    raise UsageError("--x: expected a, got b")


def _bad_data() -> None:
    raise BadDataError("9 of 10 rows are bad")


def _unavailable() -> None:
    raise UnavailableError("the database is away")


def _worker() -> None:
    text = "Traceback …\nbeamrec.schemas.errors.UnavailableError: the store is away [while running 'Load']"
    raise RuntimeError(text)


def _cause() -> None:
    try:
        _bad_data()
    except BadDataError as error:
        raise RuntimeError("the job failed") from error


def _bug() -> None:
    raise KeyError("a bug")


def _exit() -> None:
    sys.exit(2)


_FAILURES: dict[str, Callable[[], None]] = {
    "usage": _usage,
    "bad_data": _bad_data,
    "unavailable": _unavailable,
    "worker": _worker,
    "cause": _cause,
    "bug": _bug,
    "exit": _exit,
}
