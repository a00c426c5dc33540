"""What a log line looks like (`--log-format`), and what never stands in one.

Logs hold ids (events, customers, products, sessions, releases) and no other value of an event or a row:
nothing of ours logs one, and what libraries say of a value in their errors is taken out here.
"""

import datetime as dt
import json
import logging
import re
import sys
import traceback
from typing import Any, Literal, get_args

from beamrec.schemas.errors import UsageError

__all__ = ["LogFormat", "formatter", "log_format", "quiet_libraries", "rfc3339", "without_values"]

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# At DEBUG they write requests and answers: the lines of a segment, the records of a stream.
_TALKATIVE = ("boto3", "botocore", "s3transfer", "urllib3", "google", "confluent_kafka")
_WITHHELD = "(withheld)"
# Each to what follows the value, or to the end of the line: a value may hold quotes itself.
_VALUES = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        # PostgreSQL: its statement, a row that breaks a constraint, a value that is none of its type.
        r"(?P<keep>\bLINE \d+: )[^\n]*(?:\n *\^)?",
        r"(?P<keep>\b(?:CONTEXT|QUERY|STATEMENT): )[^\n]*",
        r"(?P<keep>\bDETAIL: )(?! *(?:Key \(|Process \d))[^\n]*",
        r"(?P<keep>invalid input syntax for type [\w ]+: )\".*?\"(?=\s*(?:\n|$))",
        # MySQL: a value that does not fit its column, one that is there already.
        r"(?P<keep>ncorrect [\w ]+ value: |Duplicate entry )'.*?'(?= for )",
        # Arrow, Python, NumPy and TensorFlow: a value that has no such type.
        r"(?P<keep>Could not convert ).*?(?= with type)",
        r"(?P<keep>Failed to parse string: )'.*?'(?= as a scalar)",
        r"(?P<keep>could not convert string to float: )[^\n]*",
        r"(?P<keep>invalid literal for \w+\(\) with base \d+: )[^\n]*",
        r"(?P<keep>could not correctly convert string: )[^\n]*",
    )
)


def without_values(text: str) -> str:
    """A library's message without the values that it quotes of rows and events."""
    for pattern in _VALUES:
        text = pattern.sub(rf"\g<keep>{_WITHHELD}", text)
    return text


def log_format(value: str) -> LogFormat:
    """Checks the option.

    Raises:
      UsageError: it is no format.
    """
    for known in get_args(LogFormat):
        if value == known:
            form: LogFormat = known
            return form
    raise UsageError(f"--log-format: expected {' or '.join(get_args(LogFormat))}, got {value!r}")


def formatter(form: LogFormat, run: str = "") -> logging.Formatter:
    """Lines of text, or one JSON object a line with the id of the run."""
    return _JsonFormatter(run) if form == "json" else _TextFormatter(_TEXT)


def quiet_libraries() -> None:
    """Keeps what libraries send and receive out of the log, whatever its level."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger(name).level))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_values(super().format(record))


class _JsonFormatter(logging.Formatter):
    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        """time, level, logger, message, thread; run, step, exception where there are any."""
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": without_values(record.getMessage()),
            "thread": record.threadName,
        }
        line |= {name: value for name, value in (("run", self._run), ("step", _step())) if value}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _exception(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def rfc3339(seconds: float) -> str:
    """A time since 1970 in UTC with milliseconds."""
    time = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception(error: BaseException) -> dict[str, str]:
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": without_values(str(error)),
        "traceback": without_values("".join(traceback.format_exception(error))),
    }


def _step() -> str:
    """The step of the pipeline that this thread is at work on; only a worker has one."""
    sampler = sys.modules.get("apache_beam.runners.worker.statesampler")
    tracker = sampler.get_current_tracker() if sampler else None
    context = getattr(tracker.current_state(), "name_context", None) if tracker else None
    return str(getattr(context, "step_name", "") or "")
