"""How the rows of a segment become the bytes of a file."""

import dataclasses
import zlib
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from beamrec.schemas.paths import RECOMMENDATIONS

__all__ = ["FileFormat", "SegmentFormat", "write_segment"]

FileFormat = Literal["jsonl", "jsonl.gz", "parquet"]


@dataclasses.dataclass(frozen=True)
class SegmentFormat:
    """How recommendations are written; dead letters are JSONL always, since `replay` reads exactly that.

    Attributes:
      name: fixed for an output folder.
    """

    name: FileFormat = "jsonl"


def write_segment(form: SegmentFormat, folder: str, lines: pa.Array) -> tuple[bytes, str]:
    """The bytes of a file of `lines` (binary, JSON without a newline) below `folder`, and its suffix."""
    data = join_lines(lines)
    if form.name == "jsonl" or folder.partition("/")[0] != RECOMMENDATIONS:
        return data, ".jsonl"
    return zip_lines(data), ".jsonl.gz"


def join_lines(lines: pa.Array) -> bytes:
    """Each line with a newline behind it, without a loop over them."""
    ended = pc.binary_join_element_wise(lines, b"", b"\n")
    offsets = pa.Array.from_buffers(
        pa.int32(), len(ended) + 1, [None, ended.buffers()[1]], offset=ended.offset
    )
    return bytes(memoryview(ended.buffers()[2])[offsets[0].as_py() : offsets[-1].as_py()])


def zip_lines(data: bytes) -> bytes:
    """gzip without a time in its head: the same rows are the same bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()
