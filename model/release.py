"""The release folder of FORMATS: written whole, then immutable; read only after it is verified.

Nothing here opens a model: a release is checked before any part of it reaches TensorFlow or a database.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from beamrec.model.embeddings import (
    UNIT_TOLERANCE,
    KeyType,
    check_lengths,
    length_range,
    read_embeddings,
    read_popularity,
    vector_lengths,
    write_embeddings,
    write_popularity,
)
from beamrec.model.file_kinds import refused_content, refused_name
from beamrec.model.saved_models import SAVED_MODEL, check_saved_model, check_tower
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.paths import local_path
from beamrec.schemas.releases import ReleaseContents, ReleaseFile, ReleaseManifest
from beamrec.schemas.version import __version__

__all__ = [
    "ITEM_EMBEDDINGS",
    "ITEM_TOWER",
    "MANIFEST",
    "POPULARITY",
    "SCALERS",
    "USER_EMBEDDINGS",
    "USER_TOWER",
    "local_folder",
    "publish_release",
    "read_embeddings",
    "read_popularity",
    "read_release",
    "staged_release",
    "verify_release",
    "write_embeddings",
    "write_popularity",
]

MANIFEST = "manifest.json"
USER_TOWER, ITEM_TOWER, SCALERS = "model/user_tower", "model/item_tower", "scalers"
ITEM_EMBEDDINGS, USER_EMBEDDINGS = "embeddings/item_embeddings.csv", "embeddings/user_embeddings.csv"
POPULARITY = "popularity.csv"

_MAX_MANIFEST_BYTES = 64 * 2**20
_READ_BYTES = 2**20
_HEAD_BYTES = 16


def local_folder(uri: str, option: str = "--releases") -> Path:
    """The folder behind a path or `file:///` URI.

    Raises:
      UsageError: it is another kind of URI.
    """
    return Path(local_path(uri, option))


# Writing ----------------------------------------------------------------------------------------------


@contextmanager
def staged_release(releases: Path) -> Iterator[Path]:
    """A new folder beside the releases to write one into; removed at the end, unless it was published."""
    releases.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=releases, prefix=".staging-"))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish_release(
    staging: Path, releases: Path, values: dict[str, Any], verify: bool = False
) -> tuple[ReleaseManifest, Path]:
    """Names a staged release by its time and content, writes its manifest and moves it in place.

    Args:
      staging: what `staged_release` gave, with everything but the manifest in it.
      releases: folder that gets the release.
      values: fields of `ReleaseManifest` but `id`, `created_at`, `code_version` and `files`; `item_norms` and
        `user_norms` are measured where they are not among them.
      verify: whether all of it is read first as a load will read it.

    Returns:
      The manifest and the release's folder. Where the same release was published within this minute they are
      those of that one, nothing is changed, and `staging` still stands.

    Raises:
      UsageError: within this minute one of the same files and other values was published.
      BadDataError: what is staged cannot be a release.
    """
    try:
        manifest = _describe_release(staging, values)
    except ValueError as error:
        raise BadDataError(f"release {staging}: {error}") from None
    (staging / MANIFEST).write_bytes(manifest.to_json())
    if verify:
        _verify(staging, manifest)
        _read_contents(staging, manifest, "")
    for path in (*_list_files(staging), MANIFEST):
        _sync(staging / path)
    folder = releases / manifest.id
    staging.chmod(0o755)  # mkdtemp makes it private
    try:
        staging.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return _standing(folder, manifest), folder
    _sync(releases)
    return manifest, folder


def _standing(folder: Path, made: ReleaseManifest) -> ReleaseManifest:
    """The manifest that stands where one of the same minute and the same files was to be published."""
    standing = _read_manifest(folder, None)
    if not standing.is_again(made):
        raise UsageError(
            f"release {folder}: it was made of the same files with other options within this minute; do this "
            "again in a minute"
        )
    return standing


def _describe_release(staging: Path, values: dict[str, Any]) -> ReleaseManifest:
    now = datetime.now(UTC)
    files = tuple(
        ReleaseFile(path, size, checksum)
        for path, size, checksum in sorted(_describe(staging / p, p) for p in _list_files(staging))
    )
    content = hashlib.sha256(orjson.dumps([[f.path, f.sha256] for f in files])).hexdigest()
    return ReleaseManifest(
        id=f"{now:%Y%m%dT%H%M}-{content[:8]}",
        created_at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        code_version=__version__,
        files=files,
        **{**_measured(staging, values), **values},
    )


def _measured(staging: Path, values: dict[str, Any]) -> dict[str, tuple[float, float] | None]:
    found = {}
    for name, file in (("item_norms", ITEM_EMBEDDINGS), ("user_norms", USER_EMBEDDINGS)):
        if name not in values:
            _, vectors = read_embeddings(staging / file, values["dim"])
            found[name] = length_range(vector_lengths(vectors))
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading ----------------------------------------------------------------------------------------------


def verify_release(folder: Path, checksum: str | None = None) -> ReleaseManifest:
    """Checks that a folder is exactly what its manifest says, and holds no code: every file, byte by byte.

    Args:
      folder: of one release.
      checksum: SHA-256 of `manifest.json` that is expected, if one is.

    Raises:
      UsageError: there is no such release.
      BadDataError: a file is missing, changed, unlisted, no plain file or of a kind that holds code; a tower
        does more than compute, or is not what the manifest says; or the manifest is wrong.
    """
    manifest = _read_manifest(folder, checksum)
    if manifest.id != folder.name:
        raise BadDataError(f"release {folder}: the manifest says that its id is {manifest.id}")
    _verify(folder, manifest)
    return manifest


def _verify(folder: Path, manifest: ReleaseManifest) -> None:
    listed = {file.path: file for file in manifest.files}
    present = set(_list_files(folder)) - {MANIFEST}
    for name in sorted(present | set(listed)):
        kind = refused_name(name)
        if kind:
            raise BadDataError(f"release {folder}: {name!a} is {kind}; a release must not hold one")
        if name not in listed or name not in present:
            what = "is in the manifest but not there" if name in listed else "is not in the manifest"
            raise BadDataError(
                f"release {folder}: {name!a} {what}; take the folder anew from where it was made"
            )
    for file in manifest.files:
        _check_file(folder, file)
    for name in _required(manifest):
        if name not in listed:
            raise BadDataError(f"release {folder}: {name} is missing from the manifest")
    _check_models(folder, manifest)


def _check_file(folder: Path, file: ReleaseFile) -> None:
    path = folder / file.path
    size = path.lstat().st_size
    head, digest = b"", ""
    if size == file.bytes:
        with path.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
        _, size, digest = _describe(path, file.path)
    if (size, digest) != (file.bytes, file.sha256):
        raise BadDataError(
            f"release {folder}: {file.path} is not what the manifest says: expected {file.bytes} bytes of "
            f"SHA-256 {file.sha256[:12]}…, got {size} bytes{f' of {digest[:12]}…' if digest else ''}"
        )
    kind = refused_content(file.path, head)
    if kind:
        raise BadDataError(f"release {folder}: {file.path} is {kind}; a release must not hold one")


def _check_models(folder: Path, manifest: ReleaseManifest) -> None:
    """Towers by their signatures, and every other SavedModel, such as the preprocessing graph."""
    towers = {
        USER_TOWER: (manifest.has_user_tower, manifest.user_inputs),
        ITEM_TOWER: (manifest.has_item_tower, manifest.item_inputs),
    }
    for file in manifest.files:
        parent, _, name = file.path.rpartition("/")
        if name == SAVED_MODEL:
            has_tower, inputs = towers.get(parent, (False, ()))
            if has_tower:
                check_tower(folder / parent, inputs, manifest.dim)
            else:
                check_saved_model(folder / parent)


def _read_manifest(folder: Path, checksum: str | None) -> ReleaseManifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"release {folder}: no {MANIFEST} there; give the folder of one release")
    if path.is_symlink() or path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BadDataError(f"release {folder}: {MANIFEST} is a link, or larger than any manifest")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if checksum is not None and found != checksum:
        raise BadDataError(
            f"release {folder}: {MANIFEST} was changed: expected SHA-256 {checksum[:12]}…, got {found[:12]}…"
        )
    try:
        manifest = ReleaseManifest.from_json(data)
    except ValueError as error:
        raise BadDataError(f"release {folder}: {error}") from None
    return manifest


def _required(manifest: ReleaseManifest) -> tuple[str, ...]:
    towers = ((manifest.has_user_tower, USER_TOWER), (manifest.has_item_tower, ITEM_TOWER))
    models = tuple(f"{folder}/saved_model.pb" for has, folder in towers if has)
    return (ITEM_EMBEDDINGS, USER_EMBEDDINGS, POPULARITY, *models)


def _list_files(folder: Path) -> list[str]:
    """POSIX paths of all files below a folder, sorted.

    Raises:
      BadDataError: there is anything but plain files and folders, such as a link out of it.
    """
    paths = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise BadDataError(f"release {folder}: {path.relative_to(folder)} is neither file nor folder")
            if stat.S_ISREG(mode):
                paths.append(path.relative_to(folder).as_posix())
    return sorted(paths)


def _describe(path: Path, name: str) -> tuple[str, int, str]:
    """Name, size in bytes and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return name, size, digest.hexdigest()


def read_release(folder: Path, uri: str = "") -> ReleaseContents:
    """Verifies a release and reads what the vector store needs of it.

    Args:
      folder: of one release.
      uri: where workers find it, if `folder` is a copy.

    Raises:
      UsageError: there is no such release.
      BadDataError: the folder is not what its manifest says, or its vectors or ids are not usable.
    """
    return _read_contents(folder, verify_release(folder), uri or str(folder))


def _read_contents(folder: Path, manifest: ReleaseManifest, uri: str) -> ReleaseContents:
    items, item_vectors = _read_side(
        folder / ITEM_EMBEDDINGS, manifest, manifest.items, manifest.item_key_type, manifest.item_norms
    )
    users, user_vectors = _read_side(
        folder / USER_EMBEDDINGS, manifest, manifest.users, manifest.user_key_type, manifest.user_norms
    )
    popular = read_popularity(folder / POPULARITY)
    catalogue = set(items)
    unknown = next((row for row, item in enumerate(popular) if item not in catalogue), None)
    if unknown is not None:
        # An id may hold newlines, but those of the rows before are of the catalogue.
        line = 2 + unknown + sum(item.count("\n") for item in popular[:unknown])
        raise BadDataError(
            f"{folder / POPULARITY}:{line}: {popular[unknown]!a} is unknown: it is not in {ITEM_EMBEDDINGS}"
        )
    try:
        return ReleaseContents(
            manifest,
            uri,
            hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
            tuple(items),
            item_vectors,
            tuple(users),
            user_vectors,
            tuple(popular),
        )
    except ValueError as error:
        raise BadDataError(f"release {folder}: {error}") from None


def _read_side(
    path: Path, manifest: ReleaseManifest, rows: int, key_type: KeyType, norms: tuple[float, float] | None
) -> tuple[list[str], np.ndarray]:
    ids, vectors = read_embeddings(path, manifest.dim, rows, key_type)
    _check_norms(path, vectors, manifest, norms)
    return ids, vectors


def _check_norms(
    path: Path, vectors: np.ndarray, manifest: ReleaseManifest, noted: tuple[float, float] | None
) -> None:
    lengths = vector_lengths(vectors)
    check_lengths(path, lengths, manifest.normalized, manifest.distance)
    found = length_range(lengths)
    if noted is not None and (found is None or not np.allclose(found, noted, rtol=UNIT_TOLERANCE, atol=0)):
        raise BadDataError(f"{path}: expected vectors of lengths {noted}, as the manifest says; got {found}")
