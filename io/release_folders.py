"""Release folders on object stores: published manifest last, and copied here once, checked byte by byte.

A release is there once its manifest is, which is created and never replaced. A local copy is made beside
its place and moved there whole, so that any number of processes may ask for the same one.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from beamrec.io.objects import ObjectStore, each
from beamrec.io.registry import scheme_of
from beamrec.io.store import Store, open_store, with_beam_options
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError
from beamrec.schemas.paths import local_path
from beamrec.schemas.releases import ReleaseFile, ReleaseManifest

__all__ = [
    "FetchRelease",
    "check_releases",
    "download",
    "is_remote",
    "local_copy",
    "publish",
    "release_ids",
    "release_uri",
]

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 * 2**20
_READ_BYTES = 2**20
_FETCHING = ".fetching-"
_STALE_SECONDS = 86_400.0


def is_remote(uri: str) -> bool:
    """Whether a URI names an object store, and not a folder of this machine."""
    return scheme_of(uri) not in ("", "file")


def release_uri(releases: str, release_id: str) -> str:
    """The URI of one release below the URI or path of all of them; options behind `?` stay."""
    if not is_remote(releases):
        return os.path.join(local_path(releases, "--releases"), release_id)
    # A worker elsewhere lacks this environment: the endpoint travels in the URI.
    root, mark, options = with_beam_options(releases, (), "--releases").partition("?")
    return f"{root.rstrip('/')}/{release_id}{mark}{options}"


def check_releases(releases: str) -> bool:
    """Whether releases go to an object store, which is asked at once whether it takes them.

    Raises:
      UnavailableError: it is away or refuses us.
      UsageError: the address is wrong.
    """
    if is_remote(releases):
        open_store(releases, "--releases").check()
    return is_remote(releases)


def release_ids(releases: str) -> list[str]:
    """The releases below a URI or path, by their ids, sorted: those with a manifest.

    Raises:
      UnavailableError: the store is away.
      UsageError: the address is wrong.
    """
    store = open_store(releases, "--releases")
    return [name for name in store.names("") if store.exists(f"{name}/{_MANIFEST}")]


def publish(folder: Path, releases: str) -> str:
    """Copies a finished release below the URI of all releases; done again it changes nothing.

    Args:
      folder: of the release, with its manifest.
      releases: such as `s3://bucket/releases`, `gs://…` or a path.

    Returns:
      The URI of the release.

    Raises:
      BadDataError: a release of that id but another content is there.
      UnavailableError: the store is away or refuses us.
    """
    data = (folder / _MANIFEST).read_bytes()
    manifest = ReleaseManifest.from_json(data)
    store = open_store(releases, "--releases")
    target = f"{manifest.id}/{_MANIFEST}"
    if not store.exists(target):
        try:
            each(
                lambda file: store.put_file(f"{manifest.id}/{file.path}", folder / file.path), manifest.files
            )
            store.flush()
            _check_listing(store, manifest, f"{manifest.id}/")
        except UnavailableError:
            # Another process that published the same release tidied up behind itself, our uploads too.
            if not store.exists(target):
                raise
    if not store.create(target, data) and not _is_again(store.read(target), manifest):
        raise BadDataError(
            f"{store.uri}/{manifest.id}: a release of that id but another content is there; releases are "
            "immutable: train or import a new one"
        )
    if isinstance(store, ObjectStore):
        # Of an upload in parts that the server began without being able to say so, nobody knows the id.
        store.abort_uploads(manifest.id)
    return release_uri(releases, manifest.id)


def _is_again(data: bytes, manifest: ReleaseManifest) -> bool:
    with contextlib.suppress(ValueError):
        return ReleaseManifest.from_json(data).is_again(manifest)
    return False


def download(uri: str, folder: Path, wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """Copies those objects below a URI that are wanted, by their paths; the others are not read.

    Returns:
      The paths of the others, sorted.

    Raises:
      UnavailableError: the store is away.
    """
    store = open_store(uri, "SOURCE")
    if not isinstance(store, ObjectStore):
        raise UsageError(f"{uri}: expected the URI of an object store")
    paths = [path for path in store.sizes("") if not path.endswith("/")]
    chosen = [path for path in paths if wanted(path)]
    for path in chosen:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    each(lambda path: store.get_file(path, folder / path), chosen)
    return tuple(sorted(set(paths) - set(chosen)))


def local_copy(uri: str, cache: Path, checksum: str | None = None) -> Path:
    """A release's folder on this machine: itself if it is local, else a copy that is what its manifest says.

    Args:
      uri: of one release.
      cache: folder of copies; made if it is not there.
      checksum: SHA-256 of `manifest.json` that is expected, if one is.

    Raises:
      UsageError: there is no such release.
      BadDataError: it is not what its manifest, or the checksum, says.
      UnavailableError: the store is away, or there is no room for the copy.
    """
    store = open_store(uri, "RELEASE")
    if not isinstance(store, ObjectStore):
        return Path(local_path(uri, "RELEASE"))
    known = _known_copy(cache, store.uri.rpartition("/")[2], checksum)
    if known is not None:
        return known
    manifest, data = _read_manifest(store, checksum)
    place = _place(cache, hashlib.sha256(data).hexdigest(), manifest.id)
    if not _is_whole(place, manifest, data):
        try:
            _fetch(store, manifest, data, place, cache)
        except OSError as error:
            raise UnavailableError(
                f"{cache}: the copy of {store.uri} cannot be written: {error.strerror}; expected a writable "
                "folder with room for it"
            ) from error
    return place


@dataclasses.dataclass(frozen=True)
class FetchRelease:
    """`local_copy` as a worker calls it: picklable, and in a cache that can be written there.

    Attributes:
      cache: folder of copies; where it is empty or cannot be made, such as on another machine, one below the
        system's folder of temporary files is used.
    """

    cache: str = ""

    def __call__(self, uri: str, checksum: str) -> Path:
        """The folder of the release that a batch is stamped with; raises as `local_copy` does."""
        return local_copy(uri, self._folder() if is_remote(uri) else Path(), checksum)

    def _folder(self) -> Path:
        if self.cache:
            with contextlib.suppress(OSError):
                Path(self.cache).mkdir(parents=True, exist_ok=True)
                return Path(self.cache)
        return Path(tempfile.gettempdir(), "beamrec-releases")


def _read_manifest(store: ObjectStore, checksum: str | None) -> tuple[ReleaseManifest, bytes]:
    size = store.size(_MANIFEST)
    if size is None:
        raise UsageError(f"release {store.uri}: no {_MANIFEST} there; give the URI of one release")
    if size > _MAX_MANIFEST_BYTES:
        raise BadDataError(f"release {store.uri}: {_MANIFEST} is larger than any manifest")
    data = store.read(_MANIFEST)
    found = hashlib.sha256(data).hexdigest()
    if checksum is not None and found != checksum:
        raise BadDataError(
            f"release {store.uri}: {_MANIFEST} was changed: expected SHA-256 {checksum[:12]}…, got "
            f"{found[:12]}…"
        )
    try:
        manifest = ReleaseManifest.from_json(data)
    except ValueError as error:
        raise BadDataError(f"release {store.uri}: {error}") from None
    if manifest.id != store.uri.rpartition("/")[2]:
        raise BadDataError(f"release {store.uri}: the manifest says that its id is {manifest.id}")
    return manifest, data


def _check_listing(store: Store, manifest: ReleaseManifest, prefix: str = "") -> None:
    """Refuses objects that are missing, unlisted or of another size, before any is copied."""
    found = {path.removeprefix(prefix): size for path, size in store.sizes(prefix.rstrip("/")).items()}
    # Consoles of object stores show folders by empty objects whose names end in a slash.
    found = {path: size for path, size in found.items() if path != _MANIFEST and not path.endswith("/")}
    listed = {file.path: file.bytes for file in manifest.files}
    for path in sorted(found.keys() | listed.keys()):
        if found.get(path) != listed.get(path):
            raise BadDataError(
                f"release {store.uri}/{prefix}: {path!a}: the manifest says {_size(listed.get(path))}, there "
                f"is {_size(found.get(path))}; publish the release anew from where it was made"
            )


def _size(size: int | None) -> str:
    return "no such file" if size is None else f"{size} bytes"


def _place(cache: Path, checksum: str, release_id: str) -> Path:
    return cache / checksum[:16] / release_id


def _known_copy(cache: Path, release_id: str, checksum: str | None) -> Path | None:
    """A whole copy of a release whose manifest is known: for that the store need not be asked."""
    if checksum is None:
        return None
    place = _place(cache, checksum, release_id)
    with contextlib.suppress(OSError, ValueError):
        data = (place / _MANIFEST).read_bytes()
        same = hashlib.sha256(data).hexdigest() == checksum
        if same and _is_whole(place, ReleaseManifest.from_json(data), data):
            return place
    return None


def _is_whole(folder: Path, manifest: ReleaseManifest, data: bytes) -> bool:
    """Whether a copy is there, and still what the manifest says."""
    try:
        same = (folder / _MANIFEST).read_bytes() == data
        return same and all(_digest(folder / f.path) == f.sha256 for f in manifest.files)
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(store: ObjectStore, manifest: ReleaseManifest, data: bytes, place: Path, cache: Path) -> None:
    _check_listing(store, manifest)
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=_FETCHING) as temporary:
        staging = Path(temporary, manifest.id)
        for folder in {staging / Path(file.path).parent for file in manifest.files} | {staging}:
            folder.mkdir(parents=True, exist_ok=True)
        each(lambda file: _fetch_file(store, file, staging / file.path), manifest.files)
        (staging / _MANIFEST).write_bytes(data)
        _move(staging, place, lambda: _is_whole(place, manifest, data), Path(temporary))


def _fetch_file(store: ObjectStore, file: ReleaseFile, target: Path) -> None:
    try:
        store.get_file(file.path, target)
    except FileNotFoundError:
        raise BadDataError(f"release {store.uri}: {file.path!a} is in the manifest but not there") from None
    found = _digest(target)
    if found != file.sha256:
        raise BadDataError(
            f"release {store.uri}: {file.path} is not what the manifest says: expected SHA-256 "
            f"{file.sha256[:12]}…, got {found[:12]}…; publish the release anew from where it was made"
        )


def _move(staging: Path, place: Path, is_whole: Callable[[], bool], aside: Path) -> None:
    """Renames a copy in place, unless another process was first; what was damaged there gives way."""
    while True:
        try:
            staging.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if is_whole():
            return
        with contextlib.suppress(FileNotFoundError):
            place.rename(aside / uuid.uuid4().hex)


def _remove_stale(cache: Path) -> None:
    """What killed processes left."""
    for folder in cache.glob(f"{_FETCHING}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
