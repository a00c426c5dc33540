"""An unbounded source of events from a folder of JSONL files that grows.

Files are append-only and named once. What has been read is sealed in the source log together with its
arrival time (the file's modification time when that part was first seen), so every replay sees the same
event times. A file may be compressed with gzip, which its first bytes say: a member of it is whole, or it is
not there yet. What is no whole member when the file was left alone for a minute is one dead letter.
"""

import collections
import dataclasses
import os
import stat
import time
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

from beamrec.io.event_folder import FolderReader, FolderSource
from beamrec.io.event_interval import written_between
from beamrec.io.event_text import (
    DAMAGED_BYTES,
    Record,
    Text,
    hash_tail,
    is_event_name,
    is_gzip,
    records,
    unpack,
    whole_lines,
)
from beamrec.io.events import SourceOptions
from beamrec.io.source_log import Part
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.paths import local_path

__all__ = ["EventFiles", "identity", "open_interval", "open_sources"]

_SYSTEM = "file:"
_LIST_SECONDS = 0.1
_TAIL_SECONDS = 60.0


def open_sources(uri: str, options: SourceOptions) -> "list[EventFiles]":
    """One source a split; raises UsageError if the folder is not there."""
    folder = identity(uri)
    if os.path.isfile(folder):
        raise UsageError(f"--input {uri}: is a file; give the folder that it lies in")
    if not os.path.isdir(folder):
        raise UsageError(f"--input {uri}: no such folder; events are read from the JSONL files inside it")
    return [EventFiles(folder, options, index) for index in range(options.splits)]


def open_interval(uri: str, options: SourceOptions, begin: datetime, end: datetime) -> "list[EventFiles]":
    """See io.event_interval."""
    return open_sources(uri, written_between(options, begin, end))


def identity(uri: str) -> str:
    """The absolute path of the folder."""
    return local_path(uri, "--input")


@dataclasses.dataclass(frozen=True)
class EventFiles(FolderSource):
    """A folder of JSONL files, by its absolute path, read from where the ledger says that it stands."""

    def make_reader(self) -> "_Reader":
        """A reader that resumes from the ledger."""
        return _Reader(self)


@dataclasses.dataclass
class _File:
    """What a reader knows of one file.

    Attributes:
      end, tail: up to where its text is sealed, and the hash of the bytes before.
      packed: size of a compressed file when its text was read to the end, 0 before; None of a plain one.
      given_up: whether what follows is no gzip member, and has become a dead letter.
      barren: (size, modification time) of a look that found no whole line, and when that was.
    """

    end: int = 0
    tail: str = ""
    packed: int | None = None
    given_up: bool = False
    barren: tuple[int, int] | None = None
    barren_since: float = 0.0

    @classmethod
    def of(cls, part: Part) -> "_File":
        """As the last sealed part says; see `_mark`."""
        mark, _, tail = part.tail.rpartition("@")
        kind, _, packed = mark.partition("@")
        return cls(part.position, tail, int(packed) if packed else None, kind == "damaged")


def _mark(tail: str, packed: int | None, kind: str = "gzip") -> str:
    """What `tail` of a part holds: the hash of its last bytes, before it the state of a compressed file."""
    return tail if packed is None else f"{kind}@{packed}@{tail}"


class _Reader(FolderReader):
    def __init__(self, source: EventFiles) -> None:
        self._files: dict[str, _File] = collections.defaultdict(_File)
        self._unpacked: tuple[tuple[str, int, int], Text] | None = None
        super().__init__(source, _SYSTEM, _LIST_SECONDS)

    def know(self, name: str, part: Part) -> None:
        """See FolderReader."""
        self._files[name] = _File.of(part)

    def scan(self) -> list[tuple[float, str]]:
        """See FolderReader."""
        now, found = time.time(), []
        for name, status in _scan(self.source.folder, ""):
            if not self._readable_name(name) or not self.source.owns(name):
                continue
            file = self._files.get(name, _File())
            read = file.end if file.packed is None else file.packed
            if status.st_size < read:
                raise _replaced(name, f"it has {status.st_size} bytes and {read} were read")
            if status.st_size > read and file.given_up:
                self.complain(name, "has changed since it was given up as damaged: give it another name")
            elif status.st_size > read and self._promising(file, status):
                found.append((min(status.st_mtime, now), name))
        return found

    def look(self, name: str) -> tuple[Part, list[Record]] | None:
        """See FolderReader: the whole lines that a file has gained."""
        file = self._files[name]
        try:
            with open(os.path.join(self.source.folder, name), "rb") as stream:
                status = os.fstat(stream.fileno())
                text = self._text(name, stream, status)
                _check_tail(text.stream, name, file)
                quiet = self._quiet(file, status)
                data = whole_lines(text.stream, file.end, text.size, quiet)
                found = records(data)
                if not found and text.fault and quiet:
                    return self._give_up(name, stream, status, text)
        except OSError as error:
            self.complain(name, "cannot be read: %s", error)
            return None
        if not found:
            if file.barren != _look_of(status) or quiet:
                file.barren, file.barren_since = _look_of(status), time.monotonic()
            return None
        end = file.end + len(data)
        all_read = end == text.size and not text.fault
        packed = None if text.packed is None else status.st_size * all_read
        return self._part(name, end, len(found), status, _mark(hash_tail(data), packed)), found

    def _part(self, name: str, end: int, count: int, status: os.stat_result, tail: str) -> Part:
        arrival_us = min(status.st_mtime_ns, time.time_ns()) // 1000
        return Part(self.source_name(name), self._files[name].end, end, count, arrival_us, tail)

    def _give_up(
        self, name: str, stream: BinaryIO, status: os.stat_result, text: Text
    ) -> tuple[Part, list[Record]]:
        """What follows the last whole gzip member as one record, which is no event."""
        begin = text.packed or 0
        self.complain(name, "is damaged behind byte %d (%s): that is one dead letter", begin, text.fault)
        stream.seek(begin)
        length = status.st_size - begin
        payload = stream.read(min(length, DAMAGED_BYTES))
        tail = _mark("", status.st_size, "damaged")
        return self._part(name, self._files[name].end + length, 1, status, tail), [(length, payload)]

    def _text(self, name: str, stream: BinaryIO, status: os.stat_result) -> Text:
        """The text of a file; that of a large compressed one is unpacked once for all of its parts."""
        if not is_gzip(stream.read(2)):
            return Text(stream, status.st_size)
        key = (name, *_look_of(status))
        if self._unpacked is None or self._unpacked[0] != key:
            if self._unpacked is not None:
                self._unpacked[1].stream.close()
            self._unpacked = key, unpack(stream)
        return self._unpacked[1]

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

    def _quiet(self, file: _File, status: os.stat_result) -> bool:
        old = time.time() - status.st_mtime > self._tail_seconds
        return old or self._left_alone(file, status)

    def reread(self, name: str, part: Part) -> list[Record]:
        """See FolderReader."""
        file = _File.of(part)
        try:
            with open(os.path.join(self.source.folder, name), "rb") as stream:
                length = part.position - part.after
                if file.given_up:
                    stream.seek((file.packed or 0) - length)
                    return [(length, stream.read(min(length, DAMAGED_BYTES)))]
                text = self._text(name, stream, os.fstat(stream.fileno())).stream
                text.seek(part.after)
                data = text.read(length)
        except FileNotFoundError:
            raise BeamrecError(
                f"--input: {name} is gone, and {part.records} of its events have no fate yet: put it back"
            ) from None
        if len(data) < length or (file.tail and hash_tail(data) != file.tail):
            raise _replaced(name, f"bytes {part.after} to {part.position} are not those that were read")
        return records(data)

    def _readable_name(self, name: str) -> bool:
        try:
            name.encode()
        except UnicodeEncodeError:
            self.complain(os.fsencode(name).decode(errors="backslashreplace"), "has a name that is not UTF-8")
            return False
        return True


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
        if not is_event_name(entry.name):
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


def _check_tail(stream: BinaryIO, name: str, file: _File) -> None:
    """What was read last must still stand before what comes next."""
    if not file.tail:
        return
    size = int(file.tail.partition(":")[0])
    stream.seek(file.end - size)
    if hash_tail(stream.read(size)) != file.tail:
        raise _replaced(name, f"the bytes before {file.end} are not those that were read")
