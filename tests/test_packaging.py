"""The project as others get it: wheel, sdist, editable install, and what Beam stages for its workers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from ports_fixtures import free_port

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("schemas", "transforms", "model", "io", "runners", "pipelines")
BUILD_FILES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "requirements.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)

# Imports every module below `beamrec`, each of which must come from the folder given.
IMPORT_ALL = """
import importlib, io, pathlib, pkgutil, sys
import beamrec
home = pathlib.Path(sys.argv[1])
def walk(paths, prefix):
    for module in pkgutil.iter_modules(paths, prefix):
        yield module.name
        if module.ispkg:
            yield from walk(importlib.import_module(module.name).__path__, module.name + ".")
names = []
for folder in sys.argv[2].split(","):
    names += [f"beamrec.{folder}", *walk([str(home / "beamrec" / folder)], f"beamrec.{folder}.")]
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(home), (name, module.__file__)
assert list(map(pathlib.Path, beamrec.__path__)) == [home / "beamrec"], beamrec.__path__
assert hasattr(io, "TextIOWrapper"), "the standard library's io is the only `io`"
print(len(names))
"""


# Runs a pipeline on the worker pool given, whose stage says where it finds our modules.
LOCATE = """
import sys
import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.environments import ExternalEnvironment
address, installed, *modules = sys.argv[1:]
code = ["__import__('importlib').import_module('beamrec." + name + "').__file__" for name in modules]
with beam.Pipeline(runner=FnApiRunner(default_environment=ExternalEnvironment(address))) as pipeline:
    found = pipeline | beam.Create(code) | beam.Map(eval)
    assert_that(found, equal_to([f"{installed}/beamrec/{name.replace('.', '/')}.py" for name in modules]))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources alone: a `build/` left in the working folder would end up in a wheel."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from a checkout."""
    return _build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def staged(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist that Beam itself builds for `--setup_file=…/setup.py` and sends to its workers."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.portability.api import beam_runner_api_pb2 as api
    from apache_beam.runners.portability.stager import Stager

    folder = tmp_path_factory.mktemp("staged")
    options = PipelineOptions([f"--setup_file={checkout / 'setup.py'}"])
    resources = Stager.create_job_resources(options, str(folder))
    paths = [api.ArtifactFilePayload.FromString(resource.type_payload).path for resource in resources]
    [sdist] = [path for path in paths if path.endswith(".tar.gz")]
    return Path(sdist)


def _run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _pip(*arguments: str, cwd: Path) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments, cwd=cwd)


def _build_wheel(source: Path, target: Path) -> Path:
    _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={target}", str(source), cwd=target)
    [built] = target.glob("*.whl")
    return built


def _install(package: Path, target: Path) -> Path:
    """Installs it alone, as a Beam worker does with what was staged, into a folder outside the venv."""
    _pip(
        "install",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        f"--target={target}",
        str(package),
        cwd=target,
    )
    return target


def _import_all(installed: Path, folders: Sequence[str] = FOLDERS) -> int:
    """Imports from `installed`; `-S` leaves out the hooks of the venv's own editable install."""
    paths = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    out = _run(
        sys.executable,
        "-S",
        "-P",
        "-c",
        IMPORT_ALL,
        str(installed),
        ",".join(folders),
        cwd=ROOT,
        PYTHONPATH=paths,
    )
    return int(out.splitlines()[-1])


def _modules(names: Sequence[str]) -> set[str]:
    return {name for name in names if name.startswith("beamrec/")}


def test_a_wheel_holds_every_module_and_nothing_at_the_top_but_beamrec(wheel: Path, checkout: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {
        f"beamrec/{path.relative_to(checkout)}"
        for folder in FOLDERS
        for pattern in ("*.py", "py.typed")
        for path in (checkout / folder).rglob(pattern)
    }
    assert _modules(names) == sources
    assert {name.split("/")[0].split("-")[0] for name in names} == {"beamrec"}
    assert "beamrec/__init__.py" not in names, "a namespace (PEP 420)"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_module_can_be_imported_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    assert _import_all(_install(wheel, tmp_path)) > 50


def test_the_command_of_a_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    installed = _install(wheel, tmp_path)
    paths = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    shown = _run(
        sys.executable, "-S", str(installed / "bin" / "beamrec"), "--version", cwd=tmp_path, PYTHONPATH=paths
    )
    [version] = [d.version for d in metadata.distributions(path=[str(installed)])]
    assert shown == f"beamrec {version}\n"


def test_what_beam_stages_holds_all_that_a_worker_builds_from(staged: Path, checkout: Path) -> None:
    with tarfile.open(staged) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {*BUILD_FILES, "schemas/version.py", "pipelines/commands/__init__.py", "io/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests/") or name.endswith(".pyc")]


def test_an_sdist_gives_the_same_package_as_a_checkout(staged: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(staged, tmp_path / "sdist")
    [unpacked] = (tmp_path / "sdist").iterdir()
    rebuilt = _build_wheel(unpacked, tmp_path)
    ours, theirs = zipfile.ZipFile(wheel), zipfile.ZipFile(rebuilt)
    assert _modules(theirs.namelist()) == _modules(ours.namelist())
    for name in _modules(ours.namelist()):
        assert theirs.read(name) == ours.read(name), name


@pytest.fixture
def worker_pool(staged: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Beam worker pool in which `beamrec` is what was staged; its address and where that is installed."""
    installed = _install(staged, tmp_path)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"],
        cwd=tmp_path,
        # The pool starts its workers as `python`, whichever is first on the path.
        env={**os.environ, "PYTHONPATH": str(installed), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait_for_port(port, process)
        yield f"localhost:{port}", installed
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "the worker pool did not start"
            assert time.monotonic() < deadline, "the worker pool does not answer"
            time.sleep(0.1)


def test_a_worker_runs_what_beam_staged(worker_pool: tuple[str, Path]) -> None:
    address, installed = worker_pool
    modules = ("io.registry", "transforms.coders", "schemas.shop", "pipelines.cli")
    # In a process of its own: a runner whose worker has died waits for ever.
    _run(sys.executable, "-c", LOCATE, address, str(installed), *modules, cwd=installed)


def test_an_editable_install_is_this_checkout() -> None:
    code = "import beamrec.io, beamrec.pipelines.commands as c; print(beamrec.io.__file__); print(c.__file__)"
    shown = _run(sys.executable, "-c", code, cwd=Path(sys.prefix))
    assert shown.splitlines() == [str(ROOT / "io/__init__.py"), str(ROOT / "pipelines/commands/__init__.py")]


def test_metadata_says_what_is_needed(wheel: Path, tmp_path: Path) -> None:
    [found] = metadata.distributions(path=[str(_install(wheel, tmp_path))])
    assert found.metadata["Requires-Python"] in ("<3.12,>=3.11", ">=3.11,<3.12")
    assert found.metadata["License-Expression"] == "Apache-2.0"
    [script] = found.entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("beamrec", "beamrec.pipelines.cli:entry")
    needed = {line.split("[")[0].split("=")[0] for line in found.requires or []}
    asked = {
        "apache-beam",
        "pymysql",
        "psycopg2-binary",
        "pgvector",
        "tensorflow",
        "tensorflow-transform",
        "numpy",
    }
    assert asked <= needed


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_requirement_is_locked_with_hashes_and_no_index(name: str) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = (ROOT / f"{name}.lock").read_text()
    assert "://" not in lock, "whoever installs chooses the index"
    entries = lock.replace("\\\n", " ").splitlines()
    pinned = {e.split("==")[0].split("[")[0] for e in entries if "==" in e and not e.lstrip().startswith("#")}
    for entry in entries:
        if entry and not entry.lstrip().startswith("#"):
            assert "--hash=sha256:" in entry, entry
    asked = [line for line in (ROOT / f"{name}.in").read_text().splitlines() if line and line[0] not in "#-"]
    assert {canonicalize_name(Requirement(line).name) for line in asked} <= pinned
