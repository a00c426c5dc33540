"""The verbs of the command line: one module each, imported only when its verb is used.

A verb module has
  HELP: str                                              one line, a plain string literal
  parser() -> argparse.ArgumentParser                    its options (`arguments.VerbParser`), without side
                                                         effects; `--config` and docs/options.md read it
  run(argv: Sequence[str], console: Console) -> dict     what `--json` prints; `"exit_code"` in it, when
                                                         not 0, is a failure that has a full report

To add a verb, write its module and add one line to `VERBS`.
"""

import argparse
import ast
import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError

__all__ = ["VERBS", "Verb", "VerbModule", "available", "load", "summary"]


class VerbModule(Protocol):
    """What a verb's module offers."""

    HELP: str
    parser: Callable[[], argparse.ArgumentParser]

    def run(self, argv: Sequence[str], console: Console) -> dict[str, Any]:
        """Does the work and returns the content of the `--json` object."""


@dataclasses.dataclass(frozen=True)
class Verb:
    """Where a verb lives.

    Attributes:
      module: file name under `pipelines/commands/`, without `.py`.
      recorded: whether each run gets an id, a folder under `HOME/runs` and a log.
      beam: whether it runs Beam.
    """

    module: str
    recorded: bool = False
    beam: bool = False

    @property
    def path(self) -> str:
        """The module's import path."""
        return f"{__name__}.{self.module}"


VERBS = {
    "demo": Verb("demo", recorded=True, beam=True),
    "init": Verb("init"),
    "generate": Verb("generate"),
    "batch": Verb("batch", recorded=True, beam=True),
    "train": Verb("train", recorded=True, beam=True),
    "release": Verb("release", recorded=True),
    "stream": Verb("stream", recorded=True, beam=True),
    "replay": Verb("replay", recorded=True, beam=True),
    "compact": Verb("compact", recorded=True),
    "runs": Verb("runs"),
    "doctor": Verb("doctor"),
    "down": Verb("down"),
}


def _source(name: str) -> Path | None:
    spec = importlib.util.find_spec(VERBS[name].path)
    return Path(spec.origin) if spec and spec.origin else None


def available() -> list[str]:
    """The verbs whose module exists, in the order of the table."""
    return [name for name in VERBS if _source(name)]


def summary(name: str) -> str:
    """The verb's HELP, read from its source: importing Beam would cost `beamrec --help` seconds."""
    source = _source(name)
    tree = ast.parse(source.read_bytes()) if source else ast.Module([], [])
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "HELP" for target in targets):
            return str(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return ""


def load(name: str) -> VerbModule:
    """Imports the module of a verb.

    Raises:
      UsageError: there is no such verb, or it is not part of this version.
    """
    if name not in VERBS or not _source(name):
        raise UsageError(f"there is no verb {name!r}; known are {', '.join(available())}")
    return cast(VerbModule, importlib.import_module(VERBS[name].path))
