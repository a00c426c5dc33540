"""Aggregates of the Kinesis Producer Library: many user records packed into one Kinesis record.

Four magic bytes, a protobuf message, its MD5. The format is published with the library (aggregation-format.md
of awslabs/amazon-kinesis-producer); what does not keep it is a record of its own that happens to begin alike.
"""

import hashlib
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

__all__ = ["unpack"]

_MAGIC = b"\xf3\x89\x9a\xc2"
_MD5_BYTES = 16
_FIELD = descriptor_pb2.FieldDescriptorProto


def _message(
    file: descriptor_pb2.FileDescriptorProto, name: str, fields: list[tuple[str, int, int, int]]
) -> None:
    message = file.message_type.add(name=name)
    for field, number, label, kind in fields:
        type_name = ".beamrec.kpl.Record" if kind == _FIELD.TYPE_MESSAGE else None
        message.field.add(name=field, number=number, label=label, type=kind, type_name=type_name)


def _aggregated_record() -> Any:
    """The class of the message; a pool of its own, for another library may have registered it too."""
    file = descriptor_pb2.FileDescriptorProto(
        name="beamrec/kpl.proto", package="beamrec.kpl", syntax="proto2"
    )
    # Keys, hash keys and tags say where a record went; they are skipped as unknown fields.
    _message(file, "Record", [("data", 3, _FIELD.LABEL_REQUIRED, _FIELD.TYPE_BYTES)])
    _message(file, "AggregatedRecord", [("records", 3, _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE)])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("beamrec.kpl.AggregatedRecord"))


_AggregatedRecord = _aggregated_record()


def unpack(data: bytes) -> list[bytes]:
    """The user records of a Kinesis record, in order: the record itself if it is no intact aggregate.

    An aggregate may hold none at all. Records are never filtered by hash key: a producer may set its own.
    """
    if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + _MD5_BYTES:
        return [data]
    message, digest = data[len(_MAGIC) : -_MD5_BYTES], data[-_MD5_BYTES:]
    if hashlib.md5(message, usedforsecurity=False).digest() != digest:
        return [data]
    aggregate = _AggregatedRecord()
    try:
        aggregate.ParseFromString(message)
    except DecodeError:
        return [data]
    if not aggregate.IsInitialized():
        return [data]
    return [record.data for record in aggregate.records]
