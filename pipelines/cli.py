"""The command line: `beamrec VERB [options] [any Beam option]`.

Global flags may stand anywhere: `--json` (one JSON object as the last line of standard output, everything
else on standard error), `--debug` (tracebacks and library logs), `--home DIR`, `--config TOML`,
`--log-format`.

Exit codes: 0 done; 2 wrong usage or configuration; 3 too much bad data; 4 an outside system is
unavailable; 130 interrupted; 1 anything else.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from beamrec.pipelines import beam_start, capture, commands, config_file
from beamrec.pipelines.arguments import VerbParser, flag_name
from beamrec.pipelines.console import Console, default_home
from beamrec.pipelines.environment import default
from beamrec.pipelines.failures import INTERRUPTED, explain
from beamrec.pipelines.log_lines import LogFormat, formatter, log_format
from beamrec.pipelines.runs import start_run
from beamrec.schemas.errors import UnavailableError, UsageError
from beamrec.schemas.version import __version__

__all__ = ["entry", "main"]

# user:password@ (the password may hold slashes), ?password= and libpq's own keyword form.
_PASSWORD_IN_URL = re.compile(
    r"^[a-z][a-z0-9+.-]*://[^@?]*:[^@?]*@|(^|[?&;\s])(ssl)?(password|passwd|pwd)\s*=", re.IGNORECASE
)
_SECRET_FLAG = re.compile(
    r"(^|_)(password|passwd|secret_access_key|(session|access)_token|connection_string)$"
)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A command line taken apart: global flags, the verb and the rest."""

    verb: str
    argv: tuple[str, ...]
    home: Path
    json: bool
    debug: bool
    log_format: LogFormat


def _help() -> str:
    verbs = [f"  {name:<10} {commands.summary(name)}" for name in commands.available()]
    return "\n".join(
        [
            "usage: beamrec VERB [options] [any Beam option]",
            "",
            "verbs (`beamrec VERB --help` lists the options of one):",
            *verbs,
            "",
            "everywhere:",
            "  --json         one JSON object as the last line of standard output, all else to stderr",
            "  --home DIR     runs, embedded server, caches ($BEAMREC_HOME, else .beamrec here)",
            "  --config TOML  options by name, at the top level or under [VERB]; explicit flags win",
            "  --debug        tracebacks and the logs of libraries",
            "  --log-format json  log and messages as one JSON object a line ($BEAMREC_LOG_FORMAT)",
            "  --version      prints the version",
            "",
            "all options with their defaults, units and environment variables: docs/options.md",
        ]
    )


def _refuse_secrets(argv: Sequence[str]) -> None:
    """A command line is seen by every user of the machine, and is kept in `run.json`."""
    for word in argv:
        if word.startswith("--") and _SECRET_FLAG.search(flag_name(word)):
            raise UsageError(
                f"--{flag_name(word)}: secrets do not belong on the command line; set the variable "
                "that the system's own client reads (AWS_SECRET_ACCESS_KEY, …)"
            )
        if _PASSWORD_IN_URL.search(word.split("=", 1)[1] if word.startswith("--") and "=" in word else word):
            raise UsageError(
                "a connection URL carries no password; set BEAMREC_SOURCE_PASSWORD or "
                "BEAMREC_VECTOR_DB_PASSWORD instead, and leave `:password` out of the URL"
            )


def _refuse_what_is_no_text(argv: Sequence[str]) -> None:
    """Bytes that are no UTF-8, and NUL out of a configuration file: no database and no JSON takes them."""
    for word in argv:
        if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UsageError(f"{word!a}: expected UTF-8 text without NUL")


def _take_globals(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Separates the global flags, wherever they stand before a `--`, from the rest."""
    parser = VerbParser(prog="beamrec", add_help=False)
    parser.add_argument("--json", action="store_true", default=None)
    parser.add_argument("--debug", action="store_true", default=None)
    parser.add_argument("--home")
    parser.add_argument("--log-format")
    parser.add_argument("--config")
    cut = argv.index("--") if "--" in argv else len(argv)
    found, rest = parser.parse_known_args(argv[:cut])
    return vars(found), [*rest, *argv[cut:]]


def _call(argv: Sequence[str]) -> _Call:
    found, rest = _take_globals(argv)
    if not rest or rest[0].startswith("-"):
        raise UsageError("a verb must come first; `beamrec --help` lists them")
    verb, own = rest[0], rest[1:]
    if found["config"]:
        path = found["config"]
        data = config_file.read(path)
        found = {**{n: data[n] for n in config_file.GLOBALS if n in data}, **_set(found)}
        commands.load(verb)
        own = config_file.expand(data, path, verb, own, commands.available(), _parser_of)
    _refuse_secrets(own)
    _refuse_what_is_no_text(own)
    home = Path(found["home"]).absolute() if found.get("home") else default_home()
    form = log_format(found.get("log_format") or default("log_format"))
    return _Call(verb, tuple(own), home, bool(found.get("json")), bool(found.get("debug")), form)


def _set(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def _parser_of(verb: str) -> Any:
    return commands.load(verb).parser()


def _recorded(call: _Call, module: commands.VerbModule, console: Console) -> dict[str, Any]:
    """Runs a verb under an id, with its log; its record is final whatever happens."""
    run = start_run(call.home, call.verb, call.argv)
    console.run = run
    try:
        with capture.log_to_file(run.log, console.terminal, call.debug, call.log_format):
            try:
                result = module.run(call.argv, console)
            except BaseException:
                _log_failure(run.log, formatter(call.log_format, run.record.id))
                raise
    except BaseException as error:
        message, code = _failure(error)
        if code:
            run.finish("FAILED", error=message)
        else:
            run.finish("SUCCEEDED")
        raise
    run.finish("FAILED" if result.get("exit_code") else "SUCCEEDED", result, result.get("error"))
    return {"run": run.record.id, **result}


def _log_failure(path: Path, lines: logging.Formatter) -> None:
    """Writes the traceback into the log of the run, and not to the terminal, which gets one line."""
    record = logging.LogRecord("beamrec", logging.ERROR, "", 0, "the run failed", None, sys.exc_info())
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"{lines.format(record)}\n")


def _failure(error: BaseException) -> tuple[str, int]:
    """Like `explain`, and for libraries that end the process themselves."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return (error.code if isinstance(error.code, str) else "wrong usage, as said above"), code
    return explain(error)


def _execute(call: _Call, console: Console) -> dict[str, Any]:
    module = commands.load(call.verb)
    if commands.VERBS[call.verb].beam:
        beam_start.import_beam(call.argv)
    if commands.VERBS[call.verb].recorded and not {"-h", "--help"} & set(call.argv):
        return _recorded(call, module, console)
    with capture.log_to_terminal(console.terminal, call.debug, call.log_format):
        return module.run(call.argv, console)


def _report(error: BaseException, console: Console, verb: str) -> dict[str, Any]:
    """Shows a failure on standard error and returns its JSON object."""
    message, code = _failure(error)
    if console.debug and not isinstance(error, SystemExit):
        console.error("".join(traceback.format_exception(error)).rstrip())
    if code:
        console.error(f"{f'beamrec {verb}'.strip()}: {message}")
        if console.run is not None and code != INTERRUPTED:
            console.error(f"the log is in {console.run.log}")
        elif code == 1 and not console.debug:
            console.error("run it again with --debug for a traceback")
    result: dict[str, Any] = {"run": console.run.record.id} if console.run else {}
    return {**result, "exit_code": code, **({"error": message} if code else {})}


def _run(argv: Sequence[str], json_wanted: bool, out: TextIO, err: TextIO) -> dict[str, Any]:
    console, verb = Console(json=json_wanted, debug="--debug" in argv, out=out, err=err), ""
    try:
        call = _call(argv)
        verb = call.verb
        console = Console(call.home, json_wanted or call.json, call.debug, out, err, call.log_format)
        return _execute(call, console)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 (the outermost place)
        return _report(error, console, verb)
    finally:
        console.close()


def _print_json(result: dict[str, Any], seconds: float, out: TextIO, err: TextIO) -> int:
    """Prints the last line; returns the exit code, which tells too that it could not be printed."""
    values = {"ok": not result.get("exit_code"), "seconds": round(seconds, 3), **result}
    code = int(result.get("exit_code", 0))
    try:
        print(json.dumps(values, ensure_ascii=False, default=str), file=out, flush=True)
    except BrokenPipeError:
        pass  # nobody reads it any more
    except OSError as error:
        print(f"beamrec: the answer cannot be written to standard output: {error.strerror}", file=err)
        return code or UnavailableError.exit_code
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    started = time.monotonic()
    capture.silence_libraries()
    capture.have_streams()
    if argv in ([], ["-h"], ["--help"]):
        print(_help())
        return 0 if argv else UsageError.exit_code
    if argv == ["--version"]:
        print(f"beamrec {__version__}")
        return 0
    json_wanted = "--json" in argv
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(capture.own_stream(s)) for s in (sys.stdout, sys.stderr))
        with capture.stdout_to_stderr() if json_wanted else contextlib.nullcontext():
            result = _run(argv, json_wanted, out, err)
        if json_wanted:
            return _print_json(result, time.monotonic() - started, out, err)
    return int(result.get("exit_code", 0))


def entry(argv: Sequence[str] | None = None) -> None:
    """The console script: ends the process at once when the verb is done.

    Beam's and TensorFlow's threads may still be inside C++ at the interpreter's end, where one of them
    once aborted a job that had succeeded, and gRPC prints there what nobody needs.
    """
    code = main(argv)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
