"""The part of TensorFlow's SavedModel format that is inspected, read without TensorFlow.

Field numbers are those of TensorFlow's saved_model.proto, meta_graph.proto, graph.proto, function.proto,
saved_object_graph.proto and of Keras's saved_metadata.proto; they never change. Fields that are not listed
here are kept unread.
"""

import functools
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
)

__all__ = ["parse_keras_metadata", "parse_saved_model"]

_STRING, _INT = "string", "int"
# message → field → (number, type); "*" after a type: repeated. A map is a repeated pair of key and value.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "SavedModel": {"meta_graphs": (2, "MetaGraph*")},
    "MetaGraph": {
        "graph": (2, "Graph"),
        "signatures": (5, "SignaturePair*"),
        "assets": (6, "Asset*"),
        "objects": (7, "ObjectGraph"),
    },
    "Graph": {"nodes": (1, "Node*"), "library": (2, "Library")},
    "Node": {"name": (1, _STRING), "op": (2, _STRING), "inputs": (3, "string*"), "attrs": (5, "AttrPair*")},
    "AttrPair": {"key": (1, _STRING), "value": (2, "Attr")},
    "Attr": {"list": (1, "AttrList"), "func": (10, "FunctionName")},
    "AttrList": {"func": (9, "FunctionName*")},
    "FunctionName": {"name": (1, _STRING)},
    "Library": {"functions": (1, "Function*")},
    "Function": {"signature": (1, "OpDef"), "nodes": (3, "Node*")},
    "OpDef": {"name": (1, _STRING), "inputs": (2, "Argument*")},
    "Argument": {"name": (1, _STRING)},
    "SignaturePair": {"key": (1, _STRING), "value": (2, "Signature")},
    "Signature": {"inputs": (1, "TensorPair*"), "outputs": (2, "TensorPair*")},
    "TensorPair": {"key": (1, _STRING), "value": (2, "Tensor")},
    "Tensor": {"name": (1, _STRING), "dtype": (2, _INT), "shape": (3, "Shape")},
    "Shape": {"dims": (2, "Dim*")},
    "Dim": {"size": (1, _INT)},
    "Asset": {"filename": (2, _STRING)},
    "ObjectGraph": {"nodes": (1, "Object*"), "functions": (2, "ConcretePair*")},
    "ConcretePair": {"key": (1, _STRING)},
    "Object": {
        "user_object": (4, "UserObject"),
        "registered_name": (13, _STRING),
        "user_proto": (14, "Any"),
        "registered_saver": (16, _STRING),
    },
    "UserObject": {"identifier": (1, _STRING), "metadata": (3, _STRING)},
    "Any": {"type_url": (1, _STRING)},
    "KerasMetadata": {"nodes": (1, "KerasObject*")},
    "KerasObject": {"path": (3, _STRING), "identifier": (4, _STRING), "metadata": (5, _STRING)},
}
_PACKAGE = "beamrec.saved_model"


def parse_saved_model(data: bytes) -> Any:
    """A `SavedModel`, from the bytes of `saved_model.pb`.

    Raises:
      ValueError: it is none.
    """
    return _parse("SavedModel", data)


def parse_keras_metadata(data: bytes) -> Any:
    """A `KerasMetadata`, from the bytes of `keras_metadata.pb`.

    Raises:
      ValueError: it is none.
    """
    return _parse("KerasMetadata", data)


def _parse(name: str, data: bytes) -> Any:
    try:
        return _classes()[name].FromString(data)
    except message.DecodeError as error:
        raise ValueError(f"no {name}: {error}") from None


@functools.cache
def _classes() -> dict[str, Any]:
    # A pool of its own: TensorFlow's files, once imported, are in the default one.
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(
        name="beamrec/saved_model.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(described, field, number, kind)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_field(described: Any, name: str, number: int, kind: str) -> None:
    field, base = descriptor_pb2.FieldDescriptorProto, kind.rstrip("*")
    entry = described.field.add(name=name, number=number)
    entry.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
    if base in _MESSAGES:
        entry.type, entry.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{base}"
    else:
        entry.type = field.TYPE_STRING if base == _STRING else field.TYPE_INT64
