"""`beamrec release`: moves releases between folders and the store, and the active pointer among them."""

import argparse
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

HELP = "loads releases into the store, promotes and rolls back, lists and shows them"

_ACTIONS = {
    "load": "loads a release folder into the store, or checks that it is loaded",
    "promote": "makes a loaded release the active one",
    "rollback": "goes back to the release that was active before",
    "list": "lists the loaded releases",
    "show": "shows a loaded release: manifest and history",
}


def parser() -> argparse.ArgumentParser:
    """The options of every action."""
    verb = VerbParser(prog="beamrec release", description=HELP)
    actions = verb.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=VerbParser)
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        if name in ("load", "promote", "show"):
            what = "id, or folder of the release" if name == "load" else "id of the release"
            action.add_argument("release", metavar="RELEASE", help=what)
        if name == "load":
            releases = "folder where an id is looked for; HOME/releases [URI]"
            action.add_argument("--releases", default=default("releases"), help=releases)
        if name in ("promote", "rollback"):
            action.add_argument("--reason", default=name, help="why; kept in the audit table")
        action.add_argument("--vector-db", default=default("vector_db"), help="the store [URI]")
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
    from beamrec.io.pgvector import ReleaseStore
    from beamrec.io.postgres import resolve_uri

    values = parser().parse_args(list(argv))
    store = ReleaseStore(resolve_uri(values.vector_db, console.home))
    if values.action == "load":
        return _load(values, store, console)
    if values.action in ("promote", "rollback"):
        return _move(values, store, console)
    if values.action == "list":
        return _list(store, console)
    return _show(values.release, store, console)


def _load(values: argparse.Namespace, store: "ReleaseStore", console: Console) -> dict[str, Any]:
    folder = _folder(values.release, values.releases or str(console.home / "releases"))
    console.status(f"loading {folder}")
    manifest = load_release(folder, store)
    rows = manifest.items + manifest.users
    console.print(f"release {manifest.id}: {manifest.items:,} items and {manifest.users:,} users are loaded")
    return {"release": manifest.id, "metrics": dict(manifest.metrics), "in": rows, "out": rows}


def _folder(release: str, releases: str) -> Path:
    """A folder as it is given, or that of an id below `releases`."""
    from beamrec.model.release import local_folder

    given = local_folder(release, "RELEASE")
    return given if "/" in release or given.is_dir() else local_folder(releases) / release


def _move(values: argparse.Namespace, store: "ReleaseStore", console: Console) -> dict[str, Any]:
    if values.action == "promote":
        active = store.promote(values.release, values.reason)
    else:
        active = store.rollback(values.reason)
    console.print(f"release {active.id} is active")
    return {"release": active.id, "metrics": store.show(active.id)["manifest"]["metrics"]}


def _list(store: "ReleaseStore", console: Console) -> dict[str, Any]:
    releases = store.releases()
    for entry in releases:
        console.print(
            f"{'*' if entry['active'] else ' '} {entry['id']}  {entry['loaded_at'][:19]}Z  "
            f"dim {entry['dim']}  {entry['items']:,} items  {entry['users']:,} users"
        )
    if not releases:
        console.print("no release is loaded; `beamrec release load RELEASE` loads one")
    active = next((entry["id"] for entry in releases if entry["active"]), None)
    return {"releases": releases, "release": active}


def _show(release: str, store: "ReleaseStore", console: Console) -> dict[str, Any]:
    shown = store.show(release)
    manifest = shown["manifest"]
    console.print(
        f"release {release} of shop {manifest['shop']}, made {manifest['created_at']}: {shown['uri']}"
    )
    for name, value in sorted(manifest["metrics"].items()):
        console.print(f"  {name:28} {value:.4g}")
    for entry in shown["history"]:
        moved = f"{entry['from'] or '-'} → {entry['to']}"
        console.print(f"  {entry['at'][:19]}Z  {entry['action']:8}  {moved}  {entry['who']}: {entry['why']}")
    return {"release": release, "metrics": manifest["metrics"], **shown}
