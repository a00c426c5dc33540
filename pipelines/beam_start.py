"""Imports Beam without the clients of systems that a run on this machine does not speak to.

`import apache_beam` loads BigQuery, Pub/Sub, Cloud Storage, Dataflow, S3, MongoDB and pandas where they are
installed: 4.1 s on two cores, 1.2 s without them, which for a shop of 5 M ratings is a fifth of the run.
Beam takes each as optional, and goes on where it is absent.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib.abc import MetaPathFinder

from beamrec.pipelines.arguments import flag_name

__all__ = ["import_beam", "stays_here"]

# Beam's own modules first: imported later, they register themselves as ever.
_OPTIONAL = (
    "apache_beam.io.gcp.bigquery",  # and, in the same `try`, Pub/Sub and the cross-language sources
    "apache_beam.io.gcp.gcsfilesystem",
    "apache_beam.io.aws.s3filesystem",
    "apache_beam.io.azure.blobstoragefilesystem",
    "apache_beam.io.hadoopfilesystem",
    "apitools",
    "google.cloud.dataflow",
    "google.cloud.dataflow_v1beta3",
    "pandas",
    "pymongo",
)
_HERE = {"direct", "prism"}
_CLOUD = re.compile(r"(?<![a-z0-9])(gs|s3|hdfs|azfs)://")


def stays_here(argv: Sequence[str]) -> bool:
    """Whether a command runs in this process or beside it, and names no file system of Beam's."""
    for at, word in enumerate(argv):
        if word.startswith("--") and flag_name(word) == "runner":
            value = word.split("=", 1)[1] if "=" in word else "".join(argv[at + 1 : at + 2])
            if value not in _HERE:
                return False
    return not any(_CLOUD.search(word) for word in argv)


def import_beam(argv: Sequence[str]) -> None:
    """Imports Beam for the command `argv`: whole, or without what it cannot need (`stays_here`)."""
    if "apache_beam" in sys.modules or not stays_here(argv):
        return
    with _absent(_OPTIONAL):
        import apache_beam  # noqa: F401
        import pyarrow as pa

        pa.array(())  # looks for pandas once; `to_pandas` looks again


class _Absent(MetaPathFinder):
    """Answers as if some packages were not installed."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """None, which leaves the name to the next finder."""
        if fullname in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@contextlib.contextmanager
def _absent(names: Collection[str]) -> Iterator[None]:
    """`import` finds none of `names` within, unless it was imported before."""
    finder, level = _Absent(names), logging.root.manager.disable
    sys.meta_path.insert(0, finder)
    logging.disable(logging.WARNING)  # MongoDB's module complains
    try:
        yield
    finally:
        logging.disable(level)
        sys.meta_path.remove(finder)
