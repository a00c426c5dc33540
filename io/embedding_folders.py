"""Folders of another system's embeddings: taken where they are, or fetched from an object store."""

from collections.abc import Callable
from pathlib import Path

from beamrec.io.release_folders import download, is_remote
from beamrec.schemas.paths import local_path

__all__ = ["fetch_embeddings"]


def fetch_embeddings(uri: str, folder: Path, wanted: Callable[[str], bool]) -> tuple[Path, tuple[str, ...]]:
    """The folder behind a URI on this machine, and the paths of what was left where it is.

    Args:
      uri: a path, `file:///path`, `s3://bucket/prefix` or `gs://bucket/prefix`.
      folder: an empty one, for what must be fetched.
      wanted: whether the file of a path inside the folder is fetched.

    Raises:
      UnavailableError: the store is away.
      UsageError: the address is wrong.
    """
    if not is_remote(uri):
        return Path(local_path(uri, "SOURCE")), ()
    return folder, download(uri, folder, wanted)
