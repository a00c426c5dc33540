"""Who runs: beamrec and its peers, each a command that reads one database and writes one folder."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from peers_setup import PEER_PYTHON, jars
from server import Server

__all__ = ["OURS", "SYSTEMS", "System"]

_BATCH = Path(__file__).resolve().parent
_ROOT = _BATCH.parents[1]
_PEERS = _BATCH / "peers"
_OUR_FOLDERS = ("schemas", "transforms", "io", "runners", "pipelines")

_Command = Callable[[Server, str, Path], list[str]]


@dataclasses.dataclass(frozen=True)
class System:
    """One competitor.

    Attributes:
      name: short name, as in the results.
      title: what the report calls it.
      command: (server, database, output folder) → command line.
      sources: files and folders that decide what it does; results of older ones do not count.
      lake: the folder of the partitions, below the output.
      timeout_seconds: it is killed after so long.
    """

    name: str
    title: str
    command: _Command
    sources: tuple[Path, ...]
    lake: str = "."
    timeout_seconds: float = 1_800

    @property
    def code(self) -> str:
        """Digest of its sources: 12 hex digits."""
        digest = hashlib.sha256()
        for source in self.sources:
            for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
                digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]


def _beamrec(server: Server, database: str, output: Path) -> list[str]:
    program = Path(sys.executable).parent / "beamrec"
    # The home too is new each time: the list of runs must not grow from one to the next.
    home = output.with_name(f"{output.name}-home")
    return [
        str(program),
        "batch",
        f"--home={home}",
        f"--source={server.uri(database)}",
        f"--output={output}",
    ]


def _peer(script: str, *extra: str, python: str = str(PEER_PYTHON)) -> _Command:
    def command(server: Server, database: str, output: Path) -> list[str]:
        where = [f"--port={server.port}", f"--database={database}", f"--output={output}"]
        return [python, str(_PEERS / script), *where, *extra]

    return command


def _script(name: str) -> tuple[Path, ...]:
    return (_PEERS / name, _ROOT / "bench" / "requirements.lock")


OURS = "beamrec"
_SPARK_JARS = f"--jars={':'.join(map(str, jars()))}"

SYSTEMS = {
    system.name: system
    for system in (
        System(
            OURS,
            "beamrec batch",
            _beamrec,
            (*(_ROOT / folder for folder in _OUR_FOLDERS), _ROOT / "requirements.lock"),
            lake="ratings_ml_training",
        ),
        System(
            "connectorx_duckdb",
            "connectorx, DuckDB join and PARTITION_BY",
            _peer("connectorx_duckdb.py"),
            _script("connectorx_duckdb.py"),
        ),
        System(
            "pyspark",
            "PySpark local[2], JDBC, SQL join",
            _peer("pyspark_jdbc.py", _SPARK_JARS),
            (*_script("pyspark_jdbc.py"), _BATCH / "peers_setup.py"),
        ),
        System(
            "pyspark_tuned",
            "PySpark local[2], JDBC, tuned",
            _peer("pyspark_jdbc.py", _SPARK_JARS, "--tuned"),
            (*_script("pyspark_jdbc.py"), _BATCH / "peers_setup.py"),
        ),
        System(
            "reference",
            "the database's own join",
            _peer("reference.py"),
            _script("reference.py"),
        ),
        System(
            "beam_dicts",
            "plain Beam, dicts and CoGroupByKey",
            _peer("beam_dicts.py", python=sys.executable),
            (_PEERS / "beam_dicts.py", _ROOT / "requirements.lock"),
        ),
    )
}
