"""One contest: its content is compared first, then its entries run in turns."""

import dataclasses
import datetime as dt
import os
import shutil
import sys
from pathlib import Path

from content import fingerprint, first_difference
from contests import Contest, Entry
from measure import Measurement, measure
from results import Results
from server import Server
from systems import OURS, SYSTEMS

__all__ = ["Bench"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the runs take place.

    Attributes:
      server: the database server.
      work: folder for outputs and logs; outputs are removed again.
      results: what is there already is not run again.
    """

    server: Server
    work: Path
    results: Results

    def play(self, contest: Contest, rounds: int) -> None:
        """Compares the contents, then runs every entry `rounds` times in turns.

        Raises:
          SystemExit: a peer's content differs from ours, or a timed run's from the one compared.
          FailedError: a process failed.
        """
        self.compare(contest)
        for number in range(rounds):
            for entry in contest.entries:
                done = self.results.runs(contest.name, entry, SYSTEMS[entry.system].code)
                if entry.timed and not any(record["round"] == number for record in done):
                    self._timed_run(contest, entry, number)

    def compare(self, contest: Contest) -> None:
        """Runs each entry once, ours first on each shop, and holds its content against ours."""
        for shop in dict.fromkeys(entry.shop for entry in contest.entries):
            entries = [entry for entry in contest.entries if entry.shop == shop]
            if all(self._checked(contest, entry) for entry in entries):
                continue
            ours = Entry(OURS, shop)
            for entry in (ours, *(entry for entry in entries if entry.system != OURS)):
                self._check(contest, entry, ours)
            self._remove(ours)

    def _check(self, contest: Contest, entry: Entry, ours: Entry) -> None:
        measurement = self._run(contest, entry)
        content = fingerprint(self._lake(entry))
        difference = None
        if entry != ours:
            difference = first_difference(self._lake(ours), self._lake(entry))
            self._remove(entry)
        if difference:
            raise SystemExit(f"{contest.name}: {entry.system} on {entry.shop.database}: {difference}")
        if content.rows != entry.shop.ratings:
            raise SystemExit(
                f"{contest.name}: {entry.system}: expected {entry.shop.ratings:,} rows, got {content.rows:,}"
            )
        self._record(
            "check", contest, entry, measurement, ours=SYSTEMS[OURS].code, **dataclasses.asdict(content)
        )

    def _timed_run(self, contest: Contest, entry: Entry, number: int) -> None:
        checked = self._checked(contest, entry)
        if checked is None:
            raise SystemExit(
                f"{contest.name}: the sources of {entry.system} changed during the bench; run it again"
            )
        measurement = self._run(contest, entry)
        content = dataclasses.asdict(fingerprint(self._lake(entry)))
        self._remove(entry)
        if any(checked[name] != value for name, value in content.items()):
            raise SystemExit(
                f"{contest.name}: {entry.system}, round {number}: other content than when compared"
            )
        self._record("run", contest, entry, measurement, round=number, **content)

    def _checked(self, contest: Contest, entry: Entry) -> "dict[str, object] | None":
        return self.results.check(contest.name, entry, (SYSTEMS[entry.system].code, SYSTEMS[OURS].code))

    def _run(self, contest: Contest, entry: Entry) -> Measurement:
        """A run on a new output folder, its tables in the server's memory and the disk quiet."""
        system = SYSTEMS[entry.system]
        self._remove(entry)
        self.work.mkdir(parents=True, exist_ok=True)
        for table in ("customers", "products", "ratings"):
            self.server.execute(f"SELECT COUNT(*) FROM {entry.shop.database}.{table}")  # noqa: S608
        os.sync()
        command = system.command(self.server, entry.shop.database, self._output(entry))
        print(
            f"{contest.name}: {entry.system} on {entry.shop.database} …", end=" ", file=sys.stderr, flush=True
        )
        measurement = measure(
            command, self.work, self.work / f"{entry.system}.log", os.environ, system.timeout_seconds
        )
        print(f"{measurement.seconds:.1f} s, {measurement.peak_bytes / 2**20:,.0f} MiB", file=sys.stderr)
        return measurement

    def _record(
        self, kind: str, contest: Contest, entry: Entry, measurement: Measurement, **more: object
    ) -> None:
        record = {
            "kind": kind,
            "contest": contest.name,
            "system": entry.system,
            "shop": entry.shop.database,
            "code": SYSTEMS[entry.system].code,
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        self.results.append({**record, **dataclasses.asdict(measurement), **more})

    def _output(self, entry: Entry) -> Path:
        return self.work / f"output-{entry.system}"

    def _lake(self, entry: Entry) -> Path:
        return self._output(entry) / SYSTEMS[entry.system].lake

    def _remove(self, entry: Entry) -> None:
        output = self._output(entry)
        for folder in (output, output.with_name(f"{output.name}-home")):
            if folder.exists():
                shutil.rmtree(folder)
