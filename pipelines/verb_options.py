"""The base of each pipeline's `PipelineOptions` subclass."""

from apache_beam.options.pipeline_options import PipelineOptions

__all__ = ["VerbOptions"]


class VerbOptions(PipelineOptions):  # type: ignore[misc]
    """Options of one pipeline, which Beam must not mix with another's.

    Beam puts the flags of every direct subclass of PipelineOptions that is imported into one parser, where
    our `--runner` conflicts with its own and two pipelines' `--output` with each other. It does not look
    at the subclasses of a subclass.
    """
