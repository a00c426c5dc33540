"""The base of each pipeline's `PipelineOptions` subclass, and the types of its values."""

import argparse

from apache_beam.options.pipeline_options import PipelineOptions

__all__ = ["VerbOptions", "port"]


class VerbOptions(PipelineOptions):  # type: ignore[misc]
    """Options of one pipeline, which Beam must not mix with another's.

    Beam puts the flags of every direct subclass of PipelineOptions that is imported into one parser, where
    our `--runner` conflicts with its own and two pipelines' `--output` with each other. It does not look
    at the subclasses of a subclass.
    """


def port(text: str) -> int:
    """A TCP port, for `type=`; raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)
