"""An unbounded source of events from the objects below `s3://bucket/prefix` or `gs://bucket/prefix`.

Objects are whole when they are there, and named once; they may be compressed with gzip. Names arrive in any
order, so each look lists the whole prefix, at most once a second and for at most a fifth of the time: what is
read and not needed any more should be moved away or expire. Arrival is when the store last wrote the object.
An outage of the store is waited out.
"""

import dataclasses
import io
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO, cast

from beamrec.io.event_folder import FolderReader, FolderSource
from beamrec.io.event_interval import written_between
from beamrec.io.event_text import (
    DAMAGED_BYTES,
    GROUP_BYTES,
    Record,
    Text,
    is_event_name,
    is_gzip,
    records,
    unpack,
    whole_lines,
)
from beamrec.io.events import SourceOptions
from beamrec.io.objects import Address, Listed, ObjectStore
from beamrec.io.registry import backend
from beamrec.io.source_log import Part
from beamrec.schemas.errors import BeamrecError, UnavailableError

__all__ = ["EventObjects", "identity", "open_interval", "open_sources"]

_OPTION = "--input"
_LIST_SECONDS = 1.0
_YOUNG_SECONDS = 60.0
_PATIENCE_SECONDS = 900.0
_END, _DAMAGED = "end", "damaged"


def open_sources(uri: str, options: SourceOptions) -> "list[EventObjects]":
    """One source a split; raises UsageError if there is no such bucket, UnavailableError if it is away."""
    _open(uri).try_access()
    return [EventObjects(uri, options, index) for index in range(options.splits)]


def open_interval(uri: str, options: SourceOptions, begin: datetime, end: datetime) -> "list[EventObjects]":
    """See io.event_interval."""
    return open_sources(uri, written_between(options, begin, end))


def identity(uri: str) -> str:
    """Bucket and prefix; the endpoint is only the way there."""
    return Address.parse(uri, _OPTION).uri


def _open(uri: str) -> ObjectStore:
    store: ObjectStore = backend("files", uri, _OPTION).open_store(uri, _OPTION)
    return store


@dataclasses.dataclass(frozen=True)
class EventObjects(FolderSource):
    """The objects below a prefix, by its URI, read from where the ledger says that it stands."""

    def make_reader(self) -> "_Reader":
        """A reader that resumes from the ledger."""
        return _Reader(self)


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is sealed of an object.

    Attributes:
      end: up to where its text is.
      tag: of its content.
      done: whether nothing is left of it.
    """

    end: int = 0
    tag: str = ""
    done: bool = False

    @classmethod
    def of(cls, part: Part) -> "_Known":
        """As its last part says: `tag`, `tag:end` or `tag:damaged` is the part's `tail`."""
        tag, _, state = part.tail.partition(":")
        return cls(part.position, tag, bool(state))


class _Reader(FolderReader):
    def __init__(self, source: EventObjects) -> None:
        self._objects = _open(source.folder)
        self._known: dict[str, _Known] = {}
        self._listed: dict[str, Listed] = {}
        self._faulty: dict[str, str] = {}
        self._opened: tuple[Listed, Text] | None = None
        self._away = False
        super().__init__(source, f"{self._objects.address.scheme}:", _LIST_SECONDS)

    def know(self, name: str, part: Part) -> None:
        """See FolderReader."""
        self._known[name] = _Known.of(part)

    def busy(self, seal_new: bool) -> bool:
        """See LedgerReader: a store that is away is not quiet."""
        return seal_new and self._away

    def scan(self) -> list[tuple[float, str]] | None:
        """See FolderReader."""
        try:
            # Of what is done nothing needs to be remembered: there may be millions of it.
            self._listed = {
                name: listed
                for name, listed in self._objects_of_split()
                if not self._check(name, listed).done
            }
        except UnavailableError as error:
            self._be_away(error)
            return None
        self._away = False
        for name in (name for name, known in self._known.items() if not known.done):
            if name not in self._listed:
                self.complain(name, "is gone, and was not read to its end: put it back")
        now, found = time.time(), []
        for name, listed in self._listed.items():
            modified = listed.modified_us / 1e6
            waits = self._faulty.get(name) == listed.tag and now - modified < self._young_seconds
            if listed.size and not waits:
                found.append((min(modified, now), name))
        return found

    @property
    def _young_seconds(self) -> float:
        """How long a damaged object may still be replaced by a whole one."""
        idle = self.options.stop_when_idle_seconds
        return _YOUNG_SECONDS if idle is None else min(idle / 2, _YOUNG_SECONDS)

    def _objects_of_split(self) -> Iterator[tuple[str, Listed]]:
        for listed in self._objects.listed(""):
            if all(map(is_event_name, listed.path.split("/"))) and self.source.owns(listed.path):
                yield listed.path, listed

    def _check(self, name: str, listed: Listed) -> _Known:
        """What is known of an object, whose content must be the one that was read."""
        known = self._known.get(name, _Known())
        if known.tag and known.tag != listed.tag:
            raise _replaced(name)
        return known

    def _be_away(self, error: Exception) -> None:
        self._away = True
        self.complain(self.source.folder, "is away, and waited for: %s", error)

    def look(self, name: str) -> tuple[Part, list[Record]] | None:
        """See FolderReader: the next lines of an object."""
        known, listed = self._known.get(name, _Known()), self._listed[name]
        if known.done:
            return None
        try:
            text = self._text(listed)
            data = whole_lines(text.stream, known.end, text.size, True)
            if not data and text.fault:
                return self._give_up(name, text)
        except UnavailableError as error:
            self._be_away(error)
            return None
        except FileNotFoundError:
            # Gone or replaced since it was listed: the next listing tells.
            return None
        end = known.end + len(data)
        done = (end == text.size or not data) and not text.fault
        return self._part(name, end, records(data), f":{_END}" if done else "")

    def _part(self, name: str, end: int, found: list[Record], state: str) -> tuple[Part, list[Record]]:
        listed, begin = self._listed[name], self._known.get(name, _Known()).end
        arrival_us = min(listed.modified_us, time.time_ns() // 1000)
        part = Part(self.source_name(name), begin, end, len(found), arrival_us, listed.tag + state)
        return part, found

    def _give_up(self, name: str, text: Text) -> tuple[Part, list[Record]] | None:
        """What follows the last whole gzip member as one record, which is no event, if it stays so."""
        listed, begin = self._listed[name], text.packed or 0
        if time.time() - listed.modified_us / 1e6 < self._young_seconds:
            self._faulty[name] = listed.tag
            return None
        self.complain(name, "is damaged behind byte %d (%s): that is one dead letter", begin, text.fault)
        length = listed.size - begin
        end = self._known.get(name, _Known()).end + length
        return self._part(name, end, [(length, self._damaged(listed, length))], f":{_DAMAGED}")

    def _damaged(self, listed: Listed, length: int) -> bytes:
        begin = listed.size - length
        return self._objects.read_range(listed, begin, begin + min(length, DAMAGED_BYTES))

    def _text(self, listed: Listed) -> Text:
        """The text of an object; that of a compressed one is unpacked once for all of its parts."""
        if self._opened is None or self._opened[0] != listed:
            if self._opened is not None:
                self._opened[1].stream.close()
                self._opened = None
            stream = cast(BinaryIO, io.BufferedReader(_Ranges(self._objects, listed), GROUP_BYTES))
            if is_gzip(stream.read(2)):
                with stream:
                    self._opened = listed, unpack(stream)
            else:
                self._opened = listed, Text(stream, listed.size)
        return self._opened[1]

    def reread(self, name: str, part: Part) -> list[Record]:
        """See FolderReader."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._reread(name, part)
            except UnavailableError as error:
                if time.monotonic() > deadline:
                    raise
                self._be_away(error)
                time.sleep(1)
            except FileNotFoundError:
                raise BeamrecError(
                    f"{_OPTION}: {name} is gone, and {part.records} of its events have no fate yet: "
                    "put it back"
                ) from None

    def _reread(self, name: str, part: Part) -> list[Record]:
        if name not in self._listed:
            self._listed = dict(self._objects_of_split())
        listed = self._listed.get(name)
        if listed is None:
            raise FileNotFoundError(name)
        tag, _, state = part.tail.partition(":")
        if tag != listed.tag:
            raise _replaced(name)
        length = part.position - part.after
        if state == _DAMAGED:
            return [(length, self._damaged(listed, length))]
        stream = self._text(listed).stream
        stream.seek(part.after)
        return records(stream.read(length))


class _Ranges(io.RawIOBase):
    """An object as a file, of which ranges are fetched."""

    def __init__(self, objects: ObjectStore, listed: Listed) -> None:
        super().__init__()
        self._objects, self._listed, self._at = objects, listed, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next bytes come from."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._listed.size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        end = min(self._at + len(buffer), self._listed.size)
        if end <= self._at:
            return 0
        data = self._objects.read_range(self._listed, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _replaced(name: str) -> BeamrecError:
    return BeamrecError(
        f"{_OPTION}: {name} was replaced by other content: objects of events are named once. Put it back as "
        "it was, and give what is new a name of its own"
    )
