"""Keeps the noise of libraries off the terminal, in the run's log.

TensorFlow, gRPC, Prism and embedded servers write to file descriptors 1 and 2 below Python's `logging`, so
the descriptors themselves are redirected while a recorded verb runs.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from beamrec.pipelines.log_lines import LogFormat, formatter, quiet_libraries

__all__ = [
    "have_streams",
    "log_to_file",
    "log_to_terminal",
    "own_stream",
    "silence_libraries",
    "stdout_to_stderr",
]


def silence_libraries() -> None:
    """Sets the variables that TensorFlow, abseil and gRPC read when they are imported; never overrides."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def have_streams() -> None:
    """Opens the null device for each standard stream that the caller closed (`>&-`).

    The next file that is opened would get its number, and whatever writes to that number would write there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest number that is free, which is that of the closed one.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


@contextlib.contextmanager
def own_stream(stream: TextIO) -> Iterator[TextIO]:
    """A duplicate of `stream` that still reaches the terminal while its descriptor is redirected."""
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, io.UnsupportedOperation):
        yield stream  # not a file (a test's capture): nothing redirects it
        return
    copy = open(descriptor, "w", encoding=stream.encoding, errors="backslashreplace", buffering=1)  # noqa: SIM115
    try:
        yield copy
    finally:
        with contextlib.suppress(OSError):  # nobody reads it any more, or a full disk: the line that said so
            copy.close()


@contextlib.contextmanager
def _descriptors(target: int, *descriptors: int) -> Iterator[None]:
    saved = {descriptor: os.dup(descriptor) for descriptor in descriptors}
    try:
        for descriptor in descriptors:
            os.dup2(target, descriptor)
        yield
    finally:
        for descriptor, copy in saved.items():
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends whatever anybody prints, child processes included, to standard error."""
    _flush()
    with _descriptors(2, 1), contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            _flush()


@contextlib.contextmanager
def _handlers(level: int, *handlers: logging.Handler) -> Iterator[None]:
    root = logging.getLogger()
    before, before_level = root.handlers[:], root.level
    root.handlers[:] = list(handlers)
    root.setLevel(level)
    quiet_libraries()
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(before_level)
        for handler in handlers:
            handler.close()


def _handler(
    stream: TextIO, lines: logging.Formatter, name: str = "", level: int = logging.NOTSET
) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(lines)
    handler.setLevel(level)
    if name:
        handler.addFilter(logging.Filter(name))
    return handler


@contextlib.contextmanager
def log_to_file(path: Path, terminal: TextIO, debug: bool, form: LogFormat = "text") -> Iterator[None]:
    """Logs everything from INFO on to `path`, and what goes to descriptors 1 and 2 as well.

    On `terminal`, which must not be a redirected descriptor (`own_stream`), only our own warnings appear.
    With `debug` the terminal shows the log too, and the descriptors stay as they are. With JSON lines what
    goes to the descriptors, which has no such form, always goes to the file `output` beside `path`.
    """
    _flush()
    lines = formatter(form, path.parent.name)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_append(path))
        shown = _shown(terminal, lines, debug)
        if not debug or form == "json":
            output = stack.enter_context(_append(path.with_name("output"))) if form == "json" else log
            stack.enter_context(_descriptors(output.fileno(), 1, 2))
            stack.callback(_flush)
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(output))
        level = logging.DEBUG if debug else logging.INFO
        stack.enter_context(_handlers(level, _handler(log, lines), shown))
        yield


def _append(path: Path) -> TextIO:
    return open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)


def _shown(terminal: TextIO, lines: logging.Formatter, debug: bool) -> logging.Handler:
    return _handler(terminal, lines) if debug else _handler(terminal, lines, "beamrec", logging.WARNING)


@contextlib.contextmanager
def log_to_terminal(terminal: TextIO, debug: bool, form: LogFormat = "text") -> Iterator[None]:
    """For verbs without a log of their own: our warnings, or with `debug` everything."""
    shown = _shown(terminal, formatter(form), debug)
    with _handlers(logging.DEBUG if debug else logging.WARNING, shown):
        yield
