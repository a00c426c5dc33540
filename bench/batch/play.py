"""One contest: its content is compared first, then its entries run in turns."""

import dataclasses
import datetime as dt
import os
import shutil
import sys
from pathlib import Path

from content import Content, fingerprint, first_difference
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
        """Holds the content of each entry against ours, unless that was done with the same code."""
        for shop in dict.fromkeys(entry.shop for entry in contest.entries):
            ours = Entry(OURS, shop)
            self._remove(ours)
            if self._checked(ours) is None:
                self._check_ours(contest, ours)
            for entry in contest.entries:
                if entry.shop == shop and self._checked(entry) is None:
                    self._check_peer(contest, entry, ours)
            self._remove(ours)

    def _check_ours(self, contest: Contest, ours: Entry) -> None:
        measurement = self._run(contest, ours)
        content = fingerprint(self._lake(ours))
        if content.rows != ours.shop.ratings:
            wanted = f"{ours.shop.database}: expected {ours.shop.ratings:,} rows"
            raise SystemExit(f"{contest.name}: {wanted}, got {content.rows:,}")
        self._record("check", contest, ours, measurement, content)

    def _check_peer(self, contest: Contest, entry: Entry, ours: Entry) -> None:
        if not self._output(ours).exists():
            self._check_ours(contest, ours)
        measurement = self._run(contest, entry)
        difference = first_difference(self._lake(ours), self._lake(entry), entry.shop.ratings)
        if difference:
            raise SystemExit(f"{contest.name}: {entry.system} on {entry.shop.database}: {difference}")
        content = fingerprint(self._lake(entry))
        if content != fingerprint(self._lake(ours)):
            raise SystemExit(f"{contest.name}: {entry.system}: equal rows, but other hashes than beamrec's")
        self._remove(entry)
        self._record("check", contest, entry, measurement, content)

    def _checked(self, entry: Entry) -> Content | None:
        """The content that was compared, if neither its code nor our content changed since."""
        contents = []
        for system in (OURS, entry.system):
            record = self.results.check(Entry(system, entry.shop), SYSTEMS[system].code)
            contents.append(Content(record["rows"], record["fingerprint"]) if record else None)
        return contents[1] if contents[0] == contents[1] else None

    def _timed_run(self, contest: Contest, entry: Entry, number: int) -> None:
        checked = self._checked(entry)
        if checked is None:
            raise SystemExit(
                f"the sources of {entry.system} or beamrec changed during the bench; run it again"
            )
        measurement = self._run(contest, entry)
        content = fingerprint(self._lake(entry))
        self._remove(entry)
        if content != checked:
            raise SystemExit(
                f"{contest.name}: {entry.system}, round {number}: other content than when compared"
            )
        self._record("run", contest, entry, measurement, content, number)

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
        self,
        kind: str,
        contest: Contest,
        entry: Entry,
        measurement: Measurement,
        content: Content,
        number: int | None = None,
    ) -> None:
        record = {
            "kind": kind,
            "contest": contest.name,
            "system": entry.system,
            "shop": entry.shop.database,
            "round": number,
            "code": SYSTEMS[entry.system].code,
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        self.results.append(record | dataclasses.asdict(measurement) | dataclasses.asdict(content))

    def _output(self, entry: Entry) -> Path:
        return self.work / f"output-{entry.system}"

    def _lake(self, entry: Entry) -> Path:
        return self._output(entry) / SYSTEMS[entry.system].lake

    def _remove(self, entry: Entry) -> None:
        output = self._output(entry)
        for folder in (output, output.with_name(f"{output.name}-home")):
            if folder.exists():
                shutil.rmtree(folder)
