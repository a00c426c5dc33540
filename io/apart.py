"""Events that are read and files that are written must not lie in one another."""

import os

from beamrec.io.objects import Address
from beamrec.io.registry import scheme_of
from beamrec.schemas.errors import UsageError
from beamrec.schemas.paths import local_path

__all__ = ["check_apart"]

_OBJECTS = ("s3", "gs")
_LOCAL = ("", "file")


def check_apart(events: str, output: str) -> None:
    """Refuses an output at the place of the input, below it, or above it.

    A stream would read its own recommendations as events.

    Args:
      events: `--input`; one that is no folder or prefix lies nowhere.
      output: `--output`.

    Raises:
      UsageError: they lie in one another, or are no valid addresses.
    """
    read, written = _place(events, "--input"), _place(output, "--output")
    if read is None or written is None:
        return
    common = min(len(read), len(written))
    if read[:common] == written[:common]:
        how = "is" if len(read) == len(written) else "lies below" if len(written) > common else "lies above"
        raise UsageError(
            f"--output {output}: {how} the --input {events}: its own files would be read as events; "
            "give folders beside each other"
        )


def _place(uri: str, option: str) -> tuple[str, ...] | None:
    """Parts of the path, behind what tells one file system from another; None for what has no folders."""
    scheme = scheme_of(uri)
    if scheme in _LOCAL:
        path = os.path.realpath(local_path(uri, option))
        return ("file", *(part for part in path.split("/") if part))
    if scheme in _OBJECTS:
        address = Address.parse(uri, option)
        parts = (part for part in address.prefix.split("/") if part)
        return (address.scheme, address.endpoint, address.bucket, *parts)
    return None
