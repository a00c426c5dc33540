"""`beamrec release import`: embeddings from elsewhere, a folder or two tables, to a release."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beamrec.pipelines.console import Console
from beamrec.pipelines.disk_errors import explaining_disk
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import BeamrecError

__all__ = ["add_arguments", "run"]

_SOURCE = "folder with embeddings/*.csv, also on s3:// or gs://, or postgresql://user@host/db [URI]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the action."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help=_SOURCE)
    add("--releases", default=default("releases"), help="folder of releases; HOME/releases [URI]")
    add(
        "--ratings",
        default=None,
        help="what popularity is counted from: training files, CSV or Parquet, the shop's database [URI]",
    )
    add("--source-secret", help="where the password of a database in --ratings is [URI]")
    add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
    add("--distance", choices=("<->", "<=>", "<#>"), default="<->", help="orders an item's neighbours")
    add(
        "--towers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take SavedModels in model/ along",
    )


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Imports; returns the release, what was skipped, and what to know of it.

    Args:
      values: what `add_arguments` parsed.
      store_uri: not used: an import writes a folder, and `release load` loads it.
      console: says what goes on.
    """
    from beamrec.io.postgres import resolve_uri
    from beamrec.io.rating_counts import count_ratings
    from beamrec.io.release_folders import check_releases, publish
    from beamrec.model.release_import import ImportOptions, import_release
    from beamrec.schemas.shop import load_shop

    shop = load_shop(values.shop)
    releases = values.releases or str(console.home / "releases")
    remote = check_releases(releases)
    counts = None
    if values.ratings:
        console.status(f"counting the ratings of {values.ratings.partition('?')[0]}")
        counts = count_ratings(values.ratings, shop, values.source_secret)
    console.status(f"importing {values.source.partition('?')[0]}")
    source = resolve_uri(values.source, console.home)
    with _made_in(releases, remote) as place, _local_source(source, values.towers) as (folder, skipped):
        options = ImportOptions(values.distance, values.towers)
        made = import_release(folder, place, shop, counts, options, skipped)
        uri = publish(made.folder, releases) if remote else str(made.folder)
    for warning in made.warnings:
        console.print(f"note: {warning}")
    manifest = made.manifest
    console.print(
        f"release {manifest.id}: {manifest.items:,} items and {manifest.users:,} customers of dim "
        f"{manifest.dim}{_skipped(manifest.skipped)}: {uri.partition('?')[0]}"
        f"{'' if made.is_new else ' is there already, nothing was changed'}"
    )
    return {
        "release": manifest.id,
        "metrics": dict(manifest.metrics),
        "in": manifest.items + manifest.users,
        "out": manifest.items + manifest.users,
        "skipped": list(manifest.skipped),
        "warnings": list(made.warnings),
        "paths": {"release": uri},
    }


def _skipped(paths: tuple[str, ...]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"; never opened and left out: {', '.join(paths[:3])}{more}"


@contextmanager
def _made_in(releases: str, remote: bool) -> Iterator[Path]:
    """Where the release is made: in place, or for an object store in a folder that is gone afterwards."""
    from beamrec.model.release import local_folder

    if not remote:
        folder = local_folder(releases)
        with explaining_disk(folder, "written"):
            yield folder
        return
    with (
        tempfile.TemporaryDirectory(prefix="beamrec-made-") as temporary,
        explaining_disk(Path(temporary), "written"),
    ):
        yield Path(temporary)


@contextmanager
def _local_source(source: str, towers: bool) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The foreign folder on this machine, and what was left where it is."""
    from beamrec.io.registry import backend
    from beamrec.model.release_import import is_imported

    system = "postgresql://" if source.startswith("embedded:") else source  # an embedded server is one, too
    embeddings = backend("embeddings", system, "SOURCE")
    with tempfile.TemporaryDirectory(prefix="beamrec-import-") as temporary:
        try:
            yield embeddings.fetch_embeddings(source, Path(temporary), lambda path: is_imported(path, towers))
        except BeamrecError as error:
            # The user knows the source, not our copy of it.
            raise type(error)(str(error).replace(temporary, source.partition("?")[0])) from None
