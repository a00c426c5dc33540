"""The options of `beamrec replay`: its own, and those of `stream`, which mean the same here."""

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from beamrec.pipelines.arguments import given
from beamrec.pipelines.stream_options import StreamOptions
from beamrec.pipelines.verb_options import VerbOptions
from beamrec.schemas.errors import UsageError

__all__ = ["ReplayOptions", "parse_time", "stream_values", "which_replay"]

# Where a stream reads and writes is not where a replay does; its environment must not say so either. A replay
# ends, so nobody has to watch it.
_OTHERWISE = frozenset({"--input", "--output", "--metrics-port", "--metrics-host"})
_OWN = (
    "errors",
    "stage",
    "error_type",
    "begin",
    "end",
    "dry_run",
    "release",
    "recommendations",
)
_OF_ERRORS = frozenset({"errors", "stage", "error_type", "dry_run"})
_OF_INTERVAL = frozenset({"release", "recommendations", "input", "output"})
# A replay of dead letters takes them from the settings of their folder, or lets nothing be late.
_FIXED = frozenset({"shards", "format", "dedupe_key", "splits", "allowed_lateness", "stop_when_idle"})


class _StreamFlags:
    """Takes the flags of `stream` that a replay has too."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._parser = parser

    def add_argument(self, *flags: str, **settings: Any) -> Action | None:
        """As of an ArgumentParser."""
        return None if flags[0] in _OTHERWISE else self._parser.add_argument(*flags, **settings)


class ReplayOptions(VerbOptions):
    """Flags of `beamrec replay`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("--errors", help="dead letters: OUTPUT of stream, its errors/ folder or a part of it [URI]")
        add("--stage", action="append", help="only dead letters of this stage, repeatable; all but expired")
        add("--error-type", action="append", help="only dead letters of this type; repeatable")
        add("--from", dest="begin", help="first moment of the interval, UTC if it has no offset [RFC 3339]")
        add("--to", dest="end", help="end of the interval, which is over and not in it [RFC 3339]")
        add("--dry-run", action="store_true", help="only says what would become of the dead letters")
        add("--release", help="score the interval again with this release, into another --output [id]")
        add("--recommendations", help="what stream wrote: compared with, and read without --input [URI]")
        add("--input", help="score the events of this stream or folder again [URI]")
        add("--output", help="where recommendations of --release are written [URI]")
        StreamOptions._add_argparse_args(cast(ArgumentParser, _StreamFlags(parser)))


def which_replay(values: Namespace, argv: Sequence[str]) -> str:
    """`errors` or `interval`.

    Raises:
      UsageError: options of both, or of none.
    """
    flags = {"begin" if name == "from" else "end" if name == "to" else name for name in given(argv)}
    if bool(values.errors) == bool(values.release):
        raise UsageError(
            "expected either --errors OUTPUT, to try dead letters again, or --release R with --from, --to, "
            "--output and --recommendations or --input, to score an interval again"
        )
    kind, others = ("errors", _OF_INTERVAL | _FIXED) if values.errors else ("interval", _OF_ERRORS | {"also"})
    wrong = sorted(flags & others)
    if wrong:
        name, of = wrong[0].replace("_", "-"), "--errors" if values.errors else "--release"
        why = " (it is that of the folder)" if wrong[0] in _FIXED else ""
        raise UsageError(f"--{name} does not go with {of}{why}; leave it out")
    return kind


def stream_values(values: Namespace) -> Namespace:
    """Those values that `stream` has too."""
    return Namespace(**{name: value for name, value in vars(values).items() if name not in _OWN})


def parse_time(text: str | None, option: str) -> datetime | None:
    """A moment; UTC if it says nothing else.

    Raises:
      UsageError: it is none.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: expected a time such as 2026-11-22T07:00:00Z, got {text!r}") from None
