"""Sinks beside the files: streams that take the same recommendation lines.

A sink's module (see `io.registry`, kind `sinks`) has `open_sink(uri)`, which returns a transform of OUTCOMES.
It writes at least once, under the event id as key, and waits outages out.
"""

import apache_beam as beam

from beamrec.io.registry import backend

__all__ = ["open_sink"]


def open_sink(uri: str) -> beam.PTransform:
    """The transform that writes to a stream; raises UsageError if there is no such scheme or stream."""
    return backend("sinks", uri, "--also").open_sink(uri)
