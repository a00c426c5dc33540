"""SavedModels are programs: what one would run is read from its file, before TensorFlow ever sees it.

Refused are operations that are not known to only compute, Keras layers that hold code, and files that
TensorFlow would read instead of, or beside, the one that was inspected.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from beamrec.model.saved_model_ops import ALLOWED_OPS, CHECKPOINT_OPS
from beamrec.model.saved_model_proto import parse_keras_metadata, parse_saved_model
from beamrec.schemas.errors import BadDataError
from beamrec.schemas.releases import TowerInput

__all__ = ["SAVED_MODEL", "check_saved_model", "check_tower", "is_saved_model_file"]

SAVED_MODEL = "saved_model.pb"

_MAX_BYTES = 512 * 2**20
_FILES = re.compile(
    r"saved_model\.pb|fingerprint\.pb|keras_metadata\.pb"
    r"|assets/[0-9A-Za-z_](?:[0-9A-Za-z._+=-]*[0-9A-Za-z_+=-])?"
    r"|variables/variables\.(index|data-\d{5}-of-\d{5})"
)
# Classes that TensorFlow itself makes; a Keras object's own class is in keras_metadata.pb.
_OBJECTS = re.compile(
    r"|_generic_user_object|signature_map|trackable_(list|dict|tuple)_wrapper"
    r"|_tf_keras_(layer|input_layer|model|sequential|network|rnn_layer|metric)"
)
_OWN_CLASSES = re.compile(r"|tf\.[A-Za-z]+")
_KERAS = """
Activation Add Attention Average AveragePooling1D BatchNormalization Bidirectional CategoryEncoding
Concatenate Conv1D CosineSimilarity Dense DenseFeatures Discretization Dot Dropout ELU Embedding Flatten
Functional GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalMaxPooling1D
GroupNormalization HashedCrossing Hashing Input InputLayer IntegerLookup LSTM LSTMCell LayerNormalization
LeakyReLU Masking MaxPooling1D Maximum Mean MeanAbsoluteError MeanMetricWrapper MeanSquaredError Minimum
Model MultiHeadAttention Multiply Normalization PReLU Permute ReLU RepeatVector Reshape
RootMeanSquaredError Sequential Softmax SpatialDropout1D StringLookup Subtract TextVectorization
ThresholdedReLU UnitNormalization
"""
_KERAS_CLASSES = frozenset(_KERAS.split())
_DTYPES = {"float32": 1, "string": 7}


def is_saved_model_file(path: str) -> bool:
    """Whether a path inside a SavedModel's folder is of its format."""
    return _FILES.fullmatch(path) is not None


def check_saved_model(folder: Path) -> Any:
    """Refuses a SavedModel that may do more than compute.

    Args:
      folder: holds `saved_model.pb`; its files are those that the manifest lists.

    Returns:
      The parsed model.

    Raises:
      BadDataError: with the file, and the function, node or layer in it.
    """
    path = folder / SAVED_MODEL
    for file in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()):
        if not is_saved_model_file(file):
            raise BadDataError(f"{folder / file}: not a file of a SavedModel; leave it out")
    model = _parse(path, parse_saved_model)
    if not model.meta_graphs:
        raise BadDataError(f"{path}: expected a SavedModel with a graph, got none; the file is cut short")
    for graph in model.meta_graphs:
        _check_ops(graph, path)
        _check_assets(graph, folder)
        _check_objects(graph.objects, path)
    _check_keras(folder / "keras_metadata.pb")
    return model


def check_tower(folder: Path, inputs: Sequence[TowerInput], dim: int) -> None:
    """Refuses a tower that is not safe, or whose signature is not what the manifest says.

    Raises:
      BadDataError: with the file and what is wrong in it.
    """
    model, path = check_saved_model(folder), folder / SAVED_MODEL
    signatures = {s.key: s.value for graph in model.meta_graphs for s in graph.signatures}
    if len(model.meta_graphs) != 1 or "serving_default" not in signatures:
        raise BadDataError(f"{path}: expected one graph with the signature serving_default")
    signature = signatures["serving_default"]
    expected = {i.name: ("float32" if i.kind == "number" else "string", [-1]) for i in inputs}
    _check_tensors(signature.inputs, expected, f"{path}: inputs")
    _check_tensors(signature.outputs, {"vector": ("float32", [-1, dim])}, f"{path}: outputs")


def _check_tensors(tensors: Any, expected: dict[str, tuple[str, list[int]]], where: str) -> None:
    found = {t.key: (t.value.dtype, [dim.size for dim in t.value.shape.dims]) for t in tensors}
    if found != {name: (_DTYPES[dtype], shape) for name, (dtype, shape) in expected.items()}:
        names = {number: name for name, number in _DTYPES.items()}
        got = {n: (names.get(dtype, f"type {dtype}"), shape) for n, (dtype, shape) in found.items()}
        raise BadDataError(
            f"{where}: expected {_described(expected)}, as the manifest says; got {_described(got)}"
        )


def _described(tensors: dict[str, tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name}: {dtype}{shape}" for name, (dtype, shape) in sorted(tensors.items()))


def _parse(path: Path, parse: Any) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise BadDataError(f"{path}: larger than any tower ({_MAX_BYTES} bytes)")
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise BadDataError(f"{path}: {error}; the file is damaged or cut short") from None


def _check_ops(graph: Any, path: Path) -> None:
    for where, nodes, _ in _functions(graph):
        for node in nodes:
            if node.op not in ALLOWED_OPS:
                raise BadDataError(
                    f"{path}: {where}: node {node.name!a}: the operation {node.op!a} is not one of those "
                    "that only compute; export the tower without Python functions, files or custom operations"
                )
    _check_file_readers(graph, path)
    _check_served(graph, path)


def _functions(graph: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, nodes, signature) of the graph itself and of its functions."""
    yield "graph", graph.graph.nodes, None
    for function in graph.graph.library.functions:
        yield f"function {function.signature.name!a}", function.nodes, function.signature


def _check_file_readers(graph: Any, path: Path) -> None:
    """A table may be filled from an asset, which comes as an argument, and from no other file."""
    for where, nodes, signature in _functions(graph):
        arguments = {argument.name for argument in signature.inputs} if signature else set()
        for node in nodes:
            if node.op == "InitializeTableFromTextFileV2" and not arguments.issuperset(node.inputs[1:2]):
                raise BadDataError(f"{path}: {where}: node {node.name!a} reads a file that is no asset")


def _check_served(graph: Any, path: Path) -> None:
    """What the signatures and the model's functions run must not touch checkpoints."""
    functions = {f.signature.name: f.nodes for f in graph.graph.library.functions}
    nodes = {node.name: node for node in graph.graph.nodes}
    called = {pair.key for pair in graph.objects.functions}
    for node in _ancestors(nodes, (t.value.name for s in graph.signatures for t in s.value.outputs)):
        called |= _calls(node)
        _refuse_checkpoint(node, "graph", path)
    done: set[str] = set()
    while pending := called - done:
        done |= pending
        for name in pending & functions.keys():
            for node in functions[name]:
                called |= _calls(node)
                _refuse_checkpoint(node, f"function {name!a}", path)


def _refuse_checkpoint(node: Any, where: str, path: Path) -> None:
    if node.op in CHECKPOINT_OPS:
        raise BadDataError(f"{path}: {where}: node {node.name!a}: {node.op} while serving would touch files")


def _ancestors(nodes: dict[str, Any], tensors: Iterable[str]) -> Iterator[Any]:
    """The nodes that tensors are computed from, themselves included."""
    pending, done = list(tensors), set()
    while pending:
        name = pending.pop().lstrip("^").partition(":")[0]
        if name in nodes and name not in done:
            done.add(name)
            pending.extend(nodes[name].inputs)
            yield nodes[name]


def _calls(node: Any) -> set[str]:
    """Names of the functions that a node calls."""
    values = [pair.value for pair in node.attrs]
    return {v.func.name for v in values if v.func.name} | {f.name for v in values for f in v.list.func}


def _check_assets(graph: Any, folder: Path) -> None:
    for asset in graph.assets:
        name = asset.filename
        if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name):
            raise BadDataError(f"{folder / SAVED_MODEL}: expected a plain name of an asset, got {name!a}")
        if not (folder / "assets" / name).is_file():
            raise BadDataError(f"{folder / SAVED_MODEL}: the asset {name!a} is not in assets/")


def _check_objects(objects: Any, path: Path) -> None:
    for number, entry in enumerate(objects.nodes):
        found = entry.user_object.identifier, entry.registered_name, entry.registered_saver
        own = _OBJECTS.fullmatch(found[0]) and all(_OWN_CLASSES.fullmatch(name) for name in found[1:])
        if not own or entry.user_proto.type_url:
            name = next(name for name in (*found[1:], found[0], "?") if name)
            raise BadDataError(
                f"{path}: object {number}: {name!a} is a custom class; export a tower of Keras's own layers"
            )
        _check_layers(entry.user_object.metadata, f"{path}: object {number}")


def _check_keras(path: Path) -> None:
    if path.is_file():
        for entry in _parse(path, parse_keras_metadata).nodes:
            _check_layers(entry.metadata, f"{path}: {entry.path[:200]!a}")


def _check_layers(metadata: str, where: str) -> None:
    """Refuses Lambda layers, which hold code, and layers of classes that Keras does not have."""
    if not metadata:
        return
    try:
        config = json.loads(metadata)
    except (ValueError, RecursionError):
        raise BadDataError(f"{where}: expected the layer's configuration as JSON") from None
    own = config.get("class_name", "Model") if isinstance(config, dict) else None
    for name in (own, *_class_names(config)):
        # Inside a layer there are initializers, losses and more; of those only what is registered is custom.
        if name == "Lambda" or ">" in str(name) or (name is own and name not in _KERAS_CLASSES):
            kind = "a Lambda layer, which holds code" if name == "Lambda" else "a custom layer"
            raise BadDataError(f"{where}: {name!a} is {kind}; export a tower of Keras's own layers")


def _class_names(config: Any) -> Iterator[Any]:
    """Every class that a configuration names, itself included."""
    if isinstance(config, dict):
        yield from (config[key] for key in ("class_name", "registered_name") if config.get(key))
        yield from (name for value in config.values() for name in _class_names(value))
    elif isinstance(config, list):
        yield from (name for value in config for name in _class_names(value))
