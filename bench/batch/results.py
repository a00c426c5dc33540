"""What was measured, a JSON object a line, appended as it comes: a killed bench keeps what it has."""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contests import Entry, Goal

__all__ = ["Results", "Verdict", "judge"]

Record = dict[str, Any]


class Results:
    """The records of one file; those made by other code than the newest do not count."""

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

    def runs(self, contest: str, entry: Entry, code: str | None = None) -> list[Record]:
        """Timed runs of an entry; of the given code, else of the newest."""
        return self._of("run", code, contest=contest, system=entry.system, shop=entry.shop.database)

    def check(self, entry: Entry, code: str) -> Record | None:
        """The newest comparison of an entry's content with ours, made with its code."""
        found = self._of("check", code, system=entry.system, shop=entry.shop.database)
        return found[-1] if found else None

    def machine(self) -> Record:
        """What the newest runs ran on."""
        found = [record for record in self._records if record["kind"] == "machine"]
        return found[-1] if found else {}

    def _of(self, kind: str, code: str | None, **fields: str) -> list[Record]:
        wanted = {"kind": kind, **fields}
        found = [r for r in self._records if wanted.items() <= r.items()]
        code = code or (found[-1]["code"] if found else None)
        return [record for record in found if record["code"] == code]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A goal and what was reached; `values` are its figure round by round, where there is more than one."""

    goal: Goal
    reached: float
    values: tuple[float, ...]

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.reached <= self.goal.limit if self.goal.at_most else self.reached >= self.goal.limit


def judge(results: Results, goals: Iterable[Goal]) -> list[Verdict]:
    """The goals of which both sides have run; medians are divided, not medians of quotients taken."""
    verdicts = []
    for goal in goals:
        ours = results.runs(goal.contest, goal.entry)
        others = results.runs(goal.contest, goal.other) if goal.other else ours
        if ours and others:
            medians = [
                {name: statistics.median(r[name] for r in side) for name in ("seconds", "peak_bytes", "rows")}
                for side in (ours, others)
            ]
            rounds = [_figure(goal.kind, mine, other) for mine, other in zip(ours, others, strict=False)]
            verdicts.append(Verdict(goal, _figure(goal.kind, *medians), tuple(rounds)))
    return verdicts


def _figure(kind: str, entry: Record, other: Record) -> float:
    if kind == "speed":
        return other["seconds"] / entry["seconds"]
    if kind == "rate":
        return (entry["rows"] / entry["seconds"]) / (other["rows"] / other["seconds"])
    if kind == "memory":
        return entry["peak_bytes"] / other["peak_bytes"]
    return entry["peak_bytes"] / 2**30
