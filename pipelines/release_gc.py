"""`beamrec release gc`: drops releases that nothing needs, and what was left over."""

import argparse
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from beamrec.io.pgvector_gc import Collected, Keep
from beamrec.pipelines.console import Console
from beamrec.pipelines.disk_errors import explaining_disk
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import UsageError

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
        help="releases named in the serving tables by recommendations as young as that stay; output files "
        "are not read: what only they name goes [days]",
    )
    add("--dry-run", action="store_true", help="only say what would be dropped")
    add(
        "--folders",
        action="store_true",
        help="remove the folders of releases dropped now or before, and unfinished ones older than a day",
    )
    add("--releases", default=default("releases"), help="where the folders are; HOME/releases [folder]")


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Drops, and says what and what stays."""
    from beamrec.io.pgvector import ReleaseStore

    keep = Keep.of(values.keep, values.retention)
    releases = _local_releases(values, console) if values.folders else None
    found = ReleaseStore(store_uri).collect(keep, values.dry_run)
    folders = _folders(releases, found) if releases is not None else []
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


def _local_releases(values: argparse.Namespace, console: Console) -> Path:
    """Where the folders are, before anything is dropped."""
    from beamrec.io.release_folders import is_remote
    from beamrec.model.release import local_folder

    releases = values.releases or str(console.home / "releases")
    if is_remote(releases):
        raise UsageError(
            f"--folders: {releases} is an object store, and only folders of this machine are removed; run "
            "`release gc` without --folders, and remove there what it drops"
        )
    return local_folder(releases)


def _folders(releases: Path, found: Collected) -> list[Path]:
    """Folders of dropped releases, and what a killed training left over more than a day ago."""
    dropped = [releases / release_id for release_id in sorted({*found.dropped, *found.gone})]
    stale = [
        path
        for path in sorted(releases.glob(f"{_STAGING}*"))
        if time.time() - path.stat().st_mtime > _STALE_SECONDS
    ]
    return [folder for folder in (*dropped, *stale) if folder.is_dir() and not folder.is_symlink()]


def _remove(folder: Path) -> None:
    """Removes a folder; under another name first, so that nobody finds half a release."""
    with explaining_disk(folder, "removed"):
        if not folder.name.startswith(_STAGING):
            # A name of its own: a removal that was killed may have left the last one's there.
            folder = folder.rename(folder.with_name(f"{_STAGING}gone-{folder.name}-{uuid.uuid4().hex[:8]}"))
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
