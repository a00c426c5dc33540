"""A past interval of an event source: what a stream stored, or what was written to a folder, in that time."""

import dataclasses
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

from apache_beam.io.unbounded_source import UnboundedSource

from beamrec.io.events import SourceOptions, open_sources
from beamrec.io.registry import scheme_of
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import rfc3339

__all__ = ["bounded_sources"]

_STREAMS = ("kinesis", "kafka")
# A folder has no end of its own; what lies in the past is all there, and needs only to be listed.
_IDLE_SECONDS = 5.0


def bounded_sources(
    uri: str, options: SourceOptions, begin: datetime, end: datetime
) -> list[UnboundedSource]:
    """The sources of an input that end by themselves.

    Args:
      uri: what `stream --input` takes, without a start or an end.
      begin, end: arrival from the one on and before the other; of a folder, when a file was last written.

    Raises:
      UsageError: the input is not there, or says itself where it starts or ends.
    """
    if scheme_of(uri) in _STREAMS:
        said = sorted({"start", "end"} & parse_qs(urlsplit(uri).query).keys())
        if said:
            raise UsageError(f"--input: leave {said[0]}= out of the URI; --from and --to say the interval")
        mark = "&" if urlsplit(uri).query else "?"
        return open_sources(f"{uri}{mark}start={rfc3339(begin)}&end={rfc3339(end)}", options)
    idle = _IDLE_SECONDS if options.stop_when_idle_seconds is None else options.stop_when_idle_seconds
    written = int(begin.timestamp() * 1e6), int(end.timestamp() * 1e6)
    return open_sources(uri, dataclasses.replace(options, stop_when_idle_seconds=idle, written_us=written))
