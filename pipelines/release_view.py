"""`beamrec release list`, `show` and `history`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError
from beamrec.schemas.serving import SearchSetting

__all__ = [
    "add_history_arguments",
    "add_list_arguments",
    "add_show_arguments",
    "run_history",
    "run_list",
    "run_show",
]


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """`release list` has no options of its own."""


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release show`."""
    parser.add_argument("release", metavar="RELEASE", help="id of the release")


def add_history_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release history`."""
    parser.add_argument(
        "release", metavar="RELEASE", nargs="?", help="id of a release, also of one dropped long ago; all"
    )
    parser.add_argument("--limit", type=int, default=100, help="the latest so many [entries]")


def run_list(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Lists the loaded releases, newest first."""
    from beamrec.io.pgvector import ReleaseStore

    releases = ReleaseStore(store_uri).releases()
    for entry in releases:
        search = f"  search {SearchSetting.from_dict(entry['search']).name}" if entry["search"] else ""
        console.print(
            f"{'*' if entry['active'] else ' '} {entry['id']}  {entry['loaded_at'][:19]}Z  "
            f"dim {entry['dim']}  {entry['items']:,} items  {entry['users']:,} users  "
            f"index {entry['index']}{search}"
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
    for name, text in _facts(shown):
        console.print(f"  {name:28} {text}")
    for name, value in sorted(manifest["metrics"].items()):
        console.print(f"  {name:28} {value:.4g}")
    _print_history(shown["history"], console)
    return {"release": release, "metrics": manifest["metrics"], **shown}


def _facts(shown: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The main fields of a manifest, and how the release was built and is searched, in words."""
    manifest, search = shown["manifest"], shown["search"]
    index = {"kind": "hnsw"} | shown["built"].get("index", {})
    yield "origin", manifest["origin"]
    lengths = "of length one" if manifest["normalized"] else "of any length"
    yield "vectors", f"dim {manifest['dim']}, {lengths}; neighbours by {manifest['distance']}"
    yield "items, customers", f"{shown['items']:,}, {manifest['users']:,}"
    towers = [side for side in ("user", "item") if manifest[f"has_{side}_tower"]]
    yield "towers", " and ".join(towers) or "none: customers without a vector get the popular items"
    yield "index", ", ".join([index.pop("kind"), *(f"{name} {value}" for name, value in index.items())])
    yield "search", SearchSetting.from_dict(search).name if search else "by the size of the catalogue"
    if manifest["skipped"]:
        yield "never opened and left out", ", ".join(manifest["skipped"])


def run_history(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Shows the audit trail, oldest first.

    Raises:
      UsageError: nothing is known of the release, or the limit is under 1.
    """
    from beamrec.io.pgvector import ReleaseStore

    if values.limit < 1:
        raise UsageError(f"--limit: expected at least 1 entry, got {values.limit}")
    history = ReleaseStore(store_uri).history(values.release, values.limit)
    if not history and values.release:
        raise UsageError(
            f"release {values.release}: it was never loaded here; `beamrec release history` shows what was"
        )
    _print_history(history, console)
    if not history:
        console.print("no release was ever loaded; `beamrec release load RELEASE` loads one")
    return {"release": values.release, "history": history}


def _print_history(history: Sequence[Mapping[str, Any]], console: Console) -> None:
    for entry in history:
        moved = f"{entry['from'] or '-'} → {entry['to'] or '-'}"
        console.print(f"  {entry['at'][:19]}Z  {entry['action']:10}  {moved}  {entry['who']}: {entry['why']}")
        for guard in entry["forced"]:
            console.print(f"    overruled: {guard}")
