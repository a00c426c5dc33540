"""Writes docs/options.md from the parsers of the verbs: `make docs`; `--check` says whether it is current."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from beamrec.pipelines import commands
from beamrec.pipelines.arguments import BEAM_GROUP, flag_name, leaf_parsers, shown_default
from beamrec.pipelines.environment import PASSWORDS, SETTINGS, variables

TARGET = Path(__file__).with_suffix(".md")

HEAD = """\
# Options

Made from the code by `make docs`; do not edit. An explicit flag wins over `--config`, that over the
environment variable, that over the default. `batch` and `stream` pass Beam's own options on to the runner.

Everywhere: `--json`, `--debug`, `--home DIR` (`$BEAMREC_HOME`, else `.beamrec`), `--config TOML`, and
`--log-format` `text` or `json` (`$BEAMREC_LOG_FORMAT`).

Passwords are read from the environment, that of `--source` also from where `--source-secret` says:
"""
_UNIT = re.compile(r"\s*\[([^\[\]]+)\]$")


def main() -> int:
    """Writes the file, or with `--check` compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit code 1 if it is not current")
    check = parser.parse_args().check
    for setting in SETTINGS.values():  # the defaults shown must not be those of this machine
        for variable in setting.variables:
            os.environ.pop(variable, None)
    text = render()
    if not check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is not current; run `make docs`", file=sys.stderr)
        return 1
    return 0


def render() -> str:
    """The whole file."""
    lines = [HEAD, *(f"- `--{_dashed(n)}`: {_code(names)}" for n, names in PASSWORDS.items())]
    for verb in commands.available():
        lines += ["", f"## {verb}", "", _sentence(commands.summary(verb))]
        heeded = _heeded_variables(verb)
        for subcommand, parser in leaf_parsers(commands.load(verb).parser()).items():
            title = f"beamrec {verb} {subcommand}" if subcommand else ""
            lines += _table(title, parser, heeded[subcommand])
    return "\n".join(lines) + "\n"


def _heeded_variables(verb: str) -> dict[str, set[str]]:
    """By subcommand the variables that do change a default: not every `--output` is that of the table."""

    def defaults() -> dict[str, dict[str, object]]:
        leaves = leaf_parsers(commands.load(verb).parser())
        return {name: {a.dest: a.default for a in leaf._actions} for name, leaf in leaves.items()}

    bare = defaults()
    heeded: dict[str, set[str]] = {name: set() for name in bare}
    for setting in SETTINGS.values():
        for variable in setting.variables:
            os.environ[variable] = "977"  # an integer, a number and a text, and no default
            for name, values in defaults().items():
                if values != bare[name]:
                    heeded[name].add(variable)
            del os.environ[variable]
    return heeded


def _table(title: str, parser: argparse.ArgumentParser, heeded: set[str]) -> Iterator[str]:
    rows = [_row(action, heeded) for action in _own_actions(parser)]
    if title:
        yield from ("", f"### {title}")
    yield ""
    if not rows:
        yield "No options of its own."
        return
    yield "| option | default | unit | environment | meaning |"
    yield "|---|---|---|---|---|"
    yield from rows


def _own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    beam = [a for g in parser._action_groups if g.title == BEAM_GROUP for a in g._group_actions]
    return [a for a in parser._actions if a not in beam and a.dest != "help" and a.help != argparse.SUPPRESS]


def _row(action: argparse.Action, heeded: set[str]) -> str:
    name = flag_name(action.option_strings[-1]) if action.option_strings else ""
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    unit = _UNIT.search(text)
    cells = (
        _code(action.option_strings) or f"`{action.metavar or action.dest}`",
        _default(action),
        unit.group(1) if unit else _kind(action, name),
        _code([variable for variable in variables(name) if variable in heeded]),
        _UNIT.sub("", text),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(action: argparse.Action) -> str:
    text = shown_default(action)
    return f"`{text}`" if text else "required" if action.required else ""


def _kind(action: argparse.Action, name: str) -> str:
    if action.nargs == 0:
        return "flag"
    if action.choices:
        return ", ".join(str(choice) for choice in action.choices)
    if name in SETTINGS:
        return SETTINGS[name].unit
    return {int: "whole number", float: "number"}.get(action.type, "text")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _code(names: "tuple[str, ...] | list[str]") -> str:
    return ", ".join(f"`{name}`" for name in names)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    sys.exit(main())
