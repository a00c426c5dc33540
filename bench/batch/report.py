"""The report of a bench: an HTML page with pictures that loads nothing, and tables for the README."""

import json
import statistics
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from charts import Bar, bar_chart
from contests import Contest, Entry, Goal
from results import Results, Verdict, judge
from systems import OURS, SYSTEMS

__all__ = ["write_report"]

_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } svg { max-width: 100%; height: auto; font-size: 13px }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } h2 { margin-top: 2.5rem } .note { color: #555 }
"""
_NOTE = (
    "Whole processes, start-up included, run in turns; each output's content was compared before its time "
    "counted. Bars are medians, dots are single runs, memory is the resident sum of the process tree."
)
_Table = list[list[str]]


def write_report(
    results: Results, contests: Sequence[Contest], goals: Iterable[Goal], page: Path, readme: Path | None
) -> Path:
    """Writes the page, the figures beside it as JSON, and the README's tables between their markers.

    Args:
      results: what was measured; whatever is missing is left out.
      contests: what the page shows, in order.
      goals: what it is held against.
      page: the HTML file; the JSON and the Markdown stand beside it.
      readme: None to leave it alone.

    Returns:
      The page.
    """
    verdicts = judge(results, goals)
    tables = [(contest, _contest_table(results, contest)) for contest in contests if _timed(results, contest)]
    machine = _machine(results)
    markdown = _markdown(verdicts, tables, machine)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_html(results, verdicts, tables, machine), encoding="utf-8")
    page.with_suffix(".md").write_text(markdown, encoding="utf-8")
    page.with_suffix(".json").write_text(_json(results, verdicts), encoding="utf-8")
    if readme:
        before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        readme.write_text(f"{before}{_BEGIN}\n{markdown}{_END}{after}", encoding="utf-8")
    return page


def _goal_table(verdicts: Sequence[Verdict]) -> _Table:
    rows = [["beamrec against", "goal", "reached", "round by round", ""]]
    for verdict in verdicts:
        goal = verdict.goal
        spread = f"{min(verdict.values):.2f} – {max(verdict.values):.2f}"
        bound = f"{'≤' if goal.at_most else '≥'} {goal.limit:g}"
        reached = f"{verdict.reached:.2f}"
        rows.append([goal.title, bound, reached, spread, "reached" if verdict.met else "missed"])
    return rows


def _contest_table(results: Results, contest: Contest) -> _Table:
    rows = [["", "runs", "median s", "min – max s", "rows/s", "peak MiB", "CPU s"]]
    for entry in _timed(results, contest):
        runs = results.runs(contest.name, entry)
        seconds = [run["seconds"] for run in runs]
        median = statistics.median(seconds)
        rows.append(
            [
                _label(contest, entry),
                str(len(runs)),
                f"{median:.2f}",
                f"{min(seconds):.2f} – {max(seconds):.2f}",
                f"{entry.shop.ratings / median:,.0f}",
                f"{statistics.median(run['peak_bytes'] for run in runs) / 2**20:,.0f}",
                f"{statistics.median(run['cpu_seconds'] for run in runs):.1f}",
            ]
        )
    return rows


def _timed(results: Results, contest: Contest) -> list[Entry]:
    return [entry for entry in contest.entries if entry.timed and results.runs(contest.name, entry)]


def _label(contest: Contest, entry: Entry) -> str:
    title = SYSTEMS[entry.system].title
    shops = {other.shop for other in contest.entries}
    shop = entry.shop
    size = f"{shop.ratings / 1e6:g} M, {shop.customers:,} partitions"
    return title if len(shops) == 1 else f"{title}: {size}"


def _machine(results: Results) -> _Table:
    machine = results.machine()
    if not machine:
        return []
    joined = {side: ", ".join(f"{k} {v}" for k, v in machine[side].items()) for side in ("ours", "peers")}
    return [
        ["machine", ""],
        ["processor", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"],
        ["system", f"{machine['system']}, Python {machine['python']}, {machine['java']}"],
        ["database", f"MariaDB {machine['mariadb']}, on the same machine"],
        ["beamrec", f"{machine['commit']}: {joined['ours']}"],
        ["peers", f"{joined['peers']}, {machine['driver']}"],
        ["measured", f"{machine['at']}, load average before {machine['load_average']:.2f}"],
    ]


def _html(
    results: Results, verdicts: Sequence[Verdict], tables: Sequence[tuple[Contest, _Table]], machine: _Table
) -> str:
    parts = [f"<h1>Batch bench</h1><p class=note>{_NOTE}</p>"]
    if verdicts:
        parts += ["<h2>Goals</h2>", _goal_chart(verdicts), _html_table(_goal_table(verdicts))]
    for contest, table in tables:
        parts += [f"<h2>{escape(contest.title)}</h2>", *_contest_charts(results, contest), _html_table(table)]
    parts += ["<h2>Machine</h2>", _html_table(machine)] if machine else []
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>beamrec: batch bench</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _goal_chart(verdicts: Sequence[Verdict]) -> str:
    """How much of each goal is reached: 1 and beyond is there, whether more or less was asked for."""
    bars = []
    for verdict in verdicts:
        share = verdict.reached / verdict.goal.limit
        share = 1 / share if verdict.goal.at_most else share
        text = f"{verdict.reached:.2f} (goal {verdict.goal.limit:g})"
        bars.append(Bar(verdict.goal.title, share, text, style="met" if verdict.met else "missed"))
    return bar_chart(bars, "Share of each goal that is reached; the line is the goal", marker=1.0)


def _contest_charts(results: Results, contest: Contest) -> list[str]:
    charts = []
    for field, unit, title in (("seconds", 1.0, "Seconds"), ("peak_bytes", 2.0**20, "Peak memory in MiB")):
        bars = []
        for entry in _timed(results, contest):
            values = tuple(run[field] / unit for run in results.runs(contest.name, entry))
            middle = statistics.median(values)
            style = "ours" if entry.system == OURS else "peer"
            bars.append(Bar(_label(contest, entry), middle, f"{middle:,.1f}", values, style))
        charts += [f"<h3>{title}</h3>", bar_chart(bars, f"{contest.title}: {title}")]
    return charts


def _html_table(table: _Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table[0])
    rows = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in table[1:])
    return f"<table><tr>{head}</tr>{rows}</table>"


def _markdown(verdicts: Sequence[Verdict], tables: Sequence[tuple[Contest, _Table]], machine: _Table) -> str:
    parts = [_markdown_table(_goal_table(verdicts))] if verdicts else []
    for contest, table in tables:
        parts.append(f"**{contest.title}**\n\n{_markdown_table(table)}")
    parts += [_markdown_table(machine)] if machine else []
    return "".join(f"\n{part}" for part in parts) + "\n"


def _markdown_table(table: _Table) -> str:
    first, *rows = table
    rule = ["---", *("---:" for _ in first[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (first, rule, *rows))


def _json(results: Results, verdicts: Sequence[Verdict]) -> str:
    goals = [
        {
            "goal": v.goal.title,
            "kind": v.goal.kind,
            "limit": v.goal.limit,
            "reached": v.reached,
            "rounds": v.values,
            "met": v.met,
        }
        for v in verdicts
    ]
    return json.dumps({"machine": results.machine(), "goals": goals}, indent=2) + "\n"
