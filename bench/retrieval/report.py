"""The report of the retrieval bench: a page that loads nothing, and tables for the README."""

import json
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from results import Key, Results

from beamrec.io.report_charts import Bar, rows
from beamrec.io.report_style import STYLE
from beamrec.io.retrieval import multiplies
from beamrec.schemas.releases import ActiveRelease

__all__ = ["write_report"]

_BEGIN, _END = "<!-- retrieval: begin -->", "<!-- retrieval: end -->"
_SEARCH, _LOOKUPS = ("kind", "items", "dim", "queries"), ("items", "batch")
_TITLES = {
    "pgvector": "pgvector, one by one",
    "hnswlib_1": "hnswlib in process, one by one",
    "hnswlib_100": "hnswlib in process, 100 at a time",
    "beamrec": "beamrec",
    "beamrec_forgetful": "beamrec, remembering nothing",
    "hand_batched": "hand-batched `= ANY`",
    "one_query_per_event": "one query per event",
    "connect_per_event": "connect per event",
} | {
    f"beamrec_{way}_{size}": f"beamrec, {what}, {size} at a time"
    for way, what in (("exact", "product"), ("index", "index"))
    for size in (1, 10, 100)
}
_LOOKUP_GOALS = (("one_query_per_event", 20.0), ("connect_per_event", 200.0), ("hand_batched", 0.9))
_SEARCH_GOAL = 2.0
_Table = list[list[str]]


def write_report(results: Results, page: Path, readme: Path | None) -> Path:
    """Writes the page, Markdown beside it, and the README's tables between their markers.

    Returns:
      The page.
    """
    tables = [("Goals", _goals(results))]
    tables += [(_search_title(key), _search_table(results, key)) for key in results.keys("search", _SEARCH)]
    tables += [(_lookup_title(key), _lookup_table(results, key)) for key in results.keys("lookups", _LOOKUPS)]
    machine = [["machine", ""], *([k, str(v)] for k, v in results.machine().items() if k != "kind_of")]
    tables.append(("Machine", machine))
    markdown = "\n\n".join(f"**{title}**\n\n{_markdown(table)}" for title, table in tables) + "\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".md").write_text(markdown, encoding="utf-8")
    page.with_suffix(".json").write_text(json.dumps(dict(tables), indent=1), encoding="utf-8")
    page.write_text(_html(results, tables), encoding="utf-8")
    if readme and _BEGIN in readme.read_text(encoding="utf-8"):
        before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        readme.write_text(f"{before}{_BEGIN}\n{markdown}{_END}{after}", encoding="utf-8")
    return page


def _automatic(key: Key) -> str:
    """What `--retrieval auto` does with a release for which nothing was measured, in batches of 100."""
    release = ActiveRelease("r", "", "", key["dim"], "<->", True, key["items"])
    return "beamrec_exact_100" if multiplies("auto", release) else "beamrec_index_100"


def _goals(results: Results) -> _Table:
    table = [["beamrec against", "goal", "reached", "round by round", ""]]
    for key in results.keys("search", _SEARCH):
        where = f"search, {key['items']:,} × {key['dim']}, {key['kind']}: pgvector one by one"
        table += _goal(results, key, where, (_automatic(key), "pgvector"), "queries_per_second", _SEARCH_GOAL)
    for key in results.keys("lookups", _LOOKUPS):
        for peer, goal in _LOOKUP_GOALS:
            for ours in ("beamrec", "beamrec_forgetful"):
                note = "" if ours == "beamrec" else ", remembering nothing"
                where = f"look-ups, {key['items']:,} items{note}: {_TITLES[peer]}"
                table += _goal(results, key, where, (ours, peer), "events_per_second", goal)
    return table


def _goal(
    results: Results, key: Key, where: str, systems: tuple[str, str], figure: str, goal: float
) -> _Table:
    """One line, of medians divided; none where a side has no rounds."""
    ours, theirs = ([r[figure] for r in results.rounds(key, system)] for system in systems)
    if not ours or not theirs:
        return []
    reached = statistics.median(ours) / statistics.median(theirs)
    each = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    return [
        [where, f"≥ {goal:g}", f"{reached:.2f}", f"{min(each):.2f} – {max(each):.2f}",
         "reached" if reached >= goal else "missed"]
    ]  # fmt: skip


def _search_title(key: Key) -> str:
    return f"Search: {key['items']:,} items of {key['dim']} numbers, {key['kind']}"


def _search_table(results: Results, key: Key) -> _Table:
    table = [["", "rounds", "queries/s", "least – most", "p50 ms", "p99 ms", "recall@10"]]
    for system in _systems(results, key):
        found = results.rounds(key, system)
        rates = [record["queries_per_second"] for record in found]
        medians = [statistics.median(r[name] for r in found) for name in ("p50_ms", "p99_ms", "recall")]
        chosen = " (auto)" if system == _automatic(key) else ""
        table.append(
            [_TITLES[system] + chosen, str(len(found)), f"{statistics.median(rates):,.0f}",
             f"{min(rates):,.0f} – {max(rates):,.0f}", f"{medians[0]:.2f}", f"{medians[1]:.2f}",
             f"{medians[2]:.4f}"]
        )  # fmt: skip
    return table


def _lookup_title(key: Key) -> str:
    return f"Look-ups of similar items: {key['items']:,} items, {key['batch']} events a batch"


def _lookup_table(results: Results, key: Key) -> _Table:
    table = [["", "rounds", "events/s", "least – most"]]
    for system in _systems(results, key):
        rates = [record["events_per_second"] for record in results.rounds(key, system)]
        spread = f"{min(rates):,.0f} – {max(rates):,.0f}"
        table.append([_TITLES[system], str(len(rates)), f"{statistics.median(rates):,.0f}", spread])
    return table


def _systems(results: Results, key: Key) -> list[str]:
    return [system for system in _TITLES if results.rounds(key, system)]


def _markdown(table: _Table) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    rule = f"| {' | '.join(['---', *(['---:'] * (len(table[0]) - 1))])} |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _html(results: Results, tables: Sequence[tuple[str, _Table]]) -> str:
    charts = {title: _chart(results, key, figure) for title, key, figure in _contests(results)}
    parts = [
        f"<h2>{escape(title)}</h2>{charts.get(title, '')}{_html_table(table)}" for title, table in tables
    ]
    head = f'<meta charset="utf-8"/><title>beamrec: retrieval bench</title><style>{STYLE}</style>'
    body = f"<main><h1>Retrieval bench</h1>{''.join(parts)}</main>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _contests(results: Results) -> list[tuple[str, Key, str]]:
    found = [(_search_title(key), key, "queries_per_second") for key in results.keys("search", _SEARCH)]
    lookups = results.keys("lookups", _LOOKUPS)
    return found + [(_lookup_title(key), key, "events_per_second") for key in lookups]


def _chart(results: Results, key: Key, figure: str) -> str:
    bars = []
    for system in _systems(results, key):
        value: Any = results.median(key, system, figure)
        bars.append(
            Bar(_TITLES[system], value, f"{value:,.0f}/s", style="one" if "beam" in system else "some")
        )
    return f'<figure class="card">{rows("Rate", "medians a second", bars)}</figure>'


def _html_table(table: _Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table[0])
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(c)}</td>' for c in row[1:])}</tr>"
        for row in table[1:]
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
