"""The release folder of FORMATS: written whole, then immutable; read only after it is verified.

Nothing here opens a model: a release is checked before any part of it reaches TensorFlow or a database.
"""

import csv
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

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
_UNIT_TOLERANCE = 1e-3


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


def publish_release(staging: Path, releases: Path, values: dict[str, Any]) -> tuple[ReleaseManifest, Path]:
    """Names a staged release by its time and content, writes its manifest and moves it in place.

    Args:
      values: fields of `ReleaseManifest` but `id`, `created_at`, `code_version` and `files`.

    Returns:
      The manifest and the release's folder.
    """
    now = datetime.now(UTC)
    files = tuple(
        ReleaseFile(path, size, checksum)
        for path, size, checksum in sorted(_describe(staging / p, p) for p in _list_files(staging))
    )
    content = hashlib.sha256(orjson.dumps([[f.path, f.sha256] for f in files])).hexdigest()
    manifest = ReleaseManifest(
        id=f"{now:%Y%m%dT%H%M}-{content[:8]}",
        created_at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        code_version=__version__,
        files=files,
        **values,
    )
    (staging / MANIFEST).write_bytes(manifest.to_json())
    for path in (*_list_files(staging), MANIFEST):
        _sync(staging / path)
    folder = releases / manifest.id
    staging.chmod(0o755)  # mkdtemp makes it private
    staging.rename(folder)
    _sync(releases)
    return manifest, folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_embeddings(path: Path, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Writes `id,embedding` with every float32 in the fewest digits that give it back exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("id", "embedding"))
        for key, vector in zip(ids, np.ascontiguousarray(vectors, np.float32), strict=True):
            rows.writerow((key, orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()))


def write_popularity(path: Path, ids: Sequence[str], ratings: Sequence[int]) -> None:
    """Writes `id,ratings`, most popular first: the fallback list, and the popularity seen in training."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("id", "ratings"))
        rows.writerows(zip(ids, ratings, strict=True))


# Reading ----------------------------------------------------------------------------------------------


def verify_release(folder: Path, checksum: str | None = None) -> ReleaseManifest:
    """Checks that a folder is exactly what its manifest says: every file, byte by byte, and no other.

    Args:
      checksum: SHA-256 of `manifest.json` that is expected, if one is.

    Raises:
      UsageError: there is no such release.
      BadDataError: a file is missing, changed, unlisted or no plain file; or the manifest is wrong.
    """
    manifest = _read_manifest(folder, checksum)
    listed = {file.path: file for file in manifest.files}
    present = set(_list_files(folder)) - {MANIFEST}
    for name in sorted(present ^ set(listed)):
        what = "is in the manifest but not there" if name in listed else "is not in the manifest"
        raise BadDataError(f"release {folder}: {name} {what}; take the folder anew from where it was made")
    for name, file in listed.items():
        _, size, digest = _describe(folder / name, name)
        if (size, digest) != (file.bytes, file.sha256):
            raise BadDataError(
                f"release {folder}: {name} is not what the manifest says: expected {file.bytes} bytes of "
                f"SHA-256 {file.sha256[:12]}…, got {size} bytes of {digest[:12]}…"
            )
    for name in _required(manifest):
        if name not in listed:
            raise BadDataError(f"release {folder}: {name} is missing from the manifest")
    return manifest


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
    if manifest.id != folder.name:
        raise BadDataError(f"release {folder}: the manifest says that its id is {manifest.id}")
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


def read_release(folder: Path) -> ReleaseContents:
    """Verifies a release and reads what the vector store needs of it.

    Raises:
      UsageError: there is no such release.
      BadDataError: the folder is not what its manifest says, or its vectors or ids are not usable.
    """
    manifest = verify_release(folder)
    items, item_vectors = read_embeddings(folder / ITEM_EMBEDDINGS, manifest.dim)
    users, user_vectors = read_embeddings(folder / USER_EMBEDDINGS, manifest.dim)
    popular = read_popularity(folder / POPULARITY)
    unknown = set(popular) - set(items)
    if unknown or len(set(popular)) != len(popular):
        what = f"{min(unknown)!r} is not in the catalogue" if unknown else "an id stands there twice"
        raise BadDataError(f"{folder / POPULARITY}: {what}")
    for name, vectors in ((ITEM_EMBEDDINGS, item_vectors), (USER_EMBEDDINGS, user_vectors)):
        _check_norms(folder / name, vectors, manifest)
    try:
        return ReleaseContents(
            manifest,
            str(folder),
            hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
            tuple(items),
            item_vectors,
            tuple(users),
            user_vectors,
            tuple(popular),
        )
    except ValueError as error:
        raise BadDataError(f"release {folder}: {error}") from None


def _check_norms(path: Path, vectors: np.ndarray, manifest: ReleaseManifest) -> None:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = np.abs(norms - 1) > _UNIT_TOLERANCE if manifest.normalized else norms > np.finfo(np.float32).max
    if manifest.distance == "<=>":
        wrong |= norms == 0
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = "length one, as the manifest says" if manifest.normalized else "a finite length above 0"
        raise BadDataError(f"{path}:{row + 2}: expected a vector of {expected}, got length {norms[row]:.6g}")


def read_embeddings(path: Path, dim: int) -> tuple[list[str], np.ndarray]:
    """Ids and vectors [rows, dim] float32 of an embeddings file.

    Raises:
      BadDataError: with file and line: a wrong header, dimension, number, or an id that stands there twice.
    """
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    seen: set[str] = set()
    for line, key, cell in _rows(path, ("id", "embedding")):
        if not key or key in seen:
            raise BadDataError(f"{path}:{line}: expected a new id, got {key!r}{' again' if key else ''}")
        seen.add(key)
        ids.append(key)
        vectors.append(_parse_vector(cell, dim, f"{path}:{line}"))
    return ids, np.array(vectors, np.float32).reshape(len(ids), dim)


def _parse_vector(cell: str, dim: int, where: str) -> np.ndarray:
    try:
        values = orjson.loads(cell)  # strict: it knows neither NaN nor Infinity
    except orjson.JSONDecodeError as error:
        raise BadDataError(f"{where}: expected numbers as [0.1,…]: {error}") from None
    if not isinstance(values, list) or len(values) != dim:
        found = f"{len(values)} numbers" if isinstance(values, list) else type(values).__name__
        raise BadDataError(f"{where}: expected {dim} numbers, got {found}")
    vector = np.array(values)
    if vector.dtype.kind not in "fi" or not (np.abs(vector) <= np.finfo(np.float32).max).all():
        raise BadDataError(f"{where}: expected finite numbers within float32")
    return vector.astype(np.float32)


def read_popularity(path: Path) -> list[str]:
    """Item ids, most popular first.

    Raises:
      BadDataError: with file and line, if a row is not `id,ratings`.
    """
    ids = []
    for line, key, count in _rows(path, ("id", "ratings")):
        if not (count.isascii() and count.isdigit()):
            raise BadDataError(f"{path}:{line}: expected a number of ratings, got {count!r}")
        ids.append(key)
    return ids


def _rows(path: Path, header: tuple[str, str]) -> Iterator[tuple[int, str, str]]:
    """(line, first, second) of a CSV file of two columns."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            if tuple(next(rows, ())) != header:
                raise BadDataError(f"{path}:1: expected the header {','.join(header)}")
            for row in rows:
                if len(row) != 2:
                    raise BadDataError(f"{path}:{rows.line_num}: expected 2 columns, got {len(row)}")
                yield rows.line_num, row[0], row[1]
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadDataError(f"{path}:{rows.line_num}: {error}") from None
