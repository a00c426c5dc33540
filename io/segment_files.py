"""How the rows of a segment become the bytes of a file."""

import dataclasses
import zlib
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beamrec.io.record_columns import to_columns
from beamrec.schemas.errors import UsageError
from beamrec.schemas.paths import RECOMMENDATIONS
from beamrec.schemas.records import columns_text

__all__ = ["FORMATS", "FileFormat", "SegmentFormat", "write_segment"]

FileFormat = Literal["jsonl", "jsonl.gz", "parquet"]
FORMATS: tuple[FileFormat, ...] = ("jsonl", "jsonl.gz", "parquet")

_GZIP = 31  # zlib's window bits for a gzip head
_LEVEL = 6


@dataclasses.dataclass(frozen=True)
class SegmentFormat:
    """How recommendations are written; dead letters are JSONL always, since `replay` reads exactly that.

    Attributes:
      name: fixed for an output folder.
      schema: columns of a Parquet file, `schemas.records.record_schema`.

    Raises:
      UsageError: there is no such format, or it needs a schema.
    """

    name: FileFormat = "jsonl"
    schema: pa.Schema | None = None

    def __post_init__(self) -> None:
        if self.name not in FORMATS:
            raise UsageError(f"--format: expected one of {', '.join(FORMATS)}, got {self.name!r}")
        if self.name == "parquet" and self.schema is None:
            raise UsageError("the format parquet needs a schema")

    @property
    def columns(self) -> str:
        """What all files of a folder have in common, `schemas.records.columns_text`; "" of lines."""
        return columns_text(self.schema) if self.name == "parquet" else ""


def write_segment(form: SegmentFormat, folder: str, lines: pa.Array) -> tuple[bytes, str]:
    """A file of rows.

    Args:
      folder: below the output folder; only what lies in recommendations/ is written in `form`.
      lines: binary, JSON objects without newlines.

    Returns:
      The bytes, the same for the same rows, and the suffix of the name.
    """
    if form.name == "jsonl" or folder.partition("/")[0] != RECOMMENDATIONS:
        return _join_lines(lines), ".jsonl"
    if form.name == "jsonl.gz":
        return _zip(_join_lines(lines)), ".jsonl.gz"
    sink = pa.BufferOutputStream()
    pq.write_table(to_columns(lines.to_pylist(), form.schema), sink)
    return bytes(sink.getvalue()), ".parquet"


def _join_lines(lines: pa.Array) -> bytes:
    """Each line with a newline behind it, without a loop over them."""
    ended = pc.binary_join_element_wise(lines, b"", b"\n")
    _, ends, text = ended.buffers()
    bounds = pa.Array.from_buffers(pa.int32(), len(ended) + 1, [None, ends], offset=ended.offset)
    return bytes(memoryview(text)[bounds[0].as_py() : bounds[-1].as_py()])


def _zip(data: bytes) -> bytes:
    """Unlike the gzip module, without a time in the head."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(data) + packer.flush()
