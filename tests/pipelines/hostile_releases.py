"""A small release, and what somebody may have done to it: each case breaks it in one way.

Cases that change a file write a manifest that agrees with it, unless the disagreement is the case: so it is
what the case is about that must be found, and not the checksum.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beamrec.model import release as folders
from beamrec.schemas.releases import TowerInput

DIM = 4
USER_TOWER = f"{folders.USER_TOWER}/saved_model.pb"
VOCABULARY = f"{folders.USER_TOWER}/assets/vocabulary_user_id"
PICKLE = b"\x80\x04\x95\x0d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94."
INPUTS = (TowerInput("user_id", "id", "identity"), TowerInput("user_0_age", "age", "number"))


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to break a release.

    Attributes:
      kind: class of the issue.
      name: what was done.
      change: does it to the release's folder.
      message: what the refusal says, as a regular expression.
    """

    kind: str
    name: str
    change: Callable[[Path], None]
    message: str


def make_release(root: Path) -> Path:
    """A release of three items and two customers with a user tower."""
    with folders.staged_release(root) as staging:
        vectors = np.eye(DIM, dtype=np.float32)
        folders.write_embeddings(staging / folders.ITEM_EMBEDDINGS, ["S1", "S2", "S3"], vectors[:3])
        folders.write_embeddings(staging / folders.USER_EMBEDDINGS, ["103", "112"], vectors[:2])
        folders.write_popularity(staging / folders.POPULARITY, ["S2", "S1", "S3"], [5, 3, 0])
        save_tower(staging / folders.USER_TOWER)
        values: dict[str, Any] = {
            "shop": "s", "user_key_type": "int", "item_key_type": "string", "dim": DIM, "items": 3,
            "users": 2, "has_user_tower": True, "user_inputs": INPUTS, "metrics": {"rmse": 0.5},
        }  # fmt: skip
        return folders.publish_release(staging, root, values)[1]


def save_tower(folder: Path, served: Any = None, dim: int = DIM) -> None:
    """A SavedModel with a vocabulary, a variable and a signature; `served` is called on its vectors."""
    import tensorflow as tf

    class Tower(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            vocabulary = folder.with_name("vocabulary_user_id")
            vocabulary.parent.mkdir(parents=True, exist_ok=True)
            vocabulary.write_text("103\n112\n")
            initializer = tf.lookup.TextFileInitializer(
                str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
            )  # fmt: skip
            self.table = tf.lookup.StaticHashTable(initializer, -1)
            self.weights = tf.Variable(np.eye(8, dim, dtype=np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.float32)])  # type: ignore[untyped-decorator]
        def vectors(self, user_id: Any, user_0_age: Any) -> dict[str, Any]:
            rows = tf.gather(self.weights, self.table.lookup(user_id) + 1)
            vectors = rows + 0 * tf.where(tf.math.is_nan(user_0_age), 0.0, user_0_age)[:, None]
            return {"vector": vectors if served is None else served(vectors)}

    tower = Tower()
    tf.saved_model.save(tower, str(folder), signatures={"serving_default": tower.vectors})
    folder.with_name("vocabulary_user_id").unlink()


def seal(release: Path, **changes: Any) -> None:
    """Writes a manifest that tells the truth about the files, and otherwise what it is told."""
    path = release / "manifest.json"
    values = json.loads(path.read_bytes())
    files = sorted(p for p in release.rglob("*") if p.is_file() and p != path)
    values["files"] = [
        {
            "path": p.relative_to(release).as_posix(),
            "bytes": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in files
    ]
    path.write_text(json.dumps(values | changes))


def _listed(paths: list[str]) -> list[dict[str, Any]]:
    return [{"path": path, "bytes": 1, "sha256": "0" * 64} for path in paths]


def _flipped(name: str, place: int) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        data = bytearray((release / name).read_bytes())
        data[place] ^= 1
        (release / name).write_bytes(data)

    return change


def _added(name: str, data: bytes, listed: bool = False) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(data)
        if listed:
            seal(release)

    return change


def _replaced(name: str, old: str, new: str, **manifest: Any) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        text = (release / name).read_text()
        assert old in text
        (release / name).write_text(text.replace(old, new, 1))
        seal(release, **manifest)

    return change


def _cut(name: str, to: int, listed: bool = True) -> Callable[[Path], None]:
    """Truncated; a negative number counts from the end."""

    def change(release: Path) -> None:
        (release / name).write_bytes((release / name).read_bytes()[:to])
        if listed:
            seal(release)

    return change


def _manifest(**values: Any) -> Callable[[Path], None]:
    return lambda release: seal(release, **values)


def _manifest_text(old: str, new: str) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        path = release / "manifest.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def _tower(served: Any = None, dim: int = DIM) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        import shutil

        shutil.rmtree(release / folders.USER_TOWER)
        save_tower(release / folders.USER_TOWER, served, dim)
        seal(release)

    return change


def _python(vectors: Any) -> Any:
    import tensorflow as tf

    found = tf.py_function(lambda values: values, [vectors], tf.float32)
    return tf.ensure_shape(found, [None, DIM])


def _reading(vectors: Any) -> Any:
    import tensorflow as tf

    size = tf.strings.length(tf.io.read_file("/etc/hostname"))
    return vectors + 0 * tf.cast(size, tf.float32)


def _saving(vectors: Any) -> Any:
    import tensorflow as tf

    tf.raw_ops.SaveV2(prefix="/tmp/written", tensor_names=["x"], shape_and_slices=[""], tensors=[vectors])  # noqa: S108
    return vectors


def _printing(vectors: Any) -> Any:
    import tensorflow as tf

    tf.print(vectors, output_stream="file:///tmp/written")
    return vectors


def _keras_metadata(layer: str) -> Callable[[Path], None]:
    """The metadata that Keras 2 really writes for a Lambda layer, or for a class of one's own."""

    def change(release: Path) -> None:
        import tempfile

        import tf_keras  # type: ignore[import-untyped]

        own = type("Own", (tf_keras.layers.Layer,), {"call": lambda self, values: values})
        layers = {"Lambda": lambda: tf_keras.layers.Lambda(lambda values: values), "Own": own}
        model = tf_keras.Sequential([tf_keras.Input((2,)), layers[layer]()])
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model", save_format="tf")
            data = Path(folder, "model", "keras_metadata.pb").read_bytes()
        _added(f"{folders.USER_TOWER}/keras_metadata.pb", data, listed=True)(release)

    return change


def _object_class(release: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((release / USER_TOWER).read_bytes())
    model.meta_graphs[0].object_graph_def.nodes[0].registered_name = "Package>Tower"
    (release / USER_TOWER).write_bytes(model.SerializeToString())
    seal(release)


def _asset_elsewhere(release: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((release / USER_TOWER).read_bytes())
    model.meta_graphs[0].asset_file_def[0].filename = "../../../../etc/passwd"
    (release / USER_TOWER).write_bytes(model.SerializeToString())
    seal(release)


def _linked(release: Path) -> None:
    (release / folders.POPULARITY).unlink()
    (release / folders.POPULARITY).symlink_to("/etc/passwd")


def _linked_folder(release: Path) -> None:
    (release / "scalers").symlink_to("/etc")


def _piped(release: Path) -> None:
    (release / folders.POPULARITY).unlink()
    os.mkfifo(release / folders.POPULARITY)


ITEMS, USERS, POPULAR = folders.ITEM_EMBEDDINGS, folders.USER_EMBEDDINGS, folders.POPULARITY
_CHANGED, _UNLISTED, _PICKLES = "changed bytes", "unlisted files", "pickles and .h5"
_LAYERS, _PATHS, _DIMENSIONS = "Lambda or custom layers", "path tricks", "wrong dimensions"
_NUMBERS, _TWICE, _UNKNOWN, _SHORT = "NaN and infinities", "duplicate ids", "unknown ids", "truncated files"

CASES = (
    Case(
        _CHANGED, "a number of an item", _flipped(ITEMS, -4), "item_embeddings.csv is not what the manifest"
    ),
    Case(
        _CHANGED, "a byte of the tower", _flipped(USER_TOWER, 100), "saved_model.pb is not what the manifest"
    ),
    Case(_CHANGED, "a word of the vocabulary", _flipped(VOCABULARY, 0), "vocabulary_user_id is not what"),
    Case(
        _CHANGED,
        "a weight",
        _flipped(f"{folders.USER_TOWER}/variables/variables.data-00000-of-00001", 8),
        "variables.data-00000-of-00001 is not what the manifest",
    ),
    Case(
        _CHANGED, "more rows", _added(POPULAR, b"id,ratings\nS2,5\nS1,3\nS3,0\nS4,0\n"), "expected 26 bytes"
    ),
    Case(_UNLISTED, "a text", _added("README.md", b"x"), "'README.md' is not in the manifest"),
    Case(_UNLISTED, "a hidden file", _added(".env", b"x"), "'.env' is not in the manifest"),
    Case(_UNLISTED, "an asset", _added(f"{folders.USER_TOWER}/assets/x", b"x"), "assets/x' is not in the"),
    Case(_UNLISTED, "one less", lambda r: (r / VOCABULARY).unlink(), "is in the manifest but not there"),
    Case(_PICKLES, "best_model.pth", _added("model/best_model.pth", PICKLE, True), "is a PyTorch model"),
    Case(_PICKLES, "a scaler", _added("scalers/item_ohe.pkl", PICKLE, True), "item_ohe.pkl' is a pickle"),
    Case(_PICKLES, "unlisted joblib", _added("scalers/user.joblib", PICKLE), "user.joblib' is a pickle"),
    Case(
        _PICKLES, "weights.h5", _added("model/weights.h5", b"\x89HDF", True), "weights.h5' is an HDF5 model"
    ),
    Case(
        _PICKLES, "a pickle called text", _added("scalers/notes.txt", PICKLE, True), "notes.txt is a pickle"
    ),
    Case(
        _PICKLES,
        "an HDF5 called pb",
        _added("scalers/graph.pb", b"\x89HDF\r\n\x1a\n", True),
        "graph.pb is an",
    ),
    Case(
        _PICKLES, "a zip called csv", _added("embeddings/more.csv", b"PK\x03\x04", True), "more.csv is a zip"
    ),
    Case(_LAYERS, "a Python function", _tower(_python), "saved_model.pb: function .*'EagerPyFunc'"),
    Case(_LAYERS, "a file read", _tower(_reading), "saved_model.pb: function .*'ReadFile'"),
    Case(_LAYERS, "a checkpoint written", _tower(_saving), "saved_model.pb: function .*SaveV2 while serving"),
    Case(_LAYERS, "a file printed to", _tower(_printing), "saved_model.pb: function .*'PrintV2'"),
    Case(_LAYERS, "a Lambda layer", _keras_metadata("Lambda"), "keras_metadata.pb: .*a Lambda layer"),
    Case(_LAYERS, "a layer of one's own", _keras_metadata("Own"), "keras_metadata.pb: .*a custom layer"),
    Case(_LAYERS, "a registered class", _object_class, "object 0: 'Package>Tower' is a custom class"),
    Case(
        _LAYERS,
        "a tower in text",
        _added(f"{folders.USER_TOWER}/saved_model.pbtxt", b"x", True),
        "saved_model.pbtxt' is a SavedModel in a form that is not inspected",
    ),
    Case(_LAYERS, "a Keras archive", _added("model/tower.keras", b"PK\x03\x04", True), "is a Keras archive"),
    Case(_PATHS, "upwards", _manifest(files=_listed(["../../../etc/passwd"])), "expected a relative path"),
    Case(_PATHS, "absolute", _manifest(files=_listed(["/etc/passwd"])), "expected a relative path"),
    Case(_PATHS, "backslashes", _manifest(files=_listed(["model\\..\\x"])), "expected a relative path"),
    Case(_PATHS, "a drive", _manifest(files=_listed(["C:/x"])), "expected a relative path"),
    Case(_PATHS, "NUL", _manifest(files=_listed(["popularity.csv\0.txt"])), r"relative path.*\\x00"),
    Case(_PATHS, "look-alike", _manifest(files=_listed(["p\u043epularity.csv"])), r"relative path.*\\u043e"),
    Case(
        _PATHS, "case clash", _manifest(files=_listed(["Popularity.csv", "popularity.csv"])), "listed twice"
    ),
    Case(_PATHS, "a link", _linked, "popularity.csv is neither file nor folder"),
    Case(_PATHS, "a linked folder", _linked_folder, "scalers is neither file nor folder"),
    Case(_PATHS, "a pipe", _piped, "popularity.csv is neither file nor folder"),
    Case(_PATHS, "an asset elsewhere", _asset_elsewhere, "expected a plain name of an asset, got '../../"),
    Case(
        _PATHS,
        "two lists of files",
        _manifest_text('"files":', '"files": [], "files":'),
        "'files' stands there",
    ),
    Case(_PATHS, "another id", _manifest(id="../x"), "release id: expected"),
    Case(
        _DIMENSIONS,
        "of all",
        _manifest(dim=8),
        "saved_model.pb: outputs: expected vector: float32\\[-1, 8\\]",
    ),
    Case(
        _DIMENSIONS, "of one item", _replaced(ITEMS, "[1.0,0.0,", "[1.0,"), "csv:2: expected 4 numbers, got 3"
    ),
    Case(
        _DIMENSIONS,
        "of one customer",
        _replaced(USERS, "[0.0,1.0,", "[0.0,0.0,1.0,"),
        "user_embeddings.csv:3: expected 4 numbers, got 5",
    ),
    Case(_DIMENSIONS, "of the tower", _tower(dim=3), "outputs: expected .*-1, 4.*; got vector: float32"),
    Case(_DIMENSIONS, "too many", _manifest(dim=100_000), "dim: at most 2000"),
    Case(
        _DIMENSIONS,
        "no vector",
        _replaced(ITEMS, "[1.0,0.0,0.0,0.0]", "[]"),
        "csv:2: expected 4 numbers, got 0",
    ),
    Case(
        _NUMBERS, "NaN", _replaced(ITEMS, "[1.0,", "[NaN,"), "item_embeddings.csv:2: expected finite numbers"
    ),
    Case(
        _NUMBERS,
        "Infinity",
        _replaced(USERS, "[0.0,1.0", "[0.0,Infinity"),
        "user_embeddings.csv:3: expected fin",
    ),
    Case(
        _NUMBERS,
        "beyond float32",
        _replaced(ITEMS, "1.0,0.0]", "1e39,0.0]"),
        "csv:4: expected finite numbers",
    ),
    Case(_NUMBERS, "null", _replaced(ITEMS, "[1.0,", "[null,"), "csv:2: expected finite numbers"),
    Case(_NUMBERS, "in the metrics", _manifest(metrics={"rmse": float("nan")}), "NaN is no number"),
    Case(
        _NUMBERS,
        "no length one",
        _replaced(ITEMS, "[1.0,", "[0.5,"),
        "csv:2: expected a vector of length one",
    ),
    Case(
        _TWICE,
        "items",
        _replaced(ITEMS, "S2,", "S1,"),
        "item_embeddings.csv:3: expected a new id, got 'S1' again",
    ),
    Case(_TWICE, "customers", _replaced(USERS, "112,", "103,"), "user_embeddings.csv:3: .*got '103' again"),
    Case(
        _TWICE, "in the popularity list", _replaced(POPULAR, "S3,", "S2,"), "popularity.csv:4: .*'S2' again"
    ),
    Case(
        _UNKNOWN,
        "in the popularity list",
        _replaced(POPULAR, "S1,", "S9,"),
        "popularity.csv:3: 'S9' is unknown",
    ),
    Case(
        _UNKNOWN,
        "no integer",
        _replaced(USERS, "112,", "S112,"),
        "user_embeddings.csv:3: expected an integer id",
    ),
    Case(_UNKNOWN, "another spelling", _replaced(USERS, "112,", "0112,"), "csv:3: expected an integer id"),
    Case(_UNKNOWN, "none", _replaced(ITEMS, "S2,", ","), "item_embeddings.csv:3: expected a new id, got ''"),
    Case(
        _UNKNOWN,
        "NUL",
        _replaced(ITEMS, "S2,", "S2\0,"),
        "item_embeddings.csv:3: expected an id .* without NUL",
    ),
    Case(_SHORT, "inside a row", _cut(ITEMS, -12), "item_embeddings.csv:4: "),
    Case(_SHORT, "between rows", _cut(USERS, 37), "user_embeddings.csv:3: expected 2 rows, .* got 1"),
    Case(_SHORT, "and not even listed so", _cut(ITEMS, 20, listed=False), "item_embeddings.csv is not what"),
    Case(_SHORT, "the tower", _cut(USER_TOWER, 2_000), "saved_model.pb: .*damaged or cut short"),
    Case(_SHORT, "an empty tower", _cut(USER_TOWER, 0), "saved_model.pb: .*cut short"),
    Case(_SHORT, "the manifest", _cut("manifest.json", 300, listed=False), "manifest: not valid JSON"),
    Case(
        _SHORT,
        "a quote without end",
        _replaced(ITEMS, 'S3,"', 'S3,"' + " " * 200_000 + '"'),
        "item_embeddings.csv:4: ",
    ),
)
