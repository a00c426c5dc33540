"""`beamrec generate shop|events`: seeded inputs to try everything with.

Each kind is a module with `HELP`, `add_arguments(parser)` and `run(values, console)`; to add one, write
it and add one line to `_KINDS`.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console

HELP = "makes a seeded shop database, or a seeded stream of events"

_KINDS = {
    "shop": "beamrec.pipelines.generate_shop",
    "events": "beamrec.pipelines.generate_events",
}


def parser() -> argparse.ArgumentParser:
    """The options of every kind."""
    verb = VerbParser(prog="beamrec generate", description=HELP)
    kinds = verb.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=VerbParser)
    for name, path in _KINDS.items():
        if importlib.util.find_spec(path):
            module = importlib.import_module(path)
            module.add_arguments(kinds.add_parser(name, help=module.HELP, description=module.HELP))
    return verb


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Makes what is asked for."""
    values = parser().parse_args(list(argv))
    result: dict[str, Any] = importlib.import_module(_KINDS[values.kind]).run(values, console)
    return result
