"""An unbounded source of events from a folder of JSONL files that grows.

Files are append-only and named once: the path below the folder is the source's name, byte offsets are
its positions. What has been read is sealed in the source log together with its arrival time (the
file's modification time when that part was first seen), so every replay sees the same event times.
Sub-folders are read too; names that begin with `.` or `_`, or end in `.tmp` or `.part`, are not.
"""

import collections
import dataclasses
import hashlib
import logging
import os
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import UnboundedSource

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import SourceOptions
from beamrec.io.reader import LedgerMark, LedgerReader
from beamrec.io.source_log import Part
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import RAW_EVENTS, TIMESTAMP
from beamrec.schemas.paths import local_path

__all__ = ["EventFiles", "identity", "open_sources"]

_SYSTEM = "file:"
_GROUP_BYTES = 4 << 20  # what is read and sealed at a time, of one file or of many small ones
_LIST_SECONDS = 0.1  # and never more than a fifth of the time: a large folder is listed less often
_TAIL_SECONDS = 60.0
_TAIL_BYTES = 64
_BLANK = b" \t\r\n"
_LOGGER = logging.getLogger(__name__)
_Record = tuple[int, bytes]


def open_sources(uri: str, options: SourceOptions) -> "list[EventFiles]":
    """One source a split; raises UsageError if the folder is not there."""
    folder = identity(uri)
    if os.path.isfile(folder):
        raise UsageError(f"--input {uri}: is a file; give the folder that it lies in")
    if not os.path.isdir(folder):
        raise UsageError(f"--input {uri}: no such folder; events are read from the JSONL files inside it")
    return [EventFiles(folder, options, index) for index in range(options.splits)]


def identity(uri: str) -> str:
    """The absolute path of the folder."""
    return local_path(uri, "--input")


@dataclasses.dataclass(frozen=True)
class EventFiles(UnboundedSource):  # type: ignore[misc]
    """A folder of JSONL files, read from where the ledger of the output says that it stands.

    Attributes:
      folder: absolute local path.
      options: what the source needs to know of the job.
      split_index: this is one of `options.splits` readers; files are dealt by their names.
    """

    folder: str
    options: SourceOptions
    split_index: int = 0

    def split(self, desired_num_splits: int, options: Any = None) -> list["EventFiles"]:
        """Itself: the number of splits is fixed when the graph is built, one Read for each."""
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: LedgerMark | None) -> "_Reader":
        """A reader that resumes from the ledger."""
        return _Reader(self)

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        """Of `LedgerMark`."""
        return coders.PickleCoder()

    def default_output_coder(self) -> coders.Coder:
        """Arrow IPC."""
        return coders.registry.get_coder(pa.RecordBatch)

    def owns(self, name: str) -> bool:
        """Whether this split reads the file."""
        return zlib.crc32(name.encode()) % self.options.splits == self.split_index


@dataclasses.dataclass
class _File:
    """What a reader knows of one file.

    Attributes:
      end, tail: up to where it is sealed, and the hash of the bytes before.
      barren: (size, modification time) of a look that found no whole line, and when that was.
    """

    end: int = 0
    tail: str = ""
    barren: tuple[int, int] | None = None
    barren_since: float = 0.0


class _Reader(LedgerReader):
    def __init__(self, source: EventFiles) -> None:
        super().__init__(source.options)
        self._source = source
        self._files: dict[str, _File] = collections.defaultdict(_File)
        self._pending: collections.deque[tuple[float, str]] = collections.deque()
        self._next_listing = 0.0
        self._complaints: set[str] = set()
        self._replays = collections.deque(self._sealed())

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """See LedgerReader."""
        if self._replays:
            return self._replay()
        if not seal_new:
            return None
        if not self._pending:
            self._list()
        return self._seal()

    def _sealed(self) -> list[Part]:
        """Sealed parts that have to be read again, in order of arrival."""
        again = []
        for part in self.log.read():
            name = part.source.removeprefix(_SYSTEM)
            if part.source.startswith(_SYSTEM) and self._source.owns(name):
                self._files[name] = _File(part.position, part.tail)
                if self.unfinished(part):
                    again.append(part)
        return sorted(again, key=lambda part: part.arrival_us)

    def _replay(self) -> Iterator[pa.RecordBatch]:
        group, size = [], 0
        while self._replays and size < _GROUP_BYTES:
            part = self._replays.popleft()
            group.append((part, self._reread(part)))
            size += part.position - part.after
        self.advance_watermark(group[0][0].arrival_us / 1e6)
        return self._to_batches(group)

    def _list(self) -> None:
        if time.monotonic() < self._next_listing:
            return
        began, now = time.monotonic(), time.time()
        found = []
        for name, status in _scan(self._source.folder, ""):
            if not self._readable_name(name) or not self._source.owns(name):
                continue
            file = self._files.get(name, _File())
            if status.st_size < file.end:
                raise _replaced(name, f"it has {status.st_size} bytes and {file.end} were read")
            if status.st_size > file.end and self._promising(file, status):
                found.append((min(status.st_mtime, now), name))
        self._pending.extend(sorted(found))
        # With nothing pending, whatever comes next was modified after this listing began. A line whose
        # end is still missing holds nothing back (it arrives when its end is written), nor does a file
        # that cannot be read.
        self.advance_watermark(min((a for a, name in found if name not in self._complaints), default=now))
        self._next_listing = began + max(_LIST_SECONDS, 5 * (time.monotonic() - began))

    def _promising(self, file: _File, status: os.stat_result) -> bool:
        """Whether a look may find more than the last one, which found no whole line."""
        return file.barren != _look_of(status) or self._left_alone(file, status)

    def _left_alone(self, file: _File, status: os.stat_result) -> bool:
        """Whether nothing has changed for a while since a look found no whole line."""
        same = file.barren == _look_of(status)
        return same and time.monotonic() - file.barren_since > self._tail_seconds

    @property
    def _tail_seconds(self) -> float:
        """How long a file is left alone until its last line counts without its end."""
        idle = self.options.stop_when_idle_seconds
        return _TAIL_SECONDS if idle is None else min(idle / 2, _TAIL_SECONDS)

    def _seal(self) -> Iterator[pa.RecordBatch] | None:
        """Reads and seals pending files up to the size of a group."""
        found: list[tuple[Part, list[_Record]]] = []
        size = 0
        while self._pending and size < _GROUP_BYTES:
            arrival, name = self._pending.popleft()
            read = self._look(name)
            if read:
                found.append(read)
                length = read[0].position - read[0].after
                size += length
                if length >= _GROUP_BYTES // 2:
                    # A long file: the rest of it follows at once, and keeps its place in line.
                    self._pending.appendleft((arrival, name))
                    break
        if not found:
            return None
        held = self.log.seal([part for part, _ in found])
        group = []
        for (part, records), sealed in zip(found, held, strict=True):
            # Another reader may have been here first and seen less or more of the file.
            group.append((sealed, records if sealed.position == part.position else self._reread(sealed)))
            name = sealed.source.removeprefix(_SYSTEM)
            self._files[name] = _File(sealed.position, sealed.tail)
        self.advance_watermark(min(part.arrival_us for part, _ in group) / 1e6)
        return self._to_batches(group)

    def _look(self, name: str) -> tuple[Part, list[_Record]] | None:
        """The whole lines that a file has gained, as a part that is not sealed yet."""
        file = self._files[name]
        try:
            with open(os.path.join(self._source.folder, name), "rb") as stream:
                status = os.fstat(stream.fileno())
                _check_tail(stream, name, file)
                data = _whole_lines(stream, file.end, status.st_size, self._quiet(file, status))
        except OSError as error:
            self._complain(name, "cannot be read: %s", error)
            return None
        records = _records(data)
        if not records:
            if file.barren != _look_of(status) or self._quiet(file, status):
                file.barren, file.barren_since = _look_of(status), time.monotonic()
            return None
        arrival_us = min(status.st_mtime_ns, time.time_ns()) // 1000
        end = file.end + len(data)
        return Part(_SYSTEM + name, file.end, end, len(records), arrival_us, _hash_tail(data)), records

    def _quiet(self, file: _File, status: os.stat_result) -> bool:
        old = time.time() - status.st_mtime > self._tail_seconds
        return old or self._left_alone(file, status)

    def _reread(self, part: Part) -> list[_Record]:
        name = part.source.removeprefix(_SYSTEM)
        try:
            with open(os.path.join(self._source.folder, name), "rb") as stream:
                stream.seek(part.after)
                data = stream.read(part.position - part.after)
        except FileNotFoundError:
            raise BeamrecError(
                f"--input: {name} is gone, and {part.records} of its events have no fate yet: put it back"
            ) from None
        if len(data) < part.position - part.after or (part.tail and _hash_tail(data) != part.tail):
            raise _replaced(name, f"bytes {part.after} to {part.position} are not those that were read")
        return _records(data)

    def _readable_name(self, name: str) -> bool:
        try:
            name.encode()
        except UnicodeEncodeError:
            self._complain(
                os.fsencode(name).decode(errors="backslashreplace"), "has a name that is not UTF-8"
            )
            return False
        return True

    def _complain(self, name: str, message: str, *values: object) -> None:
        """Logs what is wrong with a file, once: it is looked at ten times a second."""
        if name not in self._complaints:
            self._complaints.add(name)
            _LOGGER.error("%s " + message, name, *values)

    def _to_batches(self, group: Sequence[tuple[Part, list[_Record]]]) -> Iterator[pa.RecordBatch]:
        """Batches of RAW_EVENTS over several parts, without the events that already have a fate."""
        rows: list[tuple[str, int, int, int, bytes]] = []
        for part, records in group:
            after = part.after
            for offset, payload in records:
                position = part.after + offset
                if not self.fated(part.source, position):
                    rows.append((part.source, after, position, part.arrival_us, payload))
                after = position
                if len(rows) == self.options.batch_rows:
                    yield _batch(rows)
                    rows = []
        if rows:
            yield _batch(rows)


def _look_of(status: os.stat_result) -> tuple[int, int]:
    """What changes when a file gains anything."""
    return status.st_size, status.st_mtime_ns


def _scan(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below a folder; a pipe would block the reader, a linked folder may lead in a circle."""
    try:
        entries = list(os.scandir(os.path.join(folder, prefix)))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith((".", "_")) or entry.name.endswith((".tmp", ".part")):
            continue
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _scan(folder, name)
            continue
        try:
            status = entry.stat()
        except OSError:
            # Gone since it was listed, or a link to nothing.
            continue
        if stat.S_ISREG(status.st_mode):
            yield name, status


def _replaced(name: str, why: str) -> BeamrecError:
    return BeamrecError(
        f"--input: {name} was replaced or shortened ({why}): event files are append-only. Put it back as "
        "it was, or move what is new there to a name of its own"
    )


def _hash_tail(data: bytes) -> str:
    """Of the last bytes of a part, with their number."""
    tail = data[-_TAIL_BYTES:]
    return f"{len(tail)}:{hashlib.blake2b(tail, digest_size=8).hexdigest()}"


def _check_tail(stream: BinaryIO, name: str, file: _File) -> None:
    """What was read last must still stand before what comes next."""
    if not file.tail:
        return
    size = int(file.tail.partition(":")[0])
    stream.seek(file.end - size)
    if _hash_tail(stream.read(size)) != file.tail:
        raise _replaced(name, f"the bytes before {file.end} are not those that were read")


def _whole_lines(stream: BinaryIO, after: int, end: int, quiet: bool) -> bytes:
    """Bytes from `after` up to the last line end within one group's size, without trailing blank lines.

    A last line without its end counts if the file is `quiet`.
    """
    stream.seek(after)
    size, data, lines = _GROUP_BYTES, b"", 0
    while not data[:lines].strip() and after + len(data) < end:
        more = stream.read(min(size, end - after - len(data)))
        if not more:
            break
        data += more
        lines = data.rfind(b"\n") + 1
        size *= 2
    if quiet and after + len(data) == end:
        lines = len(data)
    text = len(data[:lines].rstrip(_BLANK))
    return data[: data.find(b"\n", text, lines) + 1 or lines] if text else b""


def _records(data: bytes) -> list[_Record]:
    """End offset and payload of each line that is not blank."""
    offset, records = 0, []
    for line in data.split(b"\n"):
        offset = min(offset + len(line) + 1, len(data))
        payload = line.strip(_BLANK)
        if payload:
            records.append((offset, payload))
    return records


def _batch(rows: list[tuple[str, int, int, int, bytes]]) -> pa.RecordBatch:
    sources, afters, positions, arrivals, payloads = zip(*rows, strict=True)
    return pa.record_batch(
        [
            pa.array(sources, pa.string()),
            pa.array(afters, pa.int64()),
            pa.array(positions, pa.int64()),
            pa.array(arrivals, pa.int64()).cast(TIMESTAMP),
            pa.array(payloads, pa.binary()),
        ],
        schema=RAW_EVENTS,
    )
