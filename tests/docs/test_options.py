"""docs/options.md is what the code says, and says what a reader looks for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beamrec.pipelines import commands
from beamrec.pipelines.arguments import leaf_parsers
from beamrec.pipelines.environment import SETTINGS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_file_is_current_whatever_this_machine_sets() -> None:
    environment = {**os.environ, "ITEM_LIMIT": "99", "BEAMREC_SOURCE": "sqlite:///elsewhere"}
    command = [sys.executable, str(DOCS / "options.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", commands.available())
def test_every_option_of_a_verb_is_there_with_a_meaning(verb: str) -> None:
    text = (DOCS / "options.md").read_text()
    section = text.split(f"\n## {verb}\n", 1)[1].split("\n## ", 1)[0]
    rows = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("| ")}
    for parser in leaf_parsers(commands.load(verb).parser()).values():
        for group in parser._action_groups:
            for action in group._group_actions:
                if group.title in ("options", "positional arguments") and action.dest != "help":
                    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
                    row = rows[flags or f"`{action.metavar or action.dest}`"]
                    assert row.rstrip(" |").rpartition("|")[2].strip(), f"no meaning: {row}"


@pytest.mark.parametrize(
    ("option", "cells"),
    [
        ("items", ("`5`", "`BEAMREC_ITEMS`, `ITEM_LIMIT`")),
        ("seed", ("`42`", "`BEAMREC_SEED`, `RANDOM_SEED`")),
        ("window-seconds", ("`60`", "`BEAMREC_WINDOW_SECONDS`")),
        ("vector-db", ("`embedded:`", "VECTOR_DB_HOST")),
    ],
)
def test_defaults_and_variables_are_shown(option: str, cells: tuple[str, ...]) -> None:
    stream = (DOCS / "options.md").read_text().split("\n## stream\n", 1)[1].split("\n## ", 1)[0]
    (row,) = (line for line in stream.splitlines() if f"| `--{option}` |" in line)
    for cell in cells:
        assert cell in row


def test_every_setting_with_a_variable_belongs_to_some_verb() -> None:
    text = (DOCS / "options.md").read_text()
    for name in SETTINGS:
        assert f"`--{name.replace('_', '-')}`" in text or name == "home", name
