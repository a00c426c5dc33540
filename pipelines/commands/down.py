"""`beamrec down`: stops the embedded server kept under `--home`; its data stays."""

import argparse
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console

__all__ = ["HELP", "parser", "run"]

HELP = "stops the embedded server; its data stays"


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    return VerbParser(prog="beamrec down", description=HELP)


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Stops the server, if one runs."""
    from beamrec.io.embedded import embedded_uri, folder_of, stop_server

    parser().parse_args(argv)
    folder = folder_of(embedded_uri(console.home))
    stopped = stop_server(folder)
    console.print(f"stopped the embedded server of {folder}" if stopped else f"no server runs on {folder}")
    return {"stopped": stopped, "folder": str(folder)}
