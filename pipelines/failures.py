"""What an exception means to the user: one message and one exit code."""

import re

from beamrec.pipelines.log_lines import without_values
from beamrec.schemas import errors

__all__ = ["INTERRUPTED", "explain"]

INTERRUPTED = 130

_NAMES = {name: getattr(errors, name) for name in errors.__all__}
# A worker's exception reaches the pipeline as text: the traceback, ending in `module.Type: message`.
_WORKER = re.compile(
    rf"^(?:beamrec\.schemas\.errors\.)({'|'.join(_NAMES)}): (.*?)(?: \[while running .*\])?$", re.MULTILINE
)
# What PostgreSQL adds below its message.
_FURTHER = re.compile(r"\s*(?:$|\^|(?:DETAIL|HINT|CONTEXT|QUERY|LINE \d+): )")
_WHILE_RUNNING = re.compile(r" \[while running .*\]$", re.DOTALL)
# user:password@ in a URL that some library put into its message: no secret stands in an error.
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]*@")


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _from_worker(error: BaseException) -> tuple[str, int] | None:
    found = _WORKER.findall(str(error))
    if not found:
        return None
    name, message = found[-1]
    return message, _NAMES[name].exit_code


def explain(error: BaseException) -> tuple[str, int]:
    """The message for the terminal, without secrets, and the exit code.

    An error of ours counts wherever it was raised: here, as the cause of another one, or on a worker
    (there Beam hands on only its text).
    """
    # Beam makes a RuntimeError of an interrupt that comes while a worker is at work.
    if any(isinstance(link, KeyboardInterrupt) or str(link) == "KeyboardInterrupt" for link in _chain(error)):
        return "interrupted", INTERRUPTED
    for link in _chain(error):
        if isinstance(link, errors.BeamrecError):
            return _clean(str(link)), link.exit_code
        worker = _from_worker(link)
        if worker:
            return _clean(worker[0]), worker[1]
    text = _WHILE_RUNNING.sub("", str(error).strip())
    lines = [line for line in text.splitlines() if not _FURTHER.match(line)] or ["no message"]
    # PostgreSQL says what is wrong first, and ends in a caret under the statement.
    says = lines[0] if hasattr(error, "pgerror") else lines[-1]
    return _clean(f"{type(error).__name__}: {says}"), 1


def _clean(message: str) -> str:
    return without_values(_PASSWORD.sub(r"\1:***@", _WHILE_RUNNING.sub("", message)))
