"""Defaults of options and the environment variables that set them: the one table.

An explicit flag wins over `--config`, that over the environment, that over the default. The variables of
the public course project (`ITEM_LIMIT`, `RANDOM_SEED`, `VECTOR_DB_…`) are accepted after our own.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from beamrec.schemas.errors import UsageError

__all__ = ["PASSWORDS", "SETTINGS", "Setting", "default", "variables"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One option that means the same in every verb that has it.

    Attributes:
      name: the flag without dashes, with underscores.
      value: the default where neither flag nor variable is given.
      unit: unit or kind of the value, for the documentation.
      variables: environment variables, the first one set wins; each with what makes the value from its
        text, raising `ValueError`.
    """

    name: str
    value: Any
    unit: str
    variables: Mapping[str, Callable[[str], Any]]


def _vector_db_url(host: str) -> str:
    """The course's host, user and its database name as a URL; the password stays in its variable."""
    user = os.environ.get("VECTOR_DB_USER") or "postgres"
    return f"postgresql://{quote(user, safe='')}@{host}{'' if ':' in host else ':5432'}/postgres"


def _whole(text: str) -> int:
    return int(text, 10)


_ALL = (
    Setting("home", ".beamrec", "folder", {"BEAMREC_HOME": str}),
    Setting("log_format", "text", "text or json", {"BEAMREC_LOG_FORMAT": str}),
    Setting("source", None, "URI", {"BEAMREC_SOURCE": str}),
    Setting("output", None, "URI", {"BEAMREC_OUTPUT": str}),
    Setting("input", None, "URI", {"BEAMREC_INPUT": str}),
    Setting("data", None, "URI", {"BEAMREC_DATA": str}),
    Setting("releases", None, "URI", {"BEAMREC_RELEASES": str}),
    Setting("vector_db", "embedded:", "URI", {"BEAMREC_VECTOR_DB": str, "VECTOR_DB_HOST": _vector_db_url}),
    Setting("shop", None, "TOML file", {"BEAMREC_SHOP": str}),
    Setting("items", 5, "items", {"BEAMREC_ITEMS": _whole, "ITEM_LIMIT": _whole}),
    Setting("seed", 42, "whole number", {"BEAMREC_SEED": _whole, "RANDOM_SEED": _whole}),
    Setting("window_seconds", 60, "seconds", {"BEAMREC_WINDOW_SECONDS": _whole}),
    Setting("allowed_lateness", 3600, "seconds", {"BEAMREC_ALLOWED_LATENESS": float}),
    Setting("max_delay", 2.0, "seconds", {"BEAMREC_MAX_DELAY": float}),
    Setting("dedupe_horizon", 24, "hours", {"BEAMREC_DEDUPE_HORIZON": _whole}),
    Setting("shards", 8, "shards", {"BEAMREC_SHARDS": _whole}),
)

SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _ALL}

# Read where the connection is made, on the worker (`io`), and listed here for the documentation.
PASSWORDS: Mapping[str, tuple[str, ...]] = {
    "source": ("BEAMREC_SOURCE_PASSWORD",),
    "vector_db": ("BEAMREC_VECTOR_DB_PASSWORD", "VECTOR_DB_PASSWORD"),
}


def default(name: str) -> Any:
    """The value of an option that is not given: from the environment, else from the table.

    Raises:
      KeyError: the table has no such option.
      UsageError: a variable is set to something that is not a value of this option.
    """
    entry = SETTINGS[name]
    for variable, convert in entry.variables.items():
        text = os.environ.get(variable)
        if text:
            try:
                return convert(text)
            except ValueError:
                raise UsageError(f"${variable}: expected {entry.unit}, got {text!r}") from None
    return entry.value


def variables(name: str) -> tuple[str, ...]:
    """Environment variables that set an option; none for an option that is not in the table."""
    return tuple(SETTINGS[name].variables) if name in SETTINGS else ()
