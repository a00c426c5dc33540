"""Maps the top-level folders to subpackages of the PEP 420 namespace `beamrec`.

A bare top-level package `io` would lose to the standard library, so nothing is imported by its
folder name: always `from beamrec.io import …`. This is a `setup.py` because Beam's `--setup_file` builds the
project with it for remote workers.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOLDERS = ("schemas", "transforms", "model", "io", "runners", "pipelines")


def _version() -> str:
    text = (ROOT / "schemas" / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if not found:
        raise RuntimeError('schemas/version.py: expected a line `__version__ = "…"`')
    return found.group(1)


def _requirements() -> list[str]:
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _packages(folder: str) -> list[str]:
    return [f"beamrec.{folder}", *(f"beamrec.{folder}.{name}" for name in find_packages(str(ROOT / folder)))]


setup(
    name="beamrec",
    version=_version(),
    description="A unified batch and streaming recommender on Apache Beam, with pgvector",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.12",
    package_dir={f"beamrec.{folder}": folder for folder in FOLDERS},
    packages=[name for folder in FOLDERS for name in _packages(folder)],
    package_data={f"beamrec.{folder}": ["py.typed"] for folder in FOLDERS},
    install_requires=_requirements(),
    entry_points={"console_scripts": ["beamrec = beamrec.pipelines.cli:entry"]},
    zip_safe=False,
)
