"""`--config TOML`: options by the names of their flags, at the top level or under `[verb]`.

```toml
seed = 7                  # every verb that has --seed
[stream]
window_seconds = 60       # beamrec stream only
[release.load]
vector_db = "embedded:"   # a subcommand
```
"""

import argparse
import datetime
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from beamrec.pipelines.arguments import did_you_mean, flag_name, given, leaf_parsers
from beamrec.schemas.errors import UsageError

__all__ = ["GLOBALS", "expand", "read"]

GLOBALS = ("home", "debug", "log_format")

ParserOf = Callable[[str], argparse.ArgumentParser]


def read(path: str) -> dict[str, Any]:
    """The content of a configuration file.

    Raises:
      UsageError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # also of 5,000 digits, or brackets
        raise UsageError(f"--config {path}: not valid TOML: {error}") from None


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options of one parser by name; `--no-x` and `--help` are not names of their own."""
    return {
        flag_name(flag): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
        and action.dest != "help"
        and not (isinstance(action, argparse.BooleanOptionalAction) and flag.startswith("--no-"))
    }


def _names(parser: argparse.ArgumentParser) -> set[str]:
    return {name for leaf in leaf_parsers(parser).values() for name in _actions(leaf)}


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool | str | int | float):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise UsageError(f"{where}: expected a string, a number, true, false or a list of them, got {value!r}")


def _flags(action: argparse.Action, value: Any, where: str) -> list[str]:
    """The value as it would stand on the command line, in the action's own spelling."""
    flag = next(f for f in action.option_strings if f.startswith("--"))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: expected true or false, got {value!r}")
        negative = [f for f in action.option_strings if f.startswith("--no-")]
        return [flag] if value else negative[:1]
    values = value if isinstance(value, list) else [value]
    texts = [_text(one, where) for one in values]
    if action.nargs in ("+", "*"):
        return [flag, *texts] if texts else []
    if len(texts) > 1 and not isinstance(action, argparse._AppendAction):
        raise UsageError(f"{where}: expected one value, got {value!r}")
    return [f"{flag}={text}" for text in texts]


def _check_tables(tables: Mapping[str, Any], verbs: Iterable[str], path: str) -> None:
    for name in tables:
        if name not in verbs:
            raise UsageError(f"--config {path}: [{name}] is not a verb; known are {', '.join(verbs)}")


def _check_shared(names: set[str], verbs: Sequence[str], parser_of: ParserOf, path: str) -> None:
    """Names at the top level that this verb lacks must belong to another verb."""
    for verb in verbs:
        if not names:
            return
        names = names - _names(parser_of(verb))
    if names:
        raise UsageError(f"--config {path}: no verb has an option {min(names)!r}")


def _own(section: Mapping[str, Any], subcommand: str, leaves: Iterable[str]) -> dict[str, Any]:
    """What `[verb]` says for this call: its plain names, over them those of `[verb.subcommand]`."""
    plain = {name: value for name, value in section.items() if name not in leaves}
    inner = section.get(subcommand, {}) if subcommand else {}
    return {**plain, **inner} if isinstance(inner, Mapping) else plain


def expand(
    data: Mapping[str, Any],
    path: str,
    verb: str,
    argv: Sequence[str],
    verbs: Sequence[str],
    parser_of: ParserOf,
) -> list[str]:
    """`argv` with the flags of the file before its own ones, after the name of a subcommand.

    Explicit flags win: a name that stands in `argv` is left out of the file's, so that lists do not add up.

    Raises:
      UsageError: a name is unknown, or a value has a wrong type.
    """
    parser = parser_of(verb)
    leaves, known = leaf_parsers(parser), _names(parser)
    subcommand = argv[0] if argv and argv[0] in leaves else ""
    tables = {name: value for name, value in data.items() if isinstance(value, Mapping)}
    _check_tables(tables, verbs, path)
    shared = {n: v for n, v in data.items() if n not in tables and flag_name(n) not in GLOBALS}
    own = _own(tables.get(verb, {}), subcommand, leaves)
    for name in own:
        if flag_name(name) not in known:
            meant = did_you_mean(flag_name(name), known)
            raise UsageError(f"--config {path}: [{verb}]: beamrec {verb} has no option {name!r}{meant}")
    _check_shared({flag_name(n) for n in shared} - known, verbs, parser_of, path)
    values = {flag_name(name): value for name, value in (shared | own).items()}
    actions, explicit = _actions(leaves.get(subcommand, parser)), given(argv)
    flags = [
        text
        for name in values
        if name in actions and name not in explicit
        for text in _flags(actions[name], values[name], f"--config {path}: {name}")
    ]
    return [*argv[: bool(subcommand)], *flags, *argv[bool(subcommand) :]]
