"""One split of an event source as a runner sees it: patient, and at a place of its own on Flink.

Flink runs a Read keyed by the encoded source element. Elements that are left to chance meet on one subtask
while others idle, so each split carries a number, found by trial, that puts it where no other split is.
"""

import struct
import time
from collections.abc import Sequence
from typing import Any

from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.io.unbounded_source import CheckpointMark, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from beamrec.io.murmur import key_group

__all__ = ["KEY_GROUPS", "SplitSource", "SplitSourceCoder", "place"]

KEY_GROUPS = 128
"""Flink's `--max_parallelism` in the preset; a power of two."""

_SALT = struct.Struct(">I")
_PAUSE_SECONDS = 1.0


class SplitSource(UnboundedSource):  # type: ignore[misc]
    """A source, and how it is read.

    Args:
      payload: the pickled source, the poll interval and the hold time. Bytes, since what is pickled again on
        a worker need not be the same, and the key must be.
      salt: any number; it decides the key.
    """

    def __init__(self, payload: bytes, salt: int = 0) -> None:
        self.payload, self.salt = payload, salt
        self._opened: tuple[UnboundedSource, float, float] | None = None

    @classmethod
    def of(cls, source: UnboundedSource, poll_seconds: float, hold_seconds: float) -> "SplitSource":
        """A split at no place in particular.

        Args:
          source: read by one reader: it is not split any further.
          poll_seconds: until a source without data is asked again within a bundle.
          hold_seconds: how long a bundle may wait for data; 0 ends it at once.
        """
        return cls(pickler.dumps((source, poll_seconds, hold_seconds)))

    def at(self, group: int) -> "SplitSource":
        """The same split with the lowest salt that puts it into a key group of Flink."""
        salt = 0
        while key_group(SplitSource(self.payload, salt).key, KEY_GROUPS) != group:
            salt += 1
        return SplitSource(self.payload, salt)

    @property
    def key(self) -> bytes:
        """The encoded element, as `SplitSourceCoder` writes it and Flink's runner hashes it."""
        return self.payload + _SALT.pack(self.salt)

    def split(self, desired_num_splits: int, options: Any = None) -> "list[SplitSource]":
        """Itself."""
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> UnboundedReader:
        """The source's own reader, made patient where bundles may wait."""
        source, poll_seconds, hold_seconds = self._open()
        reader = source.create_reader(options, checkpoint_mark)
        return _PatientReader(reader, poll_seconds, hold_seconds) if hold_seconds else reader

    def get_checkpoint_mark_coder(self) -> coders.Coder:
        """The source's own."""
        return self._open()[0].get_checkpoint_mark_coder()

    def default_output_coder(self) -> coders.Coder:
        """The source's own."""
        return self._open()[0].default_output_coder()

    def __reduce__(self) -> Any:
        return SplitSource, (self.payload, self.salt)

    def _open(self) -> tuple[UnboundedSource, float, float]:
        if self._opened is None:
            self._opened = pickler.loads(self.payload)
        return self._opened


class SplitSourceCoder(coders.Coder):  # type: ignore[misc]
    """The payload and the salt: the same bytes wherever a source is encoded."""

    def encode(self, value: SplitSource) -> bytes:
        """See Coder."""
        return value.key

    def decode(self, encoded: bytes) -> SplitSource:
        """See Coder."""
        return SplitSource(encoded[: -_SALT.size], *_SALT.unpack(encoded[-_SALT.size :]))

    def is_deterministic(self) -> bool:
        """See Coder."""
        return True

    def to_type_hint(self) -> type:
        """See Coder."""
        return SplitSource


coders.registry.register_coder(SplitSource, SplitSourceCoder)


def place(splits: Sequence[SplitSource]) -> list[SplitSource]:
    """Each at a key group of its own, so that 2, 4, 8 … subtasks have the same number of splits, or one more.

    Flink gives each subtask a run of neighbouring key groups. With the bits of its number in reverse a split
    lies in the middle of the largest gap that those before it left: 0, 64, 32, 96, 16 … of 128.
    """
    bits = KEY_GROUPS.bit_length() - 1
    return [split.at(int(f"{number % KEY_GROUPS:0{bits}b}"[::-1], 2)) for number, split in enumerate(splits)]


class _PatientReader(UnboundedReader):  # type: ignore[misc]
    """Waits for data within a bundle, so that few bundles have to end only to be begun again.

    What a bundle emits goes through the steps that are fused with the read at once; what lies behind a
    shuffle, and the watermark, waits for its end.
    """

    def __init__(self, reader: UnboundedReader, poll_seconds: float, hold_seconds: float) -> None:
        self._reader = reader
        self._poll_seconds, self._hold_seconds = poll_seconds, hold_seconds
        self._until: float | None = None

    def start(self) -> bool:
        return self._wait(self._reader.start())

    def advance(self) -> bool:
        return self._wait(self._reader.advance())

    def get_current(self) -> Any:
        return self._reader.get_current()

    def get_current_timestamp(self) -> Timestamp:
        return self._reader.get_current_timestamp()

    def get_watermark(self) -> Timestamp:
        return self._reader.get_watermark()

    def get_checkpoint_mark(self) -> CheckpointMark:
        self._until = None  # the next call begins another bundle
        return self._reader.get_checkpoint_mark()

    def close(self) -> None:
        self._reader.close()

    def _wait(self, has_data: bool) -> bool:
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._hold_seconds
        while not has_data and now < self._until and self._reader.get_watermark() < MAX_TIMESTAMP:
            if getattr(self._reader, "paused", False):
                self._until = min(self._until, now + _PAUSE_SECONDS)
            time.sleep(max(min(self._poll_seconds, self._until - now), 0.0))
            has_data = self._reader.advance()
            now = time.monotonic()
        return has_data
