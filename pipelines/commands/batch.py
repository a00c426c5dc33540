"""`beamrec batch`: ratings database → training files."""

import argparse
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.console import Console

HELP = "turns the shop's ratings database into partitioned training files"


def parser() -> argparse.ArgumentParser:
    """The options."""
    from beamrec.pipelines.arguments import pipeline_parser
    from beamrec.pipelines.batch_options import BatchOptions

    return pipeline_parser("batch", BatchOptions, HELP)


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs the bounded pipeline."""
    from beamrec.pipelines import batch_training

    return batch_training.run(argv, console)
