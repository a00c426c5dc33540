"""`beamrec release list` and `show`."""

import argparse
from typing import Any

from beamrec.pipelines.console import Console

__all__ = ["add_list_arguments", "add_show_arguments", "run_list", "run_show"]


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """`release list` has no options of its own."""


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release show`."""
    parser.add_argument("release", metavar="RELEASE", help="id of the release")


def run_list(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Lists the loaded releases, newest first."""
    from beamrec.io.pgvector import ReleaseStore

    releases = ReleaseStore(store_uri).releases()
    for entry in releases:
        console.print(
            f"{'*' if entry['active'] else ' '} {entry['id']}  {entry['loaded_at'][:19]}Z  "
            f"dim {entry['dim']}  {entry['items']:,} items  {entry['users']:,} users  index {entry['index']}"
        )
    if not releases:
        console.print("no release is loaded; `beamrec release load RELEASE` loads one")
    active = next((entry["id"] for entry in releases if entry["active"]), None)
    return {"releases": releases, "release": active}


def run_show(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Shows a loaded release: manifest, how it was built, and its history."""
    from beamrec.io.pgvector import ReleaseStore

    release = values.release
    shown = ReleaseStore(store_uri).show(release)
    manifest = shown["manifest"]
    console.print(
        f"release {release} of shop {manifest['shop']}, made {manifest['created_at']}: {shown['uri']}"
    )
    for name, value in sorted(manifest["metrics"].items()):
        console.print(f"  {name:28} {value:.4g}")
    for entry in shown["history"]:
        moved = f"{entry['from'] or '-'} → {entry['to'] or '-'}"
        console.print(f"  {entry['at'][:19]}Z  {entry['action']:8}  {moved}  {entry['who']}: {entry['why']}")
        for guard in entry["forced"]:
            console.print(f"    overruled: {guard}")
    return {"release": release, "metrics": manifest["metrics"], **shown}
