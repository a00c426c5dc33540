"""How far a training is, in one line for a human."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beamrec.model.training import Report

__all__ = ["ProgressLine", "progress_text"]

_BAR = 20


def progress_text(report: "Report") -> str:
    """Epoch, a bar, loss, speed and time left."""
    full = round(report.done * _BAR)
    validation = "" if report.validation is None else f" (validation {report.validation:.4f})"
    minutes, seconds = divmod(round(report.seconds_left), 60)
    return (
        f"epoch {report.epoch} of at most {report.epochs} {'━' * full}{'╌' * (_BAR - full)} "
        f"loss {report.loss:.4f}{validation}, {report.examples_per_second:,.0f} examples/s, "
        f"at most {minutes}:{seconds:02d} left"
    )


class ProgressLine:
    """Says how far a training is at the end of every epoch, and in between not too often.

    Args:
      status: takes the line.
      every_seconds: between two lines within an epoch; short for a line that is replaced on a terminal.
    """

    def __init__(self, status: Callable[[str], None], every_seconds: float) -> None:
        self._status, self._every = status, every_seconds
        self._last = time.monotonic()

    def __call__(self, report: "Report") -> None:
        now = time.monotonic()
        if report.done >= 1 or now - self._last >= self._every:
            self._last = now
            self._status(progress_text(report))
