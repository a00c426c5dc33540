"""The batch bench: `.venv/bin/python bench/batch/run.py`; see bench/README.md."""

import argparse
import sys
from pathlib import Path

from contests import CONTESTS, GOALS, SMALL_CONTESTS, Contest
from machine import describe_machine
from measure import FailedError
from peers_setup import install_peers
from play import Bench
from report import write_report
from results import Results
from server import serve
from shops import ensure_shop
from systems import OURS, SYSTEMS

_BENCH = Path(__file__).resolve().parents[1]
_WORK = _BENCH.parent / ".beamrec" / "bench"
_RESULTS = _BENCH / "results" / "batch.jsonl"


def main() -> None:
    """Makes the shops, runs the contests, writes the report."""
    values = _arguments()
    small = values.rows == "small"
    contests, goals = (SMALL_CONTESTS, ()) if small else (CONTESTS, GOALS)
    path = values.results or (values.work / "small.jsonl" if small else _RESULTS)
    if values.fresh:
        path.unlink(missing_ok=True)
    results = Results(path)
    if not values.report:
        _run(
            [_narrowed(contest, values.only) for contest in contests if _wanted(contest, values)],
            values,
            results,
        )
    page = write_report(
        results,
        contests,
        goals,
        path.with_suffix(".html"),
        _BENCH / "README.md" if path == _RESULTS else None,
    )
    print(page)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rows", choices=("full", "small"), default="full", help="small: a smoke run of two minutes")
    add("--runs", type=int, default=5, help="timed rounds of every contest")
    add("--only", choices=[name for name in SYSTEMS if name != OURS], help="this peer (and beamrec) only")
    add("--contest", choices=[contest.name for contest in CONTESTS], help="this contest only")
    add("--results", type=Path, help="JSON lines; rounds that stand there are not run again")
    add("--fresh", action="store_true", help="forget what stands in --results")
    add("--report", action="store_true", help="only write the report of what stands in --results")
    add("--work", type=Path, default=_WORK, help="folder for outputs and logs")
    add("--data-dir", type=Path, default=_WORK / "mariadb", help="the server's folder, kept and used again")
    return parser.parse_args()


def _wanted(contest: Contest, values: argparse.Namespace) -> bool:
    if values.contest and contest.name != values.contest:
        return False
    return values.only is None or any(
        entry.system == values.only and entry.timed for entry in contest.entries
    )


def _narrowed(contest: Contest, peer: str | None) -> Contest:
    entries = tuple(entry for entry in contest.entries if peer is None or entry.system in (OURS, peer))
    return Contest(contest.name, contest.title, entries)


def _run(contests: list[Contest], values: argparse.Namespace, results: Results) -> None:
    install_peers()
    with serve(values.data_dir.resolve()) as server:
        for shop in dict.fromkeys(entry.shop for contest in contests for entry in contest.entries):
            print(f"shop {shop.database} …", file=sys.stderr)
            ensure_shop(server, shop, values.data_dir.resolve() / "load")
        results.append(describe_machine(server))
        bench = Bench(server, values.work.resolve(), results)
        try:
            for contest in contests:
                bench.play(contest, values.runs)
        except FailedError as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
