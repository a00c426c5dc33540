"""The flex templates: parameters that the code has, and a launcher that hands them on."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from beamrec.pipelines.arguments import flag_name, leaf_parsers
from beamrec.pipelines.commands import load

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "dataflow"
# What a launch cannot do without: everything that has no default that a worker could use.
NEEDED = {
    "stream": {"verb", "input", "output", "vector_db", "vector_db_secret", "sdk_container_image"},
    "batch": {"verb", "source", "source_secret", "output", "sdk_container_image"},
}
EXAMPLES = {
    "stream": {
        "verb": "stream",
        "input": "kinesis://clicks?region=eu-west-1",
        "output": "gs://shop-lake/recommendations",
        "vector_db": "postgresql://beamrec@db.internal/shop",
        "vector_db_secret": "gcp-secretmanager://projects/p/secrets/s",
        "window_seconds": "60",
        "sdk_container_image": "example/beamrec-worker:1",
    },
    "batch": {
        "verb": "batch",
        "source": "mysql://beamrec@db.internal/shop",
        "source_secret": "gcp-secretmanager://projects/p/secrets/s",
        "output": "gs://shop-lake/training",
        "max_bad_fraction": "0.05",
        "sdk_container_image": "example/beamrec-worker:1",
    },
}
# As Dataflow's launcher adds them.
OF_THE_LAUNCHER = (
    "--runner=DataflowRunner",
    "--project=shop-project",
    "--region=europe-west1",
    "--job_name=clicks",
    "--temp_location=gs://temp/tmp",
    "--template_location=gs://temp/staging/template_launches/1/job_object",
)


def parameters(verb: str) -> dict[str, dict[str, Any]]:
    listed = json.loads((DEPLOY / f"{verb}.json").read_text())["parameters"]
    assert len({entry["name"] for entry in listed}) == len(listed)
    return {entry["name"]: entry for entry in listed}


def flags(verb: str) -> dict[str, str]:
    """Options of a verb, ours and Beam's, by the name behind the dashes."""
    [parser] = leaf_parsers(load(verb).parser()).values()
    return {flag_name(flag): flag for flag in parser._option_string_actions}


def launcher() -> Any:
    spec = importlib.util.spec_from_file_location("launch", DEPLOY / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("verb", ["stream", "batch"])
def test_every_parameter_is_an_option_and_what_is_needed_is_asked_for(verb: str) -> None:
    found = parameters(verb)
    assert found.keys() - {"verb"} <= flags(verb).keys()
    assert {name for name, entry in found.items() if not entry.get("isOptional")} == NEEDED[verb]
    for name, entry in found.items():
        assert re.fullmatch(r"[a-z][a-z_]*", name)
        assert entry["label"]
        assert entry["helpText"]


@pytest.mark.parametrize("verb", ["stream", "batch"])
def test_the_patterns_take_what_is_right(verb: str) -> None:
    for name, value in EXAMPLES[verb].items():
        for pattern in parameters(verb)[name].get("regexes", ()):
            assert re.fullmatch(pattern, value), name


@pytest.mark.parametrize(
    ("verb", "name", "value"),
    [
        ("stream", "vector_db", "postgresql://beamrec:hunter2@db.internal/shop"),
        ("stream", "vector_db", "embedded:"),
        ("stream", "vector_db_secret", "env:PASSWORD"),
        ("stream", "input", "/data/clicks"),
        ("stream", "output", "out"),
        ("stream", "verb", "batch"),
        ("batch", "source", "sqlite:///shop.db"),
        ("batch", "source", "mysql://beamrec:hunter2@db.internal/shop"),
        ("batch", "max_bad_fraction", "5 %"),
    ],
)
def test_the_patterns_refuse_what_no_worker_can_use(verb: str, name: str, value: str) -> None:
    assert not all(re.fullmatch(pattern, value) for pattern in parameters(verb)[name]["regexes"])


@pytest.mark.parametrize("verb", ["stream", "batch"])
def test_the_launcher_hands_them_on_as_our_options(verb: str) -> None:
    given = [f"--{name}={value}" for name, value in EXAMPLES[verb].items()]
    ours, *argv = launcher().arguments([*given, *OF_THE_LAUNCHER])
    [parser] = leaf_parsers(load(verb).parser()).values()
    values = vars(parser.parse_args(argv))
    assert ours == verb
    assert values["runner"] == "dataflow"
    for name, value in EXAMPLES[verb].items():
        assert name == "verb" or str(values[name]) == value
    assert values["template_location"].endswith("/job_object")


def test_a_launch_that_names_no_pipeline_says_so() -> None:
    with pytest.raises(SystemExit, match="the parameter `verb`: expected one of batch, stream, got 'train'"):
        launcher().arguments(["--verb=train"])


@pytest.mark.parametrize("verb", ["stream", "batch"])
def test_a_template_says_whether_its_input_ends(verb: str) -> None:
    assert json.loads((DEPLOY / f"{verb}.json").read_text()).get("streaming", False) is (verb == "stream")
