"""`beamrec release gc`: drops releases that nothing needs, and what was left over."""

import argparse
import datetime as dt
import shutil
import time
from pathlib import Path
from typing import Any

from beamrec.io.pgvector_gc import Collected, Keep
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default

__all__ = ["add_arguments", "run"]

_STAGING = ".staging-"
_STALE_SECONDS = 86_400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release gc`."""
    add, standard = parser.add_argument, Keep()
    add(
        "--keep",
        type=int,
        default=standard.newest,
        help="releases loaded last that stay, and rollbacks that stay possible [releases]",
    )
    add(
        "--retention",
        type=float,
        default=standard.retention.days,
        help="releases named by recommendations as young as that stay [days]",
    )
    add("--dry-run", action="store_true", help="only say what would be dropped")
    add(
        "--folders",
        action="store_true",
        help="remove the folders of dropped releases too, and unfinished ones older than a day",
    )
    add("--releases", default=default("releases"), help="where the folders are; HOME/releases [folder]")


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Drops, and says what and what stays."""
    from beamrec.io.pgvector import ReleaseStore
    from beamrec.model.release import local_folder

    keep = Keep(values.keep, dt.timedelta(days=values.retention))
    found = ReleaseStore(store_uri).collect(keep, values.dry_run)
    folders: list[Path] = []
    if values.folders:
        releases = local_folder(values.releases or str(console.home / "releases"))
        folders = _folders(releases, found)
        if not values.dry_run:
            for folder in folders:
                _remove(folder)
    _say(found, folders, values.dry_run, console)
    return {
        "dropped": list(found.dropped),
        "kept": found.kept,
        "leftovers": list(found.leftovers),
        "busy": list(found.busy),
        "folders": [str(folder) for folder in folders],
        "dry_run": values.dry_run,
    }


def _folders(releases: Path, found: Collected) -> list[Path]:
    """Folders of dropped releases, and what a killed training left over more than a day ago."""
    dropped = [releases / release_id for release_id in found.dropped]
    stale = [
        path
        for path in sorted(releases.glob(f"{_STAGING}*"))
        if time.time() - path.stat().st_mtime > _STALE_SECONDS
    ]
    return [folder for folder in (*dropped, *stale) if folder.is_dir() and not folder.is_symlink()]


def _remove(folder: Path) -> None:
    """Removes a folder; under another name first, so that nobody finds half a release."""
    if not folder.name.startswith(_STAGING):
        folder = folder.rename(folder.with_name(f"{_STAGING}gone-{folder.name}"))
    shutil.rmtree(folder)


def _say(found: Collected, folders: list[Path], dry_run: bool, console: Console) -> None:
    verb = "would drop" if dry_run else "dropped"
    for release_id in found.dropped:
        console.print(f"{verb} release {release_id}")
    for release_id in found.leftovers:
        console.print(f"{verb} what an unfinished load or drop of {release_id} left over")
    for release_id in found.busy:
        console.print(f"left alone: another command is at work on {release_id}")
    for folder in folders:
        console.print(f"{'would remove' if dry_run else 'removed'} {folder}")
    for release_id, why in sorted(found.kept.items()):
        console.print(f"keeps {release_id} ({why})")
