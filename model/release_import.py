"""A release made of what was made elsewhere: embeddings as CSV, and towers where they are SavedModels.

Only these files are opened. Whatever else lies beside them, pickled models and scalers above all, is listed
as skipped by its name.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from beamrec.model.embeddings import (
    UNIT_TOLERANCE,
    check_lengths,
    length_range,
    vector_lengths,
    write_embeddings,
    write_popularity,
)
from beamrec.model.foreign_embeddings import line_of_foreign_row, read_foreign_embeddings
from beamrec.model.preprocessing import FeatureSpec
from beamrec.model.release import (
    ITEM_EMBEDDINGS,
    ITEM_TOWER,
    POPULARITY,
    USER_EMBEDDINGS,
    USER_TOWER,
    publish_release,
    staged_release,
)
from beamrec.model.saved_models import SAVED_MODEL, check_tower, is_saved_model_file
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.releases import MAX_DIM, ReleaseManifest
from beamrec.schemas.shop import Shop

__all__ = ["ImportOptions", "ImportedRelease", "import_release", "is_imported"]

_TOWERS = (USER_TOWER, ITEM_TOWER)
_NO_RATINGS = (
    "without --ratings the popularity list is the items in the order of their ids; give what "
    "`batch --output` was given, a CSV or Parquet file of ratings, or the shop's database"
)


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """How foreign vectors are to be taken.

    Attributes:
      distance: operator that the neighbours of items are ordered by.
      towers: whether SavedModels are taken along; else they are skipped.
    """

    distance: str = "<->"
    towers: bool = True


@dataclasses.dataclass(frozen=True)
class ImportedRelease:
    """A new release, and what its maker should know of it.

    Attributes:
      folder: of the release.
      warnings: what serves worse than it could, and how to mend it.
      is_new: False if the same import within the same minute made it already.
    """

    folder: Path
    manifest: ReleaseManifest
    warnings: tuple[str, ...]
    is_new: bool = True


@dataclasses.dataclass(frozen=True)
class _Side:
    path: Path
    ids: list[str]
    vectors: np.ndarray
    lengths: np.ndarray


def is_imported(path: str, towers: bool = True) -> bool:
    """Whether an import opens the file of a path inside the foreign folder."""
    if path in (ITEM_EMBEDDINGS, USER_EMBEDDINGS):
        return True
    tower = _tower_of(path)
    return towers and tower is not None and is_saved_model_file(path[len(tower) + 1 :])


def _tower_of(path: str) -> str | None:
    return next((tower for tower in _TOWERS if path.startswith(f"{tower}/")), None)


def import_release(
    source: Path,
    releases: Path,
    shop: Shop,
    ratings: Mapping[str, int] | None = None,
    options: ImportOptions | None = None,
    skipped: tuple[str, ...] = (),
) -> ImportedRelease:
    """Makes a release of `embeddings/item_embeddings.csv`, `user_embeddings.csv` and SavedModels in `model/`.

    Args:
      source: the foreign folder.
      releases: folder that gets the new release.
      shop: says of what type the ids are, and what the towers take.
      ratings: item id → number of its ratings, for the popularity list; None if that is not known.
      options: how vectors are to be taken.
      skipped: what was left out already before `source` was made.

    Raises:
      UsageError: there is no such folder, or no item embeddings in it.
      BadDataError: with file and line: what is there is not usable.
    """
    options = options or ImportOptions()
    files = dict(_files(source))
    if not files.get(ITEM_EMBEDDINGS):
        raise UsageError(
            f"{source}: expected a folder with {ITEM_EMBEDDINGS} (and {USER_EMBEDDINGS}, {USER_TOWER}/ as a "
            "SavedModel if there is one)"
        )
    taken = {path for path, plain in files.items() if plain and is_imported(path, options.towers)}
    taken -= _incomplete_towers(taken)
    items = _read_side(source / ITEM_EMBEDDINGS, shop.products.key_type)
    users = (
        _read_side(source / USER_EMBEDDINGS, shop.customers.key_type) if USER_EMBEDDINGS in taken else None
    )
    values = _manifest_values(shop, items, users, taken, options)
    left_out = {*skipped, *(files.keys() - taken)}
    # A name need not be UTF-8 on every file system; a manifest is.
    values["skipped"] = tuple(sorted(path.encode("utf-8", "backslashreplace").decode() for path in left_out))
    popular, warnings = _popular(items.ids, ratings, shop.products.key_type)
    with staged_release(releases) as staging:
        write_embeddings(staging / ITEM_EMBEDDINGS, items.ids, items.vectors)
        write_embeddings(
            staging / USER_EMBEDDINGS,
            users.ids if users else [],
            users.vectors if users else items.vectors[:0],
        )
        write_popularity(staging / POPULARITY, list(popular), list(popular.values()))
        _copy_towers(source, staging, taken)
        try:
            _check_towers(staging, values)
            manifest, folder = publish_release(staging, releases, values, verify=True)
        except BadDataError as error:
            # The user knows the source, not our copy of it.
            raise BadDataError(str(error).replace(str(staging), str(source))) from None
        is_new = not staging.exists()
    return ImportedRelease(folder, manifest, (*warnings, *_warnings(manifest)), is_new)


def _files(source: Path) -> Iterator[tuple[str, bool]]:
    """Path and whether it is a plain file, of everything below a folder but folders; nothing is opened."""
    if not source.is_dir():
        raise UsageError(f"{source}: there is no such folder to import")
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(source).as_posix(), path.is_file() and not path.is_symlink()


def _incomplete_towers(taken: set[str]) -> set[str]:
    """Files of folders that are called as a tower and are no SavedModel."""
    missing = [tower for tower in _TOWERS if f"{tower}/{SAVED_MODEL}" not in taken]
    return {path for path in taken if _tower_of(path) in missing}


def _read_side(path: Path, key_type: Any) -> _Side:
    ids, vectors = read_foreign_embeddings(path, key_type)
    if not ids:
        raise BadDataError(f"{path}: expected rows of id and embedding, got none")
    if vectors.shape[1] > MAX_DIM:
        raise BadDataError(
            f"{path}: expected vectors of at most {MAX_DIM} numbers, which is what pgvector's indexes take; "
            f"got {vectors.shape[1]}: make shorter ones, such as their first principal components"
        )
    return _Side(path, ids, vectors, vector_lengths(vectors))


def _manifest_values(
    shop: Shop, items: _Side, users: _Side | None, taken: set[str], options: ImportOptions
) -> dict[str, Any]:
    dim = items.vectors.shape[1]
    if users is not None and users.vectors.shape[1] != dim:
        raise BadDataError(
            f"{USER_EMBEDDINGS}: expected vectors of {dim} numbers, as the items have; got "
            f"{users.vectors.shape[1]}"
        )
    sides = [items, users] if users is not None else [items]
    normalized = all(bool((np.abs(side.lengths - 1) <= UNIT_TOLERANCE).all()) for side in sides)
    for side in sides:
        check_lengths(side.path, side.lengths, normalized, options.distance, line_of_foreign_row)
    spec = FeatureSpec.from_shop(shop)
    has = {tower: f"{tower}/{SAVED_MODEL}" in taken for tower in _TOWERS}
    return {
        "shop": shop.name,
        "user_key_type": shop.customers.key_type,
        "item_key_type": shop.products.key_type,
        "dim": dim,
        "items": len(items.ids),
        "users": len(users.ids) if users is not None else 0,
        "distance": options.distance,
        "normalized": normalized,
        "item_norms": length_range(items.lengths),
        "user_norms": length_range(users.lengths) if users is not None else None,
        "origin": "import",
        "has_user_tower": has[USER_TOWER],
        "has_item_tower": has[ITEM_TOWER],
        "user_inputs": spec.user if has[USER_TOWER] else (),
        "item_inputs": spec.item if has[ITEM_TOWER] else (),
    }


def _popular(
    ids: list[str], ratings: Mapping[str, int] | None, key_type: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Every item with its number of ratings, most popular first, equal ones by their ids; and warnings."""
    counts = ratings or {}
    by_id = sorted(ids, key=int) if key_type == "int" else sorted(ids)
    popular = {item: counts.get(item, 0) for item in sorted(by_id, key=lambda item: -counts.get(item, 0))}
    if ratings is None:
        return popular, (_NO_RATINGS,)
    strangers = len(counts.keys() - popular.keys())
    return popular, (f"{strangers:,} rated products are not among the items",) if strangers else ()


def _copy_towers(source: Path, staging: Path, taken: set[str]) -> None:
    for path in sorted(path for path in taken if _tower_of(path)):
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, staging / path)


def _check_towers(staging: Path, values: dict[str, Any]) -> None:
    for tower, side in ((USER_TOWER, "user"), (ITEM_TOWER, "item")):
        if values[f"has_{side}_tower"]:
            try:
                check_tower(staging / tower, values[f"{side}_inputs"], values["dim"])
            except BadDataError as error:
                raise BadDataError(f"{error}. Give --no-towers to import the embeddings alone") from None


def _warnings(manifest: ReleaseManifest) -> Iterator[str]:
    if not manifest.users:
        yield f"there is no {USER_EMBEDDINGS}: every customer is unknown to this release"
    if not manifest.has_user_tower:
        yield f"there is no {USER_TOWER}: customers without a vector of their own get the popularity list"
