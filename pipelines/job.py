"""Running a streaming job in the foreground: progress, drain on the first Ctrl-C, abort on the second."""

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

import apache_beam as beam
import grpc

from beamrec.io.begun import ended_readers
from beamrec.io.ledger import Tally, request_drain
from beamrec.io.store import Store
from beamrec.pipelines.console import Console
from beamrec.pipelines.job_metrics import MetricsHistory, read_metrics
from beamrec.runners.flink_jobs import ends_by_itself
from beamrec.schemas.errors import BeamrecError, UnavailableError

__all__ = ["RunnerLostError", "run_job"]

_LOGGER = logging.getLogger(__name__)
_PROGRESS_SECONDS = 2.0
# Serving rows are on their way for a moment longer than the segments of the same records.
_LOOKS = 2
# Prism 2.77 asks for the progress of its own bundles too, which have no worker, if it gets no time for a
# moment between two steps: a nil pointer on a very busy machine.
_PANIC = "panic in stage.Execute"
# Flink's JobManager is away, or another one, which does not know the job.
_LOST = (_PANIC, "FlinkJobNotFoundException", "Number of retries has been exhausted")
_ESCAPED_NEWLINE, _NEWLINE = "\\n", "\n"  # runners quote a worker's traceback into one line
_WORDS = {
    "in": "read",
    "out": "recommended",
    "dead_letters": "dead letters",
    "duplicates": "duplicates",
    "expired": "expired",
}


class RunnerLostError(BeamrecError):
    """The runner ended or cannot be reached; the ledger is whole, and another start goes on."""


def run_job(
    pipeline: beam.Pipeline,
    store: Store,
    run: str,
    console: Console,
    history: MetricsHistory | None = None,
    readers: int = 1,
) -> None:
    """Runs a pipeline to its end; `history` is told its metrics every two seconds, and at the end.

    A runner that does not end a job whose sources have ended is told to, when `readers` have ended and every
    record has its fate.

    SIGINT and SIGTERM ask the sources to report their end, so that everything read is written; a second
    one raises KeyboardInterrupt.

    Raises:
      RunnerLostError: the runner failed, and not the job.
      BeamrecError: the job failed.
    """
    tally, asked = Tally(store), threading.Event()
    history = history or MetricsHistory()
    with _SetOnSignal(asked):
        result = pipeline.run()
        outcome: dict[str, BaseException] = {}
        waiting = threading.Thread(target=_wait, args=(result, outcome), daemon=True)
        waiting.start()
        shown, draining, done = 0.0, False, 0
        lingers = not ends_by_itself(pipeline.options.get_all_options())
        while waiting.is_alive():
            waiting.join(0.2)
            if asked.is_set() and not draining:
                draining = _drain(store, run, console)
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                _ask(result, history)
                left = _report(tally, history, console)
                done = done + 1 if lingers and left == 0 and _have_ended(store, run, readers) else 0
                if done == _LOOKS:
                    result.cancel()
    if "error" in outcome and done < _LOOKS:
        raise _failure(outcome["error"])
    _ask(result, history)
    _report(tally, history, console)


def _ask(result: Any, history: MetricsHistory) -> None:
    """Metrics are a courtesy too: a runner that does not tell them ends no job."""
    try:
        history.add(read_metrics(result))
    except Exception as error:  # noqa: BLE001  (each runner has errors of its own)
        _LOGGER.info("the runner does not tell its metrics: %s", type(error).__name__)


def _have_ended(store: Store, run: str, readers: int) -> bool:
    try:
        return len(ended_readers(store, run)) >= readers
    except UnavailableError:
        return False


def _report(tally: Tally, history: MetricsHistory, console: Console) -> int | None:
    """Shows the counts; returns how many records have no fate yet, or None if that is not to be known."""
    try:
        counts, gaps = tally.update().to_dict(), tally.gaps()
    except BeamrecError as error:
        # Progress is a courtesy: what is wrong with the ledger ends the job where it matters.
        console.progress(str(error))
        return None
    history.account = counts
    console.record(counts | ({"gaps": gaps} if gaps else {}), history.recent())
    waiting = counts["in"] - sum(counts[name] for name in _WORDS if name != "in")
    told = ", ".join(f"{word} {counts[name]:,}" for name, word in _WORDS.items())
    lost = f"; RECORDS LOST UPSTREAM at {gaps} places" if gaps else ""
    console.progress(f"{told}, in open windows {waiting:,}{lost}")
    return int(waiting)


def _drain(store: Store, run: str, console: Console) -> bool:
    """Asks for it; False if that is to be tried again, since the output is away."""
    try:
        request_drain(store, run)
    except UnavailableError as error:
        console.progress(f"to be drained when the output is there again (Ctrl-C again aborts): {error}")
        return False
    console.status("draining: what has been read is written, then the job ends (Ctrl-C again aborts)")
    return True


def _wait(result: Any, outcome: dict[str, BaseException]) -> None:
    try:
        result.wait_until_finish()
    except BaseException as error:  # noqa: BLE001  (handed to the main thread)
        outcome["error"] = error


def _failure(error: BaseException) -> Exception:
    """What ended the job; a worker's own error, of which the runner hands on the text, keeps its code."""
    if isinstance(error, grpc.RpcError) or any(sign in str(error) for sign in _LOST):
        return RunnerLostError(
            "the runner ended unexpectedly; nothing is lost: start the job again, it goes on where it stopped"
        )
    return RuntimeError(f"the job failed: {str(error).replace(_ESCAPED_NEWLINE, _NEWLINE)}")


class _SetOnSignal:
    """Sets an event at the first SIGINT, SIGTERM or SIGHUP while in the `with` block; the next interrupts.

    The handler does nothing else: it may run in the middle of a print.
    """

    def __init__(self, event: threading.Event) -> None:
        self._event = event
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._old[number] = signal.signal(number, self._first)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        for each in self._old:
            signal.signal(each, signal.default_int_handler)
        self._event.set()
