"""What event files are made of: lines, and gzip members that are whole or do not count yet."""

import dataclasses
import hashlib
import tempfile
import zlib
from typing import BinaryIO, cast

__all__ = [
    "DAMAGED_BYTES",
    "GROUP_BYTES",
    "Record",
    "Text",
    "hash_tail",
    "is_event_name",
    "is_gzip",
    "records",
    "unpack",
    "whole_lines",
]

GROUP_BYTES = 4 << 20
"""What is read and sealed at a time, of one file or of many small ones."""

DAMAGED_BYTES = 1 << 20
"""How much of a damaged file goes into its dead letter."""

Record = tuple[int, bytes]
"""Where a line ends, from the beginning of the data, and its payload."""

_TAIL_BYTES = 64
_BLANK = b" \t\r\n"
_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's window bits for a gzip header and trailer
_CHUNK_BYTES = 1 << 20
_IN_MEMORY_BYTES = 32 << 20


def is_event_name(name: str) -> bool:
    """Whether events are read from a name, or from anything below a folder of that name."""
    return not name.startswith((".", "_")) and not name.endswith((".tmp", ".part"))


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins so is compressed; no JSON begins so."""
    return head.startswith(_MAGIC)


def hash_tail(data: bytes) -> str:
    """Of the last bytes of a part, with their number."""
    tail = data[-_TAIL_BYTES:]
    return f"{len(tail)}:{hashlib.blake2b(tail, digest_size=8).hexdigest()}"


def whole_lines(stream: BinaryIO, after: int, end: int, last_counts: bool) -> bytes:
    """Bytes from `after` up to the last line end within one group's size, without trailing blank lines.

    Args:
      last_counts: whether a last line without its end counts.
    """
    stream.seek(after)
    size, data, lines = GROUP_BYTES, b"", 0
    while not data[:lines].strip() and after + len(data) < end:
        more = stream.read(min(size, end - after - len(data)))
        if not more:
            break
        data += more
        lines = data.rfind(b"\n") + 1
        size *= 2
    if last_counts and after + len(data) == end:
        lines = len(data)
    text = len(data[:lines].rstrip(_BLANK))
    return data[: data.find(b"\n", text, lines) + 1 or lines] if text else b""


def records(data: bytes) -> list[Record]:
    """Each line that is not blank."""
    offset, found = 0, []
    for line in data.split(b"\n"):
        offset = min(offset + len(line) + 1, len(data))
        payload = line.strip(_BLANK)
        if payload:
            found.append((offset, payload))
    return found


@dataclasses.dataclass(frozen=True)
class Text:
    """The text of a file, that of its whole members if it is compressed.

    Attributes:
      stream: where it is read.
      size: its bytes.
      packed: bytes of the whole members; None if the file is not compressed.
      fault: what is wrong with what follows them, which may be on its way still; "" if nothing follows.
    """

    stream: BinaryIO
    size: int
    packed: int | None = None
    fault: str = ""


def unpack(file: BinaryIO) -> Text:
    """Unpacks a gzip file, of one member or several; a large text into a temporary file without a name."""
    stream = cast(BinaryIO, tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES))  # noqa: SIM115  (for the caller)
    size, packed, fault = 0, 0, ""
    file.seek(0)
    member, begun = zlib.decompressobj(_GZIP), False
    try:
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                begun = True
                stream.write(member.decompress(chunk, _CHUNK_BYTES))
                chunk = member.unconsumed_tail
                if member.eof:
                    # Some writers fill up with zeros behind the last member.
                    chunk = member.unused_data.lstrip(b"\0")
                    size, packed = stream.tell(), file.tell() - len(chunk)
                    member, begun = zlib.decompressobj(_GZIP), False
    except zlib.error as error:
        fault = str(error)
    stream.truncate(size)
    return Text(stream, size, packed, fault or ("it ends inside a gzip member" if begun else ""))
