"""A small release, and ways to break it: each function gives one that changes a release's folder.

Those that change a file write a manifest that agrees with it, unless the disagreement is the point: so that
must be found, and not a checksum that differs.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beamrec.model import release as folders
from beamrec.schemas.releases import TowerInput

DIM = 4
ITEMS, USERS, POPULAR = folders.ITEM_EMBEDDINGS, folders.USER_EMBEDDINGS, folders.POPULARITY
USER_TOWER = f"{folders.USER_TOWER}/saved_model.pb"
VOCABULARY = f"{folders.USER_TOWER}/assets/vocabulary_user_id"
PICKLE = b"\x80\x04\x95\x0d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94."
INPUTS = (TowerInput("user_id", "id", "identity"), TowerInput("user_0_age", "age", "number"))


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


def listed(paths: list[str]) -> list[dict[str, Any]]:
    return [{"path": path, "bytes": 1, "sha256": "0" * 64} for path in paths]


def flipped(name: str, place: int) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        data = bytearray((release / name).read_bytes())
        data[place] ^= 1
        (release / name).write_bytes(data)

    return change


def added(name: str, data: bytes, listed: bool = False) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(data)
        if listed:
            seal(release)

    return change


def replaced(name: str, old: str, new: str, **manifest: Any) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        text = (release / name).read_text()
        assert old in text
        (release / name).write_text(text.replace(old, new, 1))
        seal(release, **manifest)

    return change


def cut(name: str, to: int, listed: bool = True) -> Callable[[Path], None]:
    """Truncated; a negative number counts from the end."""

    def change(release: Path) -> None:
        (release / name).write_bytes((release / name).read_bytes()[:to])
        if listed:
            seal(release)

    return change


def manifest(**values: Any) -> Callable[[Path], None]:
    return lambda release: seal(release, **values)


def manifest_text(old: str, new: str) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        path = release / "manifest.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def tower(served: Any = None, dim: int = DIM) -> Callable[[Path], None]:
    def change(release: Path) -> None:
        shutil.rmtree(release / folders.USER_TOWER)
        save_tower(release / folders.USER_TOWER, served, dim)
        seal(release)

    return change


def python(vectors: Any) -> Any:
    import tensorflow as tf

    found = tf.py_function(lambda values: values, [vectors], tf.float32)
    return tf.ensure_shape(found, [None, DIM])


def reading(vectors: Any) -> Any:
    import tensorflow as tf

    size = tf.strings.length(tf.io.read_file("/etc/hostname"))
    return vectors + 0 * tf.cast(size, tf.float32)


def saving(vectors: Any) -> Any:
    import tensorflow as tf

    tf.raw_ops.SaveV2(prefix="/tmp/written", tensor_names=["x"], shape_and_slices=[""], tensors=[vectors])  # noqa: S108
    return vectors


def printing(vectors: Any) -> Any:
    import tensorflow as tf

    tf.print(vectors, output_stream="file:///tmp/written")
    return vectors


def keras_metadata(layer: str) -> Callable[[Path], None]:
    """The metadata that Keras 2 really writes for a Lambda layer, or for a class of one's own."""

    def change(release: Path) -> None:
        import tf_keras  # type: ignore[import-untyped]

        own = type("Own", (tf_keras.layers.Layer,), {"call": lambda self, values: values})
        layers = {"Lambda": lambda: tf_keras.layers.Lambda(lambda values: values), "Own": own}
        model = tf_keras.Sequential([tf_keras.Input((2,)), layers[layer]()])
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model", save_format="tf")
            data = Path(folder, "model", "keras_metadata.pb").read_bytes()
        added(f"{folders.USER_TOWER}/keras_metadata.pb", data, listed=True)(release)

    return change


def edited(edit: Callable[[Any], None]) -> Callable[[Path], None]:
    """The tower's own file, edited as a SavedModel's graph."""

    def change(release: Path) -> None:
        from tensorflow.core.protobuf import saved_model_pb2

        model = saved_model_pb2.SavedModel.FromString((release / USER_TOWER).read_bytes())
        edit(model.meta_graphs[0])
        (release / USER_TOWER).write_bytes(model.SerializeToString())
        seal(release)

    return change


def name_class(graph: Any) -> None:
    graph.object_graph_def.nodes[0].registered_name = "Package>Tower"


def move_asset(graph: Any) -> None:
    graph.asset_file_def[0].filename = "../../../../etc/passwd"


def instead(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Something else in the place of a file."""

    def change(release: Path) -> None:
        (release / name).unlink(missing_ok=True)
        make(release / name)

    return change
