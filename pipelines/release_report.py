"""`beamrec release report`: measures how a loaded release is best searched, on its own vectors."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import UsageError

if TYPE_CHECKING:
    from beamrec.schemas.search_report import SearchReport

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the action."""
    add = parser.add_argument
    add("release", metavar="RELEASE", nargs="?", help="id of the release; the active one")
    add("--recall", type=float, default=0.99, help="the least share of the best items to be found")
    add("--k", type=int, default=10, help="items a query")
    add("--queries", type=int, default=200, help="vectors of the release's users to look for")
    add("--batch", type=int, default=100, help="queries in a statement where throughput is measured")
    add("--seconds", type=float, default=5.0, help="for each pass over the queries, at most [s]")
    add("--seed", type=int, default=default("seed"), help="draws the users")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--apply", action="store_true", help="keep the recommended setting: `stream` uses it at once"
    )
    kept.add_argument(
        "--reset",
        action="store_true",
        help="measure nothing and forget the setting that was kept: `stream` goes by the catalogue's size",
    )
    add("--report", help="the HTML page, JSON beside it; HOME/reports/search-RELEASE.html [path]")


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Measures, shows, writes the page and, if it is told to, keeps the setting.

    Raises:
      UsageError: no such release is loaded, or an option is out of range.
    """
    from beamrec.io.pgvector import ReleaseStore
    from beamrec.io.release_report import ReportOptions, measure_release

    fields = [field.name for field in dataclasses.fields(ReportOptions)]
    try:
        options = ReportOptions(**{name: getattr(values, name) for name in fields})
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    store = ReleaseStore(store_uri)
    release = values.release or _active(store)
    if values.reset:
        store.set_search(release, None)
        console.print(f"release {release}: `beamrec stream` chooses by the size of the catalogue from now on")
        return {"release": release, "recommended": None, "applied": False}
    report = measure_release(store_uri, release, options, console.status)
    page = Path(values.report or console.home / "reports" / f"search-{report.release}.html")
    _write(page, report)
    _show(report, console)
    if values.apply:
        store.set_search(report.release, report.recommended.setting)
        console.print(f"kept: `beamrec stream` searches release {report.release} so from now on")
    console.print(f"report: {page}")
    return {
        "release": report.release,
        "recommended": report.recommended.setting.to_dict(),
        "applied": values.apply,
        "report": report.to_dict(),
        "paths": {"report": str(page)},
    }


def _active(store: Any) -> str:
    active = store.active()
    if active is None:
        raise UsageError("release report: no release is active; give the id of one, or promote one")
    return str(active.id)


def _write(page: Path, report: "SearchReport") -> None:
    from beamrec.io.release_report_page import render

    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(report), encoding="utf-8")
    text = json.dumps(report.to_dict(), indent=1, sort_keys=True)
    page.with_suffix(".json").write_text(f"{text}\n", encoding="utf-8")


def _show(report: "SearchReport", console: Console) -> None:
    from beamrec.io.release_report_page import HEADINGS, table_rows

    rows = [HEADINGS, *table_rows(report)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for place, row in enumerate(rows):
        is_best = place > 0 and report.measured[place - 1] == report.recommended
        name, *figures = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        console.print(f"{'*' if is_best else ' '} {name}  {'  '.join(figures)}")
    best = report.recommended
    if report.note:
        console.print(f"note: {report.note}")
    if not report.reached:
        console.print(f"nothing that this release can use reaches a recall of {report.target:g}")
    console.print(
        f"recommended: {best.name}, {best.queries_per_second:,.0f} queries/s, recall {best.recall:.4f}"
    )
    if report.fastest != best:
        kind = report.fastest.setting.index
        console.print(f"faster: {report.fastest.name}, once the release is loaded with --index {kind}")
