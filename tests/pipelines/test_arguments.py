"""What the verbs' `--help` says."""

import argparse

import pytest

from beamrec.pipelines.arguments import VerbParser, leaf_parsers
from beamrec.pipelines.commands import release, train

LEAVES = {**leaf_parsers(release.parser()), "train": train.parser()}


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def words(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_help().split())


@pytest.mark.parametrize(
    ("leaf", "texts"),
    [
        ("train", ["--dim DIM length of the vectors (default: 32)", "unit length (default: True)"]),
        ("promote", ["(default: recall_at_10)", "[fraction of it] (default: 0.1)"]),
        ("import", ["orders an item's neighbours (default: <->)"]),
        ("gc", ["[days] (default: 30)"]),
    ],
)
def test_help_shows_defaults(leaf: str, texts: list[str]) -> None:
    shown = words(LEAVES[leaf])
    assert [text for text in texts if text not in shown] == []


def test_an_option_without_a_default_shows_none() -> None:
    parser = VerbParser(prog="x")
    parser.add_argument("--file", help="a file")
    parser.add_argument("--force", action="store_true", help="a flag")
    parser.add_argument("--none-of", type=int, default=0, help="a number")
    shown = words(parser)
    assert "--file FILE a file --force a flag --none-of NONE_OF a number (default: 0)" in shown
