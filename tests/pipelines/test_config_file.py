"""`--config`: names as the flags, unknown ones refused, explicit flags win."""

import argparse
import tomllib
from pathlib import Path

import pytest

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.config_file import expand, read
from beamrec.schemas.errors import UsageError


def _stream() -> argparse.ArgumentParser:
    parser = VerbParser(prog="beamrec stream")
    parser.add_argument("--window-seconds", type=int, default=60)
    parser.add_argument("--prism_location")
    parser.add_argument("--tag", action="append", default=[])
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--fast", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--loud", action="store_true")
    return parser


def _release() -> argparse.ArgumentParser:
    parser = VerbParser(prog="beamrec release")
    verbs = parser.add_subparsers(dest="action", required=True)
    load = verbs.add_parser("load")
    load.add_argument("id")
    load.add_argument("--vector-db")
    verbs.add_parser("list").add_argument("--limit", type=int)
    return parser


PARSERS = {"stream": _stream, "release": _release}


def parse(toml: str, *argv: str, verb: str = "stream") -> dict[str, object]:
    """What the verb gets of a configuration file and a command line."""
    expanded = expand_argv(toml, *argv, verb=verb)
    return vars(PARSERS[verb]().parse_args(expanded))


def expand_argv(toml: str, *argv: str, verb: str = "stream") -> list[str]:
    """The arguments that the verb gets."""
    return expand(tomllib.loads(toml), "c.toml", verb, argv, list(PARSERS), lambda name: PARSERS[name]())


@pytest.mark.parametrize(
    "toml",
    [
        "window_seconds = 7",
        "[stream]\nwindow_seconds = 7",
        "window-seconds = 7",
        "window_seconds = 60\n[stream]\nwindow-seconds = 7",
    ],
)
def test_a_name_at_the_top_or_under_the_verb_is_the_flag(toml: str) -> None:
    assert parse(toml)["window_seconds"] == 7


def test_an_explicit_flag_wins() -> None:
    assert parse("window_seconds = 7", "--window-seconds=9")["window_seconds"] == 9
    assert parse('tag = ["a", "b"]', "--tag=c")["tag"] == ["c"], "lists do not add up"
    assert parse("fast = true", "--no-fast")["fast"] is False
    assert parse("fast = false", "--fast")["fast"] is True


def test_values_of_every_kind() -> None:
    toml = 'prism_location = "-x y=z"\ntag = ["a", "b"]\nnames = ["c", "d"]\nfast = false\nloud = true'
    assert parse(toml) == {
        "window_seconds": 60,
        "prism_location": "-x y=z",
        "tag": ["a", "b"],
        "names": ["c", "d"],
        "fast": False,
        "loud": True,
    }
    assert parse("loud = false\nnames = []")["loud"] is False


def test_a_subcommand_gets_its_flags_after_its_name() -> None:
    toml = '[release]\nvector_db = "a"\n[release.load]\nvector_db = "b"\n[release.list]\nlimit = 3'
    assert expand_argv(toml, "load", "id-1", verb="release") == ["load", "--vector-db=b", "id-1"]
    assert expand_argv(toml, "list", verb="release") == ["list", "--limit=3"]


def test_a_name_of_another_verb_is_passed_over() -> None:
    assert expand_argv("window_seconds = 7\nlimit = 3", "list", verb="release") == ["list", "--limit=3"]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("windw_seconds = 7", "no verb has an option 'windw_seconds'"),
        (
            "[stream]\nwindw_seconds = 7",
            r"\[stream\]: beamrec stream has no option 'windw_seconds' \(did you mean window_seconds\?\)",
        ),
        ("[stream]\nlimit = 7", "beamrec stream has no option 'limit'"),
        ("[straem]\nwindow_seconds = 7", r"\[straem\] is not a verb; known are stream, release"),
        ("loud = 3", "loud: expected true or false, got 3"),
        ("window_seconds = [1, 2]", "window_seconds: expected one value"),
        ("tag = [[1]]", "tag: expected a string, a number"),
    ],
)
def test_what_is_wrong_is_said(toml: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand_argv(toml)


def test_a_file_that_is_missing_or_no_toml_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(UsageError, match=r"bad\.toml: not valid TOML: .*line 1"):
        read(str(tmp_path / "bad.toml"))
