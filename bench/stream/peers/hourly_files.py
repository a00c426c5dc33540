"""Hourly files of lines, appended to."""

import datetime as dt
import os
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

__all__ = ["HourlyFiles"]

_MOST_OPEN = 16


class HourlyFiles:
    """`FOLDER/year=…/month=…/day=…/hour=…/part-….jsonl`, one file an hour of each process.

    What `write` was given is in the files when it returns, as far as the operating system goes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"part-{uuid.uuid4().hex}.jsonl"
        self._open: OrderedDict[dt.datetime, int] = OrderedDict()

    def __enter__(self) -> "HourlyFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def write(self, lines: Iterable[tuple[dt.datetime, bytes]]) -> None:
        """Appends lines, each with its line end, to the files of their times (UTC): one write a file."""
        parts: dict[dt.datetime, list[bytes]] = defaultdict(list)
        for time, line in lines:
            parts[time.replace(minute=0, second=0, microsecond=0)].append(line)
        for hour, written in parts.items():
            _write_all(self._file(hour), b"".join(written))

    def _file(self, hour: dt.datetime) -> int:
        if hour in self._open:
            self._open.move_to_end(hour)
            return self._open[hour]
        path = self._folder / f"{hour:year=%Y/month=%m/day=%d/hour=%H}" / self._name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open[hour] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if len(self._open) > _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return self._open[hour]


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
