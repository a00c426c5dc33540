"""Errors of this machine's disks, told with the folder that they are about."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from beamrec.schemas.errors import UnavailableError

__all__ = ["explaining_disk"]

_ROOM = "make room there"
_RIGHT = "give this user the right to it, or run the command as its owner"
_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: "it is mounted to be read only",
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
}


@contextlib.contextmanager
def explaining_disk(folder: Path, done: str) -> Iterator[None]:
    """While something is done to a folder: `written` or `removed`.

    Raises:
      UnavailableError: in place of an OSError that the user can mend; it names the folder, which a failed
        write does not.
    """
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        if hint is None:
            raise
        inside = "" if error.filename in (None, str(folder)) else f" ({error.filename})"
        raise UnavailableError(
            f"{folder}: cannot be {done}: {os.strerror(error.errno or 0)}{inside}; {hint}, and run the "
            "command again"
        ) from error
