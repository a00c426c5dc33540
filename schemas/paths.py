"""Paths: one reading of local ones, for every option that takes a folder, and the folders of an output."""

import os
import re
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import unquote

from beamrec.schemas.errors import UsageError

__all__ = ["RECOMMENDATIONS", "PartitionStyle", "hour_folder", "local_path"]

RECOMMENDATIONS = "recommendations"
PartitionStyle = Literal["hive", "plain"]

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
            "this option takes a folder of this machine only"
        )
    path = unquote(uri[scheme.end() :]) if scheme else uri
    if not path or "\0" in path:
        raise UsageError(f"{option} {uri!r}: expected a local path or file:///path")
    return os.path.abspath(os.path.expanduser(path))


def hour_folder(folder: str, hour: datetime, style: PartitionStyle = "hive") -> str:
    """Folder of an hour below `folder`; the event-time hour is in UTC."""
    utc = hour.astimezone(UTC)
    if style == "plain":
        return f"{folder}/{utc:%Y/%m/%d/%H}"
    return f"{folder}/year={utc:%Y}/month={utc:%m}/day={utc:%d}/hour={utc:%H}"
