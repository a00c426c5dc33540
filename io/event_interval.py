"""A past interval of an event source: what a stream stored, or what was written to a folder, in that time.

A source's module says what that is by `open_interval(uri, options, begin, end)`, which returns sources that
end by themselves; most need one line, with `with_bounds` or `written_between`.
"""

import dataclasses
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

from apache_beam.io.unbounded_source import UnboundedSource

from beamrec.io.events import SourceOptions
from beamrec.io.registry import backend, scheme_of
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import rfc3339

__all__ = ["bounded_sources", "with_bounds", "written_between"]

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
      UsageError: the input is not there, says itself where it starts or ends, or has no past to read.
    """
    open_interval = getattr(backend("events", uri, "--input"), "open_interval", None)
    if open_interval is None:
        raise UsageError(
            f"--input: {scheme_of(uri)}:// cannot be read from one time to another; replay what was "
            "recommended then, with --recommendations alone"
        )
    sources: list[UnboundedSource] = open_interval(uri, options, begin, end)
    return sources


def with_bounds(uri: str, begin: datetime, end: datetime) -> str:
    """The URI of a stream that takes `start` and `end` as parameters, with both.

    Raises:
      UsageError: it has one of them already.
    """
    said = sorted({"start", "end"} & parse_qs(urlsplit(uri).query).keys())
    if said:
        raise UsageError(f"--input: leave {said[0]}= out of the URI; --from and --to say the interval")
    mark = "&" if urlsplit(uri).query else "?"
    return f"{uri}{mark}start={rfc3339(begin)}&end={rfc3339(end)}"


def written_between(options: SourceOptions, begin: datetime, end: datetime) -> SourceOptions:
    """The options of a folder of which only what was last written between two times is read, to its end."""
    idle = _IDLE_SECONDS if options.stop_when_idle_seconds is None else options.stop_when_idle_seconds
    written = int(begin.timestamp() * 1e6), int(end.timestamp() * 1e6)
    return dataclasses.replace(options, stop_when_idle_seconds=idle, written_us=written)
