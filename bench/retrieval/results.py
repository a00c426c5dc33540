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

__all__ = ["Key", "Results", "describe_machine"]

Record = dict[str, Any]
Key = dict[str, Any]
_ROOT = Path(__file__).resolve().parents[2]


class Results:
    """The records of one file; of those with one key and round the last one counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, newline, cut = text.rpartition("\n")
        if cut:  # a kill came while it was written
            path.write_text(whole + newline, encoding="utf-8")
        self._records: list[Record] = [json.loads(line) for line in whole.splitlines()]

    def append(self, record: Record) -> None:
        """Adds one, on disk before it returns."""
        self._records.append(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")

    def rounds(self, key: Key, system: str) -> list[Record]:
        """The rounds of a system in a contest, in order."""
        wanted = {**key, "system": system}
        found = {r["round"]: r for r in self._records if wanted.items() <= r.items() and "round" in r}
        return [found[number] for number in sorted(found)]

    def median(self, key: Key, system: str, figure: str) -> float | None:
        """Median of a figure over the rounds; None if there are none."""
        values = [record[figure] for record in self.rounds(key, system)]
        return statistics.median(values) if values else None

    def keys(self, contest: str, names: tuple[str, ...]) -> list[Key]:
        """The contests of a kind that have rounds, in the order in which they were begun."""
        found: list[Key] = []
        for record in self._records:
            if record.get("contest") == contest:
                key = {"contest": contest, **{name: record[name] for name in names}}
                if key not in found:
                    found.append(key)
        return found

    def machine(self) -> Record:
        """What the newest rounds ran on."""
        return next((r for r in reversed(self._records) if r.get("kind_of") == "machine"), {})


def describe_machine(uri: str) -> Record:
    """Hardware, versions and the commit."""
    import psycopg

    with psycopg.connect(uri) as connection:
        server = connection.execute("SHOW server_version").fetchone()
        extension = connection.execute(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, check=False, capture_output=True, text=True).stdout  # noqa: S603
    return {
        "kind_of": "machine",
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "database": f"PostgreSQL {server[0] if server else ''}, pgvector {extension[0] if extension else ''}",
        "libraries": ", ".join(
            f"{name} {version(name)}" for name in ("numpy", "pyarrow", "psycopg2-binary", "psycopg")
        ),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit.strip(),
    }
