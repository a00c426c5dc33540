"""Runs: every recorded verb leaves `HOME/runs/<id>/` with `run.json` (state, counts) and `log`.

`run.json` is replaced atomically, so a reader never sees half of it. A process that is killed cannot say
so: a RUNNING record whose process is gone is shown as FAILED.
"""

import dataclasses
import datetime
import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from beamrec.io.processes import process_start
from beamrec.schemas.errors import UsageError

__all__ = ["KILLED", "Run", "RunRecord", "list_runs", "load_run", "start_run"]

State = Literal["RUNNING", "SUCCEEDED", "FAILED"]

KILLED = "killed: its process is gone and left no result"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`.

    Attributes:
      id: verb, UTC start time and a random tail; sorts by time within a verb.
      argv: the verb's arguments; arguments with a secret are refused before a run starts.
      host, pid, pid_start: the process; `pid_start` tells it from a later one with the same pid.
      started, ended: RFC 3339, UTC.
      counts: records by fate, as far as known (of a run in progress: so far).
      metrics: rate, latencies and the like of a stream, over its last minute.
      result: what the verb returned.
      error: one line, no secrets.
    """

    id: str
    verb: str
    argv: tuple[str, ...]
    host: str
    pid: int
    pid_start: str | None
    state: State
    started: str
    ended: str | None = None
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Whether the record says RUNNING and its process, on this host, is gone."""
        if self.state != "RUNNING" or self.host != socket.gethostname():
            return False
        start = process_start(self.pid)
        return start is None or start != self.pid_start

    @property
    def detail(self) -> str:
        """One line for people: the error, else what was done with which release, and the counts."""
        if self.error:
            return self.error
        release = self.result.get("release")
        action = self.argv[0] if self.verb == "release" and self.argv else ""
        done = " ".join(word for word in (action, release if isinstance(release, str) else "") if word)
        return ", ".join([*([done] if done else []), *(f"{name} {n}" for name, n in self.counts.items())])

    def settled(self) -> "RunRecord":
        """The record as it is to be shown: a lost run is FAILED."""
        return dataclasses.replace(self, state="FAILED", error=KILLED) if self.lost else self


@dataclasses.dataclass
class Run:
    """A run in progress, owned by the process that started it."""

    folder: Path
    record: RunRecord

    @property
    def log(self) -> Path:
        """File that everything logged goes to."""
        return self.folder / "log"

    def update(self, counts: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> None:
        """Replaces the counts so far, and the metrics if there are any."""
        self._write(counts=dict(counts), metrics=dict(metrics or self.record.metrics))

    def finish(self, state: State, result: Mapping[str, Any] | None = None, error: str | None = None) -> None:
        """Writes the final state. The counts are the stage counts of `result`, where it has them."""
        result = dict(result or {})
        counts = _counts(result) or self.record.counts
        self._write(state=state, ended=_now(), result=result, counts=counts, error=error)

    def _write(self, **changes: Any) -> None:
        self.record = dataclasses.replace(self.record, **changes)
        text = json.dumps(dataclasses.asdict(self.record), indent=2, ensure_ascii=False, default=str)
        temporary = self.folder / f".run.json.{os.getpid()}"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.folder / "run.json")


def _counts(result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("in", "out", "dead_letters", "duplicates", "expired")
    if isinstance(result.get("stages"), Mapping):
        stages = {name: _counts(stage) for name, stage in result["stages"].items()}
        return {name: counts for name, counts in stages.items() if counts}
    return {name: result[name] for name in names if name in result}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def start_run(home: Path, verb: str, argv: Sequence[str]) -> Run:
    """Makes the folder of a new run and records it as RUNNING.

    Raises:
      UsageError: the home cannot be written.
    """
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    run_id = f"{verb}-{stamp}-{secrets.token_hex(2)}"
    folder = home / "runs" / run_id
    try:
        folder.mkdir(parents=True)
        run = Run(
            folder,
            RunRecord(
                id=run_id,
                verb=verb,
                argv=tuple(argv),
                host=socket.gethostname(),
                pid=os.getpid(),
                pid_start=process_start(os.getpid()),
                state="RUNNING",
                started=_now(),
            ),
        )
        run.update({})
        run.log.touch()
    except OSError as error:
        raise UsageError(
            f"--home {home}: cannot be written ({error.strerror}); give another --home or set BEAMREC_HOME"
        ) from None
    return run


def load_run(home: Path, run_id: str) -> RunRecord:
    """The record of one run, settled.

    Raises:
      UsageError: there is no such run, or its record cannot be read.
    """
    path = home / "runs" / run_id / "run.json"
    if "/" in run_id or not path.is_file():
        raise UsageError(f"there is no run {run_id!r} under {home / 'runs'}; `beamrec runs list` shows them")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(**{**values, "argv": tuple(values["argv"])}).settled()
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: not a record of a run: {error}") from None


def list_runs(home: Path) -> list[RunRecord]:
    """All runs under `home`, newest first; folders without a readable record are left out."""
    records = []
    for path in (home / "runs").glob("*/run.json"):
        try:
            records.append(load_run(home, path.parent.name))
        except UsageError:
            continue
    return sorted(records, key=lambda record: (record.started, record.id), reverse=True)
