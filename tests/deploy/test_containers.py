"""The container files, as far as they can be tried without a container engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("deploy/worker/Dockerfile", "deploy/cli/Dockerfile", "deploy/dataflow/Dockerfile")
INSTALLING = FILES[:2]
FOLDERS = ("schemas", "transforms", "model", "io", "runners", "pipelines")


def instructions(file: str) -> list[tuple[str, str]]:
    """A container file's instructions: (name, arguments), with lines that go on joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


def values(file: str, name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions(file) if instruction == name]


def sources(file: str) -> list[tuple[list[str], str]]:
    """What is copied from the checkout, and to where."""
    copies = [copy.split() for copy in values(file, "COPY") if not copy.startswith("--from")]
    return [(copy[:-1], copy[-1]) for copy in copies]


@pytest.mark.parametrize("file", FILES)
def test_what_is_copied_is_there_and_nothing_but_what_is_named(file: str) -> None:
    copied = [path for paths, _ in sources(file) for path in paths]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path.strip("./"), "a whole checkout may hold data and keys"


@pytest.mark.parametrize("file", INSTALLING)
def test_base_images_are_official_ones_of_the_versions_that_the_project_is_locked_to(file: str) -> None:
    [name, image] = values(file, "ARG")[0].split("=", 1)
    assert values(file, "FROM") == [f"${{{name}}}"]
    [beam] = re.findall(r"^apache-beam\[.*\]==(.+)$", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert image in (f"apache/beam_python3.11_sdk:{beam}", "python:3.11-slim")


@pytest.mark.parametrize("file", INSTALLING)
def test_everything_is_installed_by_hash_or_from_the_sources(file: str) -> None:
    runs = values(file, "RUN")
    installs = [part for run in runs for part in run.split(" && ") if "pip install" in part]
    assert len(installs) == 2
    assert "--require-hashes -r /src/requirements.lock" in installs[0]
    assert "--no-deps" in installs[1]
    assert "--no-index" in installs[1]


@pytest.mark.parametrize("file", INSTALLING)
def test_it_runs_as_a_user_who_is_not_root(file: str) -> None:
    assert values(file, "USER") == ["10001"]
    names = [name for name, _ in instructions(file)]
    assert names.index("USER") > max(number for number, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_launcher_is_the_workers_image_with_another_entry_point() -> None:
    assert values(FILES[2], "FROM") == ["${LAUNCHER} AS launcher", "${WORKER}"]
    assert values(FILES[2], "USER") == []
    assert values(FILES[0], "ENTRYPOINT") == ['["/opt/apache/beam/boot"]']
    program = "/opt/google/dataflow/python_template_launcher"
    assert values(FILES[2], "ENTRYPOINT") == [f'["{program}"]']
    assert values(FILES[2], "COPY")[0] == f"--from=launcher {program} {program}"


@pytest.mark.parametrize("file", INSTALLING)
def test_no_secret_and_no_registry_is_written_into_an_image(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"password|secret|token|index-url|https?://", text, re.IGNORECASE)


def test_the_project_can_be_installed_from_what_is_copied(tmp_path: Path) -> None:
    """The image's own command, on the image's own files, with the build tools of the lock."""
    assert sources(FILES[0]) == sources(FILES[1])
    for paths, target in sources(FILES[0]):
        for path in paths:
            place = tmp_path / target.lstrip("/")
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(exist_ok=True)
                shutil.copy(ROOT / path, place)
    [install] = [
        part for run in values(FILES[0], "RUN") for part in run.split(" && ") if "--no-index" in part
    ]
    options = [word for word in install.split() if word.startswith("--")]
    command = [sys.executable, "-m", "pip", "install", *options, f"--target={tmp_path}/installed"]
    done = subprocess.run(
        [*command, str(tmp_path / "src")],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_NO_INPUT": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for folder in FOLDERS:
        found = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*.py")}
        installed = tmp_path / "installed" / "beamrec" / folder
        assert {p.relative_to(installed) for p in installed.rglob("*.py")} == found
