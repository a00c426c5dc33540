"""Releases: the manifest of an immutable release folder, its contents, and the active pointer.

A release folder is described by FORMATS; `ReleaseManifest` is what its `manifest.json` holds and
`ReleaseContents` what the vector store needs of it, read and checked by `beamrec.model.release`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import numpy as np

from beamrec.schemas.embeddings import MAX_LENGTH, UNIT_TOLERANCE
from beamrec.schemas.serving import SearchSetting

__all__ = [
    "DISTANCE_OPERATORS",
    "ActiveRelease",
    "ReleaseContents",
    "ReleaseFile",
    "ReleaseManifest",
    "TowerInput",
    "check_release_id",
]

DISTANCE_OPERATORS = ("<->", "<=>", "<#>")
"""pgvector's operators for L2 distance, cosine distance and negative inner product."""

MAX_DIM = 2000  # the most dimensions that pgvector's HNSW indexes for the type `vector`

_RELEASE_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INPUT_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
# ASCII only, so that two names never look alike and no file system folds one into another; a first letter
# that hides nothing, a last one that no file system drops.
_PATH = re.compile(
    r"(?:[0-9A-Za-z_](?:[0-9A-Za-z._+=-]*[0-9A-Za-z_+=-])?/)*[0-9A-Za-z_](?:[0-9A-Za-z._+=-]*[0-9A-Za-z_+=-])?"
)
_MAX_PATH = 500


def check_release_id(release_id: str) -> str:
    """Returns `release_id` if it is safe as a folder name and inside a table name (40 characters at most).

    Raises:
      ValueError: it is not.
    """
    if not isinstance(release_id, str) or not _RELEASE_ID.fullmatch(release_id):
        raise ValueError(
            f"release id: expected 1 to 40 of A-Z a-z 0-9 . _ -, beginning with a letter or digit; "
            f"got {release_id!r}"
        )
    return release_id


def _check_count(value: Any, where: str, minimum: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"manifest: {where}: expected an integer of at least {minimum}, got {value!r}")


def _check_norms(norms: Any, where: str) -> None:
    """Least and greatest length, or None."""
    if norms is None:
        return
    if not isinstance(norms, tuple) or len(norms) != 2 or not all(type(n) in (int, float) for n in norms):
        raise ValueError(f"manifest: {where}: expected the least and the greatest length, got {norms!r}")
    least, greatest = norms
    if not 0 <= least <= greatest <= MAX_LENGTH * (1 + UNIT_TOLERANCE):
        raise ValueError(
            f"manifest: {where}: expected 0 ≤ least ≤ greatest ≤ {MAX_LENGTH:g}, got {str(norms)[:80]}"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two equal names one reader may take the first, and another the last."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    """A number of JSON; beyond float64 Python reads infinity, which it then cannot write."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too great a number")
    return value


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float is as great as
        return False


def _check_choice(value: Any, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise ValueError(f"manifest: {where}: expected one of {', '.join(choices)}; got {value!r}")


@dataclasses.dataclass(frozen=True)
class ReleaseFile:
    """One file of a release: POSIX path inside the folder, size in bytes, SHA-256 in lower-case hex."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        plain = isinstance(self.path, str) and len(self.path) <= _MAX_PATH and _PATH.fullmatch(self.path)
        if not plain or self.path.casefold() == "manifest.json":
            raise ValueError(
                "manifest: files: expected a relative path with / between plain names (letters, digits and "
                "_ . + = - of ASCII), inside the release folder and not the manifest itself; "
                f"got {str(self.path)[:_MAX_PATH]!a}"
            )
        _check_count(self.bytes, f"files: {self.path}: bytes")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"manifest: files: {self.path}: expected 64 hex digits, got {self.sha256!r}")


@dataclasses.dataclass(frozen=True)
class TowerInput:
    """One tensor that a tower's signature takes.

    Attributes:
      name: the tensor's name in the signature.
      column: the shop's column (the key column for the identity).
      kind: `identity`, `category` and `text` are string [n] with "" for missing; `number` is float32 [n]
        with NaN for missing.
    """

    name: str
    column: str
    kind: Literal["identity", "category", "text", "number"]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _INPUT_NAME.fullmatch(self.name):
            raise ValueError(f"manifest: inputs: {self.name!r} is not a lower-case identifier")
        _check_choice(self.kind, ("identity", "category", "text", "number"), f"inputs: {self.name}: kind")


@dataclasses.dataclass(frozen=True)
class ReleaseManifest:
    """What a release is: identity, checksums, shapes, metrics and where it came from.

    Attributes:
      id: name of the release and of its folder, such as `20261122T0431-1c2d3e4f`.
      created_at: RFC 3339, UTC.
      code_version: version of beamrec that wrote it.
      shop: name of the shop; user_key_type and item_key_type are the types of its keys.
      dim: length of every vector.
      distance: operator that neighbours, and the index, are ordered by.
      normalized: whether every vector has length one (then all operators rank alike).
      items, users: number of item and user embeddings.
      has_user_tower, has_item_tower: whether the release holds these SavedModels.
      user_inputs, item_inputs: the signatures of the towers.
      vocabulary_sizes: entries of each vocabulary without its out-of-vocabulary bucket.
      metrics: offline metrics by name, finite.
      data_fingerprint: SHA-256 over the training files, "" if unknown.
      training: options that the model was trained with.
      origin: `train`, or `import` for a release made of what was made elsewhere.
      skipped: what an import left out and never opened, as it was called there.
      item_norms, user_norms: least and greatest length of the vectors; None where it was not noted.
      files: every file of the folder but the manifest itself.
    """

    id: str
    created_at: str
    code_version: str
    shop: str
    user_key_type: Literal["int", "string"]
    item_key_type: Literal["int", "string"]
    dim: int
    items: int
    users: int
    files: tuple[ReleaseFile, ...]
    distance: str = "<->"
    normalized: bool = True
    has_user_tower: bool = False
    has_item_tower: bool = False
    user_inputs: tuple[TowerInput, ...] = ()
    item_inputs: tuple[TowerInput, ...] = ()
    vocabulary_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    data_fingerprint: str = ""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Literal["train", "import"] = "train"
    skipped: tuple[str, ...] = ()
    item_norms: tuple[float, float] | None = None
    user_norms: tuple[float, float] | None = None
    format_version: int = 1

    def __post_init__(self) -> None:
        if self.format_version != 1:
            raise ValueError(
                f"manifest: format_version {self.format_version!r} is not 1: this beamrec cannot read it"
            )
        check_release_id(self.id)
        _check_choice(self.user_key_type, ("int", "string"), "user_key_type")
        _check_choice(self.item_key_type, ("int", "string"), "item_key_type")
        _check_choice(self.distance, DISTANCE_OPERATORS, "distance")
        _check_choice(self.origin, ("train", "import"), "origin")
        _check_count(self.dim, "dim", minimum=1)
        if self.dim > MAX_DIM:
            raise ValueError(f"manifest: dim: at most {MAX_DIM} (pgvector's index), got {self.dim}")
        _check_count(self.items, "items", minimum=1)
        _check_count(self.users, "users")
        self._check_flags()
        self._check_figures()
        self._check_files()

    def _check_flags(self) -> None:
        for name in ("normalized", "has_user_tower", "has_item_tower"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"manifest: {name}: expected true or false, got {getattr(self, name)!r}")
        for name in ("created_at", "code_version", "shop", "data_fingerprint"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"manifest: {name}: expected a string, got {getattr(self, name)!r}")
        for side in ("user", "item"):
            if getattr(self, f"has_{side}_tower") and not getattr(self, f"{side}_inputs"):
                raise ValueError(f"manifest: {side}_inputs: a release with a {side} tower must list them")

    def _check_figures(self) -> None:
        for name, value in self.metrics.items():
            if not _is_finite_number(value):
                raise ValueError(
                    f"manifest: metrics: {name}: expected a finite number, got {str(value)[:40]}"
                )
        for name, size in self.vocabulary_sizes.items():
            _check_count(size, f"vocabulary_sizes: {name}")
        for name in ("item_norms", "user_norms"):
            _check_norms(getattr(self, name), name)

    def _check_files(self) -> None:
        if not all(isinstance(path, str) for path in self.skipped):
            raise ValueError("manifest: skipped: expected paths")
        paths = [f.path for f in self.files]
        if len({p.casefold() for p in paths}) != len(paths):
            raise ValueError("manifest: files: a path is listed twice (case does not distinguish files)")

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`: sorted keys, so that equal manifests have equal checksums."""
        text = json.dumps(
            dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8") + b"\n"

    def is_again(self, other: "ReleaseManifest") -> bool:
        """Whether another manifest is of the same release, made at another time of the same minute."""
        return dataclasses.replace(self, created_at=other.created_at).to_json() == other.to_json()

    @classmethod
    def from_json(cls, data: bytes | str) -> "ReleaseManifest":
        """Reads what `to_json` wrote.

        Raises:
          ValueError: it is not JSON, or does not describe a release.
        """
        try:
            values = json.loads(
                data, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite
            )
        except (ValueError, RecursionError) as error:
            raise ValueError(f"manifest: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"manifest: expected an object, got {type(values).__name__}")
        try:
            for name, kind in (
                ("files", ReleaseFile),
                ("user_inputs", TowerInput),
                ("item_inputs", TowerInput),
            ):
                values[name] = tuple(kind(**entry) for entry in values.get(name, ()))
            for name in ("skipped", "item_norms", "user_norms"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"manifest: {error}") from None


@dataclasses.dataclass(frozen=True)
class ReleaseContents:
    """A verified release as the vector store loads it.

    Attributes:
      uri: absolute path or URI of the release folder.
      checksum: SHA-256 of `manifest.json` in hex.
      item_ids, user_ids: canonical strings, unique.
      item_vectors: [items, dim] float32, finite.
      user_vectors: [users, dim] float32, finite.
      popular: ids of items, most popular first.
    """

    manifest: ReleaseManifest
    uri: str
    checksum: str
    item_ids: tuple[str, ...]
    item_vectors: np.ndarray
    user_ids: tuple[str, ...]
    user_vectors: np.ndarray
    popular: tuple[str, ...]

    def __post_init__(self) -> None:
        dim = self.manifest.dim
        for side, ids, vectors, expected in (
            ("item", self.item_ids, self.item_vectors, self.manifest.items),
            ("user", self.user_ids, self.user_vectors, self.manifest.users),
        ):
            if vectors.shape != (len(ids), dim) or len(ids) != expected:
                raise ValueError(
                    f"release {self.manifest.id}: {side} vectors: the manifest says [{expected}, {dim}]; "
                    f"got {len(ids)} ids and vectors of shape {list(vectors.shape)}"
                )


@dataclasses.dataclass(frozen=True)
class ActiveRelease:
    """The release that the active pointer names, as a batch is stamped with it.

    Attributes:
      uri, checksum: the release folder, and the SHA-256 of its `manifest.json`.
      items: number of items in its catalogue.
      items_version: how often items were upserted into it since it was loaded; what a worker remembers of
        the catalogue is of one version.
      search: how its items are best searched, where that was measured.
    """

    id: str
    uri: str
    checksum: str
    dim: int
    operator: str
    has_user_tower: bool
    items: int
    items_version: int = 0
    search: SearchSetting | None = None
