"""Argument parsers of the verbs: errors as `UsageError`, and Beam's own options beside ours."""

import argparse
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from beamrec.schemas.errors import UsageError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

__all__ = [
    "BEAM_GROUP",
    "VerbParser",
    "check_beam_flags",
    "did_you_mean",
    "flag_name",
    "given",
    "leaf_parsers",
    "parse_pipeline",
    "pipeline_parser",
    "shown_default",
]


BEAM_GROUP = "Beam's own options"


def flag_name(text: str) -> str:
    """The name behind a flag, a TOML key or a Beam option: `--window-seconds=60` → `window_seconds`."""
    return text.split("=", 1)[0].lstrip("-").replace("-", "_")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to put behind a message about a name that is not known; empty if none is like it."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def shown_default(action: argparse.Action) -> str:
    """An option's default for people; empty where it has none, and for a flag that is off."""
    is_off = action.nargs == 0 and not action.default
    return "" if is_off or action.default in (None, argparse.SUPPRESS, "") else str(action.default)


class _WithDefaults(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        # A BooleanOptionalAction has put it there by itself.
        is_there = "%(default)" in text or not shown_default(action)
        return text if is_there else f"{text} (default: %(default)s)"


class VerbParser(argparse.ArgumentParser):
    """An `ArgumentParser` that knows no abbreviations, shows defaults in its help and reports errors as
    `UsageError` (exit code 2).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _WithDefaults)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError` where argparse would print its usage and exit."""
        raise UsageError(f"{self._hint(message)}; `{self.prog} --help` lists the options")

    def _hint(self, message: str) -> str:
        unknown = [word for word in message.split() if word.startswith("--")]
        if not message.startswith("unrecognized arguments") or not unknown:
            return message
        known = [flag for parser in leaf_parsers(self).values() for flag in parser._option_string_actions]
        return message + did_you_mean(unknown[0].split("=", 1)[0], known)


def leaf_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers that take options, by subcommand (`""` for a verb that has none)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {"": parser}


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        yield child
        yield from _subclasses(child)


def pipeline_parser(verb: str, options: "type[PipelineOptions]", description: str = "") -> VerbParser:
    """The options of a pipeline: its own `PipelineOptions` subclass, then Beam's own in a second group.

    It describes (help, documentation, the names a TOML file may use); the pipeline itself is parsed by
    `PipelineOptions`, which passes Beam's options on to the runner.
    """
    parser = VerbParser(prog=f"beamrec {verb}", description=description, conflict_handler="resolve")
    # Groups are shown in the order in which they are made; of two equal flags the one added last holds.
    own = parser.add_argument_group("options")
    _add_beam_options(parser)
    options._add_argparse_args(own)
    return parser


def _add_beam_options(parser: VerbParser) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    import beamrec.runners.flink_options  # noqa: F401  (a job server's, which Beam's SDK does not list)

    beam = parser.add_argument_group(BEAM_GROUP, "passed through to the runner")
    for kind in _subclasses(PipelineOptions):
        passed = kind.__module__.startswith(("apache_beam.", "beamrec.runners."))
        if passed and "_add_argparse_args" in vars(kind):
            cast(Any, kind)._add_argparse_args(beam)


def check_beam_flags(verb: str, beam_args: Sequence[str]) -> None:
    """Raises UsageError for a flag that is not Beam's, or a value that is not of its type."""
    parser = VerbParser(prog=f"beamrec {verb}", conflict_handler="resolve")
    _add_beam_options(parser)
    parser.parse_args(list(beam_args))


def parse_pipeline(
    verb: str, options: "type[PipelineOptions]", argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The pipeline's own options, and the flags that are Beam's.

    Raises:
      UsageError: a flag is neither's, or a value is not of its type.
    """
    pipeline_parser(verb, options).parse_args(list(argv))
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options._add_argparse_args(own)
    return own.parse_known_args(list(argv))


def given(argv: Sequence[str]) -> set[str]:
    """Names of the flags that stand in `argv`; `--no-x` counts as `x`."""
    names = {flag_name(word) for word in argv if word.startswith("--") and word != "--"}
    return names | {name.removeprefix("no_") for name in names}
