"""`beamrec release`: moves releases between folders and the store, and the active pointer among them."""

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default

if TYPE_CHECKING:
    from beamrec.io.pgvector import ReleaseStore
    from beamrec.schemas.releases import ReleaseManifest

__all__ = ["HELP", "load_release", "parser", "run"]

HELP = "imports and loads releases, promotes and rolls back, lists, shows, measures and cleans up"


@dataclasses.dataclass(frozen=True)
class _Action:
    """Where an action lives: a module of `pipelines/`, and the names of its two functions."""

    help: str
    module: str
    arguments: str = "add_arguments"
    run: str = "run"

    def function(self, name: str) -> Any:
        return getattr(importlib.import_module(f"beamrec.pipelines.{self.module}"), name)


_ACTIONS = {
    "import": _Action("makes a release of a folder or tables from elsewhere", "release_import"),
    "load": _Action("loads a release into the store, or checks that it is loaded", "release_load"),
    "promote": _Action(
        "makes a loaded release the active one", "release_pointer", arguments="add_promote_arguments"
    ),
    "rollback": _Action(
        "goes back to the release that was active before",
        "release_pointer",
        arguments="add_rollback_arguments",
    ),
    "list": _Action("lists the loaded releases", "release_view", "add_list_arguments", "run_list"),
    "show": _Action(
        "shows a loaded release: manifest and history", "release_view", "add_show_arguments", "run_show"
    ),
    "history": _Action(
        "shows who loaded, promoted, rolled back and dropped which release, when and why",
        "release_view",
        "add_history_arguments",
        "run_history",
    ),
    "report": _Action("measures how a loaded release is best searched", "release_report"),
    "upsert": _Action("adds products that came after a release to its catalogue", "release_items"),
    "gc": _Action("drops releases that nothing needs any more", "release_gc"),
}


def parser() -> argparse.ArgumentParser:
    """The options of every action."""
    verb = VerbParser(prog="beamrec release", description=HELP)
    actions = verb.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=VerbParser)
    for name, action in _ACTIONS.items():
        options = actions.add_parser(name, help=action.help, description=action.help)
        action.function(action.arguments)(options)
        options.add_argument("--vector-db", default=default("vector_db"), help="the store [URI]")
    return verb


def load_release(folder: Path, store: "ReleaseStore") -> "ReleaseManifest":
    """Verifies a release folder and loads it into the store; once loaded it changes nothing.

    Raises:
      UsageError: there is no release.
      BadDataError: the folder is not what its manifest says, or its id is taken by another content.
      UnavailableError: the store is away.
    """
    from beamrec.model.release import read_release

    contents = read_release(folder)
    store.load(contents)
    return contents.manifest


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Does what the action says."""
    from beamrec.io.postgres import resolve_uri

    values = parser().parse_args(list(argv))
    store_uri = resolve_uri(values.vector_db, console.home)
    action = _ACTIONS[values.action]
    answer: dict[str, Any] = action.function(action.run)(values, store_uri, console)
    return answer
