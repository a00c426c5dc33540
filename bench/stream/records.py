"""What was measured, a JSON object a line, appended as it comes: a killed bench keeps what it has."""

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beamrec.io.postgres import connect

__all__ = ["Record", "Records", "describe_machine"]

Record = dict[str, Any]
_ROOT = Path(__file__).resolve().parents[2]
_LIBRARIES = ("apache-beam", "pyarrow", "tensorflow", "confluent-kafka", "psycopg2-binary")


class Records:
    """The records of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._records: list[Record] = [json.loads(line) for line in text.splitlines()]

    def append(self, record: Record) -> None:
        """Adds one, on disk before it returns."""
        self._records.append(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")

    def find(self, key: Record) -> list[Record]:
        """Those that hold all of a key, in order."""
        return [record for record in self._records if key.items() <= record.items()]

    def has(self, key: Record) -> bool:
        """Whether there is one."""
        return bool(self.find(key))

    def last(self, key: Record) -> Record | None:
        """The newest one."""
        found = self.find(key)
        return found[-1] if found else None

    def median(self, key: Record, figure: str = "events_per_second") -> float | None:
        """Of a figure over the rounds."""
        found = [record[figure] for record in self.find(key)]
        return statistics.median(found) if found else None


def describe_machine(uri: str) -> Record:
    """Hardware, versions and the commit."""
    with connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
        )
        server, extension = cursor.fetchone()
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, check=False, capture_output=True, text=True).stdout  # noqa: S603
    return {
        "contest": "machine",
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "database": f"PostgreSQL {server}, pgvector {extension}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        "commit": commit.strip(),
    }
