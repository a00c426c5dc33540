"""Running a streaming job in the foreground: progress, drain on the first Ctrl-C, abort on the second."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import apache_beam as beam

from beamrec.io.ledger import Tally, request_drain
from beamrec.io.store import Store
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import BeamrecError

__all__ = ["run_job"]

_PROGRESS_SECONDS = 2.0
_WORDS = {
    "in": "read",
    "out": "recommended",
    "dead_letters": "dead letters",
    "duplicates": "duplicates",
    "expired": "expired",
}


def run_job(pipeline: beam.Pipeline, store: Store, run: str, console: Console) -> None:
    """Runs a pipeline to its end.

    SIGINT and SIGTERM ask the sources to report their end, so that everything read is written; a second
    one raises KeyboardInterrupt.

    Raises:
      BeamrecError: the job failed.
    """
    tally = Tally(store)
    with _DrainOnSignal(lambda: _drain(store, run, console)):
        result = pipeline.run()
        outcome: dict[str, BaseException] = {}
        waiting = threading.Thread(target=_wait, args=(result, outcome), daemon=True)
        waiting.start()
        shown = 0.0
        while waiting.is_alive():
            waiting.join(0.2)
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                _report(tally, console)
        _report(tally, console)
    if "error" in outcome:
        raise BeamrecError(f"the job failed: {_last_line(outcome['error'])}") from outcome["error"]


def _report(tally: Tally, console: Console) -> None:
    counts = tally.update().to_dict()
    console.record(counts)
    console.progress(", ".join(f"{word} {counts[name]:,}" for name, word in _WORDS.items()))


def _drain(store: Store, run: str, console: Console) -> None:
    console.status("draining: what has been read is written, then the job ends (Ctrl-C again aborts)")
    request_drain(store, run)


def _wait(result: Any, outcome: dict[str, BaseException]) -> None:
    try:
        result.wait_until_finish()
    except BaseException as error:  # noqa: BLE001  (handed to the main thread)
        outcome["error"] = error


def _last_line(error: BaseException) -> str:
    """Runners report a worker's whole traceback; its last line says what went wrong."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _DrainOnSignal:
    """Runs `drain` at the first SIGINT or SIGTERM while in the `with` block; the next interrupts."""

    def __init__(self, drain: Callable[[], None]) -> None:
        self._drain = drain
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._first)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        for each in self._old:
            signal.signal(each, signal.default_int_handler)
        self._drain()
