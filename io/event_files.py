"""An unbounded source of events from a folder of JSONL files that grows.

Files are append-only and named once: the path below the folder is the source's name, byte offsets are
its positions. What has been read is sealed in the source log together with its arrival time (the
file's modification time when that part was first seen), so every replay sees the same event times.
Sub-folders are read too; names that begin with `.` or `_`, or end in `.tmp` or `.part`, are not.
"""

import dataclasses
import logging
import os
import stat
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

import beamrec.transforms.coders  # noqa: F401  (registers the batch coder)
from beamrec.io.events import SourceOptions
from beamrec.io.ledger import Progress, drain_requested
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import open_store
from beamrec.schemas.errors import UsageError
from beamrec.schemas.events import RAW_EVENTS, TIMESTAMP

__all__ = ["EventFiles", "identity", "open_sources"]

_PART_BYTES = 4 << 20
_SYSTEM = "file:"
_LIST_SECONDS = 0.1
# Two bundle times: on Flink a window that a drain closes can fire twice if the last bundle is open.
_DRAIN_HOLD_SECONDS = 0.3
_TAIL_SECONDS = 60.0
_BLANK = b" \t\r\n"
_LOGGER = logging.getLogger(__name__)


def open_sources(uri: str, options: SourceOptions) -> "list[EventFiles]":
    """One source a split; raises UsageError if the folder is not there."""
    folder = identity(uri)
    if not os.path.isdir(folder):
        raise UsageError(f"--input {uri}: no such folder; events are read from the JSONL files inside it")
    return [EventFiles(folder, options, index) for index in range(options.splits)]


def identity(uri: str) -> str:
    """The absolute path of the folder."""
    return os.path.abspath(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri)


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

    def create_reader(self, options: Any, checkpoint_mark: "_Mark | None") -> "_Reader":
        """A reader that begins at the lowest position without a fate, whatever the runner remembers.

        The ledger is never behind a runner's checkpoint in what must not be repeated: rows that are on
        their way are read again and taken out by the sink.
        """
        return _Reader(self)

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        """Marks only tell one bundle's reader from the next."""
        return coders.PickleCoder()

    def default_output_coder(self) -> coders.Coder:
        """Arrow IPC."""
        return coders.registry.get_coder(pa.RecordBatch)

    def owns(self, name: str) -> bool:
        """Whether this split reads the file."""
        return zlib.crc32(name.encode()) % self.options.splits == self.split_index


@dataclasses.dataclass(frozen=True)
class _Mark(CheckpointMark):  # type: ignore[misc]
    sequence: int


@dataclasses.dataclass
class _File:
    """Reading state of one file: sealed parts still to be replayed, and where new ones begin."""

    name: str
    end: int
    sealed: list[Part]
    progress: Progress
    complained: bool = False

    def complain(self, message: str, *values: object) -> None:
        """Logs what is wrong with the file, once: it is looked at ten times a second."""
        if not self.complained:
            self.complained = True
            _LOGGER.error(message, *values)


class _Reader(UnboundedReader):  # type: ignore[misc]
    def __init__(self, source: EventFiles) -> None:
        self._source = source
        self._options = source.options
        self._store = open_store(source.options.output)
        self._log = SourceLog(self._store)
        self._progress = Progress.load(self._store)
        self._files: dict[str, _File] = {}
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._current: pa.RecordBatch | None = None
        self._pending: list[tuple[float, str]] = []
        self._listed = 0.0
        self._idle_since = time.monotonic()
        self._ended_at: float | None = None
        self._watermark_us: int | None = None
        self._marks = 0

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        if self._ended_at is not None:
            return False
        draining = drain_requested(self._store, self._options.run)
        batch = next(self._batches, None)
        while batch is None and self._next_part(seal_new=not draining):
            batch = next(self._batches, None)
        if batch is not None:
            self._current = batch
            self._idle_since = time.monotonic()
            return True
        limit = self._options.stop_when_idle_seconds
        if draining or (limit is not None and time.monotonic() - self._idle_since >= limit):
            self._ended_at = time.monotonic()
        return False

    def get_current(self) -> pa.RecordBatch:
        return self._current

    def get_current_timestamp(self) -> Timestamp:
        # Never before the watermark: an element behind it would be late by itself.
        return self._watermark()

    def get_watermark(self) -> Timestamp:
        if self._ended_at is not None:
            held = time.monotonic() - self._ended_at < _DRAIN_HOLD_SECONDS
            return self._watermark() if held else MAX_TIMESTAMP
        return self._watermark()

    def get_checkpoint_mark(self) -> _Mark:
        self._marks += 1
        return _Mark(self._marks)

    def _watermark(self) -> Timestamp:
        return MIN_TIMESTAMP if self._watermark_us is None else Timestamp(micros=self._watermark_us)

    def _advance_watermark(self, arrival_seconds: float) -> None:
        micros = int((arrival_seconds - self._options.max_delay_seconds) * 1e6)
        self._watermark_us = max(micros, self._watermark_us or 0)

    def _next_part(self, seal_new: bool) -> bool:
        """Opens the next part in order of arrival; False if there is nothing new.

        A drain opens nothing new but ends what is sealed, for that already counts as *in*.
        """
        if not self._pending:
            self._list()
        while self._pending:
            arrival, name = self._pending.pop(0)
            file = self._files[name]
            if not file.sealed and not seal_new:
                continue
            part, data = self._replay(file) if file.sealed else self._seal(file)
            if part is None:
                continue
            if file.sealed or part.position - part.after >= _PART_BYTES // 2:
                self._pending.insert(0, (arrival, name))
            self._advance_watermark(min(arrival, part.arrival_us / 1e6))
            self._batches = _batches(part, data, file.progress, self._options.batch_rows)
            return True
        return False

    def _list(self) -> None:
        now = time.time()
        if now - self._listed < _LIST_SECONDS:
            return
        self._listed = now
        for path, status in _scan(Path(self._source.folder)):
            name = path.relative_to(self._source.folder).as_posix()
            if not self._source.owns(name):
                continue
            file = self._files.get(name) or self._open(name)
            if file.sealed:
                self._pending.append((file.sealed[0].arrival_us / 1e6, name))
            elif status.st_size > file.end:
                self._pending.append((min(status.st_mtime, now), name))
            elif status.st_size < file.end:
                file.complain("%s shrank to %d bytes after %d were read", path, status.st_size, file.end)
        self._pending.sort()
        # With nothing pending, whatever comes next was modified after this listing began.
        self._advance_watermark(self._pending[0][0] if self._pending else now)

    def _open(self, name: str) -> _File:
        progress = self._progress.get(_SYSTEM + name, Progress(0, frozenset()))
        parts = self._log.parts(_SYSTEM + name)
        end = parts[-1].position if parts else 0
        sealed = [part for part in parts if part.position > progress.resume]
        file = self._files[name] = _File(name, end, sealed, progress)
        return file

    def _replay(self, file: _File) -> tuple[Part | None, bytes]:
        part = file.sealed.pop(0)
        return part, self._bytes(part)

    def _seal(self, file: _File) -> tuple[Part | None, bytes]:
        try:
            with open(Path(self._source.folder) / file.name, "rb") as stream:
                status = os.fstat(stream.fileno())
                data = _whole_lines(stream, file.end, status, self._options.stop_when_idle_seconds)
        except OSError as error:
            file.complain("%s cannot be read: %s", file.name, error)
            return None, b""
        records = sum(1 for _ in _records(data))
        if not records:
            return None, b""
        arrival_us = min(status.st_mtime_ns, time.time_ns()) // 1000
        part = self._log.seal(Part(_SYSTEM + file.name, file.end, file.end + len(data), records, arrival_us))
        file.end = part.position
        # Another reader may have been here first and seen less or more of the file.
        return part, data if part.position - part.after == len(data) else self._bytes(part)

    def _bytes(self, part: Part) -> bytes:
        with open(Path(self._source.folder) / part.source.removeprefix(_SYSTEM), "rb") as stream:
            stream.seek(part.after)
            data = stream.read(part.position - part.after)
        if len(data) < part.position - part.after:
            raise ValueError(
                f"{part.source} ends at byte {part.after + len(data)} but was read up to {part.position} "
                "before; event files are append-only: restore it"
            )
        return data


def _scan(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files below a folder; a pipe would block the reader, a linked folder may lead in a circle."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith((".", "_")) or entry.name.endswith((".tmp", ".part")):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _scan(Path(entry.path))
            continue
        try:
            status = entry.stat()
        except OSError:
            # Gone since it was listed, or a link to nothing.
            continue
        if stat.S_ISREG(status.st_mode):
            yield Path(entry.path), status


def _whole_lines(stream: Any, after: int, status: os.stat_result, idle: float | None) -> bytes:
    """Bytes from `after` up to the last line end within one part's size, without trailing blank lines.

    A last line without its end counts once the file has been left alone for a while: for a minute, or
    for as long as the run waits before it calls its input idle.
    """
    stream.seek(after)
    size, data, end = _PART_BYTES, b"", 0
    while not data[:end].strip() and after + len(data) < status.st_size:
        data += stream.read(min(size, status.st_size - after - len(data)))
        end = data.rfind(b"\n") + 1
        size *= 2
    quiet = time.time() - status.st_mtime > (_TAIL_SECONDS if idle is None else min(idle / 2, _TAIL_SECONDS))
    if quiet and after + len(data) == status.st_size:
        end = len(data)
    text = len(data[:end].rstrip(_BLANK))
    return data[: data.find(b"\n", text, end) + 1 or end] if text else b""


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """End offset and payload of each line that is not blank."""
    offset = 0
    for line in data.split(b"\n"):
        offset = min(offset + len(line) + 1, len(data))
        payload = line.strip(_BLANK)
        if payload:
            yield offset, payload


def _batches(part: Part, data: bytes, progress: Progress, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Splits a part into batches of RAW_EVENTS, without the records that already have a fate."""
    after = part.after
    rows: list[tuple[int, int, bytes]] = []
    for offset, payload in _records(data):
        position = part.after + offset
        if position > progress.resume and position not in progress.done:
            rows.append((after, position, payload))
        after = position
        if len(rows) == batch_rows:
            yield _batch(part, rows)
            rows = []
    if rows:
        yield _batch(part, rows)


def _batch(part: Part, rows: list[tuple[int, int, bytes]]) -> pa.RecordBatch:
    afters, positions, payloads = zip(*rows, strict=True)
    return pa.record_batch(
        [
            pa.array([part.source] * len(rows), pa.string()),
            pa.array(afters, pa.int64()),
            pa.array(positions, pa.int64()),
            pa.array([part.arrival_us] * len(rows), pa.int64()).cast(TIMESTAMP),
            pa.array(payloads, pa.binary()),
        ],
        schema=RAW_EVENTS,
    )
