"""`beamrec release load`: a verified release folder into the tables of the store."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamrec.io.pgvector_index import IndexOptions
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import check_release_id

if TYPE_CHECKING:
    from beamrec.io.pgvector import ReleaseStore

__all__ = ["add_arguments", "run"]

_MEBIBYTE = 2**20
_SHOWN_IDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release load`."""
    add = parser.add_argument
    standard = IndexOptions()
    add("release", metavar="RELEASE", help="id, or folder of the release, or its URI on an object store")
    add(
        "--releases",
        default=default("releases"),
        help="where an id is looked for; HOME/releases [URI]",
    )
    add(
        "--index",
        choices=("hnsw", "ivfflat", "none"),
        default=standard.kind,
        help="index of the items: ivfflat is built faster and finds less, none is for small catalogues",
    )
    add("--hnsw-m", type=int, default=standard.m, help="edges a node of an HNSW index [edges]")
    add(
        "--hnsw-ef-construction",
        type=int,
        default=standard.ef_construction,
        help="width of the search while an HNSW index is built [items]",
    )
    add("--ivfflat-lists", type=int, help="lists of an IVFFlat index; by the number of items [lists]")
    add(
        "--index-workers",
        type=int,
        default=standard.workers,
        help="processes of the server that build the index, beside the first [processes]",
    )
    add(
        "--index-memory-mb",
        type=int,
        help="memory for building the index; what it needs, 2,047 at most [MiB]",
    )


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Verifies the release and loads it; loaded already, it changes nothing."""
    from beamrec.io.pgvector import ReleaseStore
    from beamrec.model.release import read_release

    index = _index_options(values)
    folder, uri = _locate(values.release, values.releases or str(console.home / "releases"), console)
    console.status(f"verifying {uri}")
    contents = read_release(folder, uri)
    manifest, store = contents.manifest, ReleaseStore(store_uri)
    address = _address(store, manifest.id)
    began = time.monotonic()
    is_new = store.load(contents, index, console.status)
    built = store.show(manifest.id)["built"]
    how = f"in {time.monotonic() - began:.1f} s" if is_new else _unchanged(address, uri)
    console.print(
        f"release {manifest.id}: {manifest.items:,} items and {manifest.users:,} users are loaded, {how}; "
        f"index {built.get('index', {}).get('kind', 'hnsw')}, neighbours {built.get('neighbours', 'exact')}"
    )
    rows = manifest.items + manifest.users
    return {
        "release": manifest.id,
        "metrics": dict(manifest.metrics),
        "in": rows,
        "out": rows,
        "loaded": is_new,
        "built": built,
        "uri": uri,
    }


def _address(store: "ReleaseStore", release_id: str) -> str | None:
    """Where workers fetch a loaded release from; None if it is not loaded."""
    return next((entry["uri"] for entry in store.releases() if entry["id"] == release_id), None)


def _unchanged(before: str | None, now: str) -> str:
    if before in (None, now):
        return "already, nothing was changed"
    return f"already; workers fetch it from {now} from now on, no longer from {before}"


def _index_options(values: argparse.Namespace) -> IndexOptions:
    memory = values.index_memory_mb
    return IndexOptions(
        kind=values.index,
        m=values.hnsw_m,
        ef_construction=values.hnsw_ef_construction,
        lists=values.ivfflat_lists,
        workers=values.index_workers,
        memory_bytes=None if memory is None else memory * _MEBIBYTE,
    )


def _locate(release: str, releases: str, console: Console) -> tuple[Path, str]:
    """The folder to read, and what the store keeps as the release's URI.

    A folder or URI is taken as it is given, an id is looked for below `releases`; what lies on an object
    store is copied into the cache of the home first.
    """
    from beamrec.io.release_folders import is_remote, local_copy, release_uri
    from beamrec.io.store import with_beam_options
    from beamrec.model.release import local_folder

    # `os.path.isdir` takes a name that no file system could hold for no folder, `Path.is_dir` raises.
    if not is_remote(release) and ("/" in release or os.path.isdir(release)):
        folder = local_folder(release, "RELEASE")
        if not os.path.isdir(folder):
            raise UsageError(f"RELEASE: {folder}: there is no such folder")
        return folder, str(folder)
    if is_remote(release):
        uri = with_beam_options(release, (), "RELEASE")  # a worker elsewhere lacks this environment
    else:
        _check_is_there(release, releases)
        uri = release_uri(releases, release)
    if not is_remote(uri):
        return Path(uri), uri
    console.status(f"fetching {uri}")
    return local_copy(uri, console.home / "cache" / "releases"), uri


def _check_is_there(release: str, releases: str) -> None:
    from beamrec.io.release_folders import release_ids
    from beamrec.io.store import open_store

    try:
        check_release_id(release)
    except ValueError as error:
        raise UsageError(f"RELEASE: neither a folder nor an id: {error}") from None
    if not open_store(releases, "--releases").exists(f"{release}/manifest.json"):
        known = ", ".join(release_ids(releases)[-_SHOWN_IDS:])
        raise UsageError(
            f"release {release}: no release of that id in {releases}; the latest there: {known or 'none'}. "
            "Another place is given by --releases"
        )
