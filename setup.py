"""Maps the top-level folders to subpackages of the PEP 420 namespace `beamrec`.

A bare top-level package `io` would lose to the standard library, so nothing is imported by its
folder name: always `from beamrec.io import …`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOLDERS = ("schemas", "transforms", "model", "io", "runners", "pipelines")
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "schemas" / "version.py").read_text()).group(1)


def _requirements() -> list[str]:
    lines = (ROOT / "requirements.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(
    name="beamrec",
    version=VERSION,
    package_dir={f"beamrec.{folder}": folder for folder in FOLDERS},
    packages=[
        name
        for folder in FOLDERS
        for name in [
            f"beamrec.{folder}",
            *(f"beamrec.{folder}.{sub}" for sub in find_packages(str(ROOT / folder))),
        ]
    ],
    install_requires=_requirements(),
)
