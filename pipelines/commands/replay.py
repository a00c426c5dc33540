"""`beamrec replay`: dead letters, or a past interval, again."""

import argparse
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.console import Console

HELP = "tries dead letters again after a fix, or scores a past interval with another release"


def parser() -> argparse.ArgumentParser:
    """The options."""
    from beamrec.pipelines.arguments import pipeline_parser
    from beamrec.pipelines.replay_options import ReplayOptions

    return pipeline_parser("replay", ReplayOptions, HELP)


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs one of the two replays."""
    from beamrec.pipelines import replay

    return replay.run(argv, console)
