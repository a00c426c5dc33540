"""`beamrec stream`: click stream → recommendations."""

import argparse
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.console import Console

HELP = "turns the shop's click stream into recommendations, until stopped"


def parser() -> argparse.ArgumentParser:
    """The options."""
    from beamrec.pipelines.arguments import pipeline_parser
    from beamrec.pipelines.stream_options import StreamOptions

    return pipeline_parser("stream", StreamOptions, HELP)


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs the unbounded pipeline."""
    from beamrec.pipelines import streaming_recommend

    return streaming_recommend.run(argv, console)
