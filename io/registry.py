"""URI scheme → the module that reads or writes it: the one place where the choice is made.

To add a system, write a module with the functions that its kind asks for and add one line here.
Modules are imported when they are first asked for, so that no driver is needed that is not used.
"""

import importlib
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from beamrec.schemas.errors import UsageError

__all__ = ["Kind", "backend", "known_schemes", "reject_password", "scheme_of"]

Kind = Literal["tables", "events", "sinks", "files", "embeddings"]

# The empty scheme is a plain path.
_MODULES: dict[Kind, dict[str, str]] = {
    "tables": {
        "sqlite": "beamrec.io.sqlite",
        "mysql": "beamrec.io.mysql",
        "postgresql": "beamrec.io.postgres_tables",
    },
    "events": {
        "": "beamrec.io.event_files",
        "file": "beamrec.io.event_files",
        "s3": "beamrec.io.event_objects",
        "gs": "beamrec.io.event_objects",
        "kinesis": "beamrec.io.kinesis",
        "kafka": "beamrec.io.kafka",
    },
    "sinks": {
        "kinesis": "beamrec.io.kinesis_sink",
        "kafka": "beamrec.io.kafka_sink",
    },
    "files": {
        "": "beamrec.io.local",
        "file": "beamrec.io.local",
        "s3": "beamrec.io.s3",
        "gs": "beamrec.io.gcs",
    },
    "embeddings": {
        "": "beamrec.io.embedding_folders",
        "file": "beamrec.io.embedding_folders",
        "s3": "beamrec.io.embedding_folders",
        "gs": "beamrec.io.embedding_folders",
        "postgresql": "beamrec.io.embedding_tables",
    },
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)")


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; empty for a path."""
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else ""


def known_schemes(kind: Kind) -> tuple[str, ...]:
    """The schemes of a kind, as a user writes them."""
    return tuple(f"{scheme}://" if scheme else "a path" for scheme in _MODULES[kind])


def reject_password(uri: str, option: str, variable: str) -> None:
    """Refuses a URI that carries a password: it would end up in shell histories, logs and graphs.

    Raises:
      UsageError: there is a password; the message does not repeat it.
    """
    try:
        parts = urlsplit(uri)
        has_password = parts.password is not None
    except ValueError:
        raise UsageError(f"{option}: not a valid URI; expected scheme://user@host:port/name") from None
    if has_password or re.search(r"[?&](password|passwd|pwd)=", uri, re.IGNORECASE):
        raise UsageError(
            f"{option}: a {parts.scheme}:// URI must not carry a password; "
            f"take it out and put it into the environment variable {variable}"
        )


def backend(kind: Kind, uri: str, option: str) -> Any:
    """The module behind a URI.

    Args:
      kind: `tables` (an `io.backend.Backend`), `events`, `sinks`, `files` (stores of outputs), or
        `embeddings` (what `release import` takes).
      uri: the URI or path.
      option: the flag that it came from, for the message.

    Raises:
      UsageError: nothing is registered for its scheme.
    """
    scheme = scheme_of(uri)
    module = _MODULES[kind].get(scheme)
    if module is None:
        found = f"the scheme {scheme}://" if scheme else "a path"
        raise UsageError(f"{option}: expected one of {', '.join(known_schemes(kind))}, got {found}")
    return importlib.import_module(module)
