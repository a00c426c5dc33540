"""One reading of local paths and `file://` URIs, for every option that takes a folder."""

import os
import re
from urllib.parse import unquote

from beamrec.schemas.errors import UsageError

__all__ = ["local_path"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def local_path(uri: str, option: str) -> str:
    """The absolute path that a path or `file://` URI names; `~` is the home folder.

    Raises:
      UsageError: it is empty, or has another scheme.
    """
    scheme = _SCHEME.match(uri)
    if scheme and scheme.group(1).lower() != "file":
        raise UsageError(
            f"{option} {uri}: expected a local path or file:// URI, got scheme {scheme.group(1)!r}; "
            "object stores are not there yet"
        )
    path = unquote(uri[scheme.end() :]) if scheme else uri
    if not path or "\0" in path:
        raise UsageError(f"{option} {uri!r}: expected a local path or file:///path")
    return os.path.abspath(os.path.expanduser(path))
