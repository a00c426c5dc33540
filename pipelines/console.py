"""The terminal as verbs see it: where state is kept, progress, and text for a human."""

import logging
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from beamrec.pipelines.log_lines import LogFormat, formatter

if TYPE_CHECKING:
    from rich.status import Status

    from beamrec.pipelines.runs import Run

__all__ = ["Console", "default_home"]


def default_home() -> Path:
    """`$BEAMREC_HOME`, else `.beamrec` in the working folder."""
    return Path(os.environ.get("BEAMREC_HOME") or ".beamrec").absolute()


class Console:
    """What a verb prints with; standard output belongs to the JSON object when `json` is set.

    Attributes:
      home: folder of the runs, the embedded server and caches; created by whoever writes into it.
      json: whether standard output is reserved for one JSON object.
      debug: whether tracebacks and library logs are shown.
      log_format: what the lines on standard error look like.
      run: the recorded run that this verb belongs to, if it is recorded.
    """

    def __init__(
        self,
        home: Path | str | None = None,
        json: bool = False,
        debug: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        log_format: LogFormat = "text",
    ) -> None:
        self.home = Path(home).absolute() if home else default_home()
        self.json = json
        self.debug = debug
        self.log_format = log_format
        self.run: Run | None = None
        self._err = err or sys.stderr
        self._out = self._err if json else out or sys.stdout
        self._spinner: Status | None = None
        self._progress = ""
        self._left = False

    @property
    def terminal(self) -> TextIO:
        """Standard error as it was at the start, before anything was redirected."""
        return self._err

    def print(self, text: str = "") -> None:
        """Prints text for a human: standard output, or standard error with `--json`."""
        self.close()
        if not self._left:
            try:
                if self._out is self._err:
                    self._tell(text)
                else:
                    print(text, file=self._out, flush=True)
            except BrokenPipeError:
                # The reader of a pipe (`beamrec runs list | head`) left; the work goes on without it.
                self._left = True

    def error(self, text: str) -> None:
        """Prints text to standard error."""
        self.close()
        self._tell(text, logging.ERROR)

    def status(self, text: str) -> None:
        """Says which step begins: the live line on a terminal, else a line of its own on standard error."""
        if self._is_live:
            self.progress(text)
        else:
            self._tell(text)

    def progress(self, text: str) -> None:
        """Says how far a step is: replaces the live line; without a terminal a line when it changed."""
        if not self._is_live:
            if text != self._progress:
                self._tell(text)
            self._progress = text
            return
        # Imported here: 0.1 s that scripts and `--help` need not pay.
        from rich.console import Console as RichConsole
        from rich.text import Text

        if self._spinner is None:
            self._spinner = RichConsole(file=self._err).status(Text(text))
            self._spinner.start()
        else:
            self._spinner.update(Text(text))

    @property
    def _is_live(self) -> bool:
        """Whether standard error is a terminal for people, where a line can be replaced."""
        return self._err.isatty() and self.log_format == "text"

    def _tell(self, text: str, level: int = logging.INFO) -> None:
        """One line on standard error, as lines look there."""
        if self.log_format == "json":
            run = self.run.record.id if self.run is not None else ""
            record = logging.LogRecord("beamrec", level, "", 0, text, None, None)
            text = formatter("json", run).format(record)
        print(text, file=self._err, flush=True)

    def run_id(self, verb: str) -> str:
        """Id of the recorded run, or a new one where the verb is called without being recorded."""
        return self.run.record.id if self.run is not None else f"{verb}-{secrets.token_hex(4)}"

    def record(self, counts: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> None:
        """Keeps what is known of a recorded run in progress, for `beamrec runs show`."""
        if self.run is not None:
            self.run.update(counts, metrics)

    def close(self) -> None:
        """Ends the live line, if one is shown."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None
