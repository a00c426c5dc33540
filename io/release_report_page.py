"""The search report of a release as one HTML page that needs nothing beside it."""

import math
from collections.abc import Sequence

from beamrec.io.report_charts import escape, number
from beamrec.io.report_style import STYLE
from beamrec.schemas.search_report import MeasuredSearch, SearchReport

__all__ = ["HEADINGS", "render", "table_rows"]

HEADINGS = ("search", "recall", "p50 ms", "p99 ms", "queries/s", "build s", "index MiB")

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 14, 40
_KINDS = {"hnsw": ("HNSW", "one"), "ivfflat": ("IVFFlat", "two")}
_STYLE = """
.dot { fill: var(--card); stroke-width: 2.5; } .dot.one { stroke: var(--one); }
.dot.two { stroke: var(--two); } .dot.exact { stroke: var(--some); }
.dot.best { fill: var(--good); stroke: var(--good); }
tr.best th, tr.best td { color: var(--good); font-weight: 600; }
"""


def table_rows(report: SearchReport) -> list[tuple[str, ...]]:
    """Every search measured as text, in the order of `HEADINGS`."""
    return [_row(measured) for measured in report.measured]


def _row(measured: MeasuredSearch) -> tuple[str, ...]:
    build, size = measured.build_seconds, measured.index_bytes
    return (
        measured.name,
        f"{measured.recall:.4f}",
        f"{measured.p50_ms:.2f}",
        f"{measured.p99_ms:.2f}",
        f"{measured.queries_per_second:,.0f}",
        "" if build is None else f"{build:.1f}",
        "" if size is None else f"{size / 2**20:.1f}",
    )


def render(report: SearchReport) -> str:
    """The page: what is recommended, the picture, every figure.

    Returns:
      HTML that is also well-formed XML.
    """
    parts = [_header(report), _tiles(report), _picture(report), _table(report), _notes(report)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Search in release {escape(report.release)}</title><style>{STYLE}{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _header(report: SearchReport) -> str:
    return (
        f"<header><h1>Search in release {escape(report.release)}</h1>"
        f'<p class="muted">{report.items:,} items of {report.dim} numbers, ordered by '
        f"<code>{escape(report.operator)}</code>; loaded with the index {escape(report.index)}</p>"
        f"{f'<p>Note: {escape(report.note)}.</p>' if report.note else ''}</header>"
    )


def _tiles(report: SearchReport) -> str:
    best = report.recommended
    kind = "good" if report.reached else "bad"
    tiles = [
        ("Recommended", escape(best.name), "for beamrec stream", ""),
        (f"Recall at {report.k}", f"{best.recall:.4f}", f"asked for: {report.target:g}", kind),
        ("Queries a second", number(round(best.queries_per_second)), "one client, in batches", ""),
        ("p99", f"{best.p99_ms:.2f} ms", "a query by itself", ""),
    ]
    shown = "".join(
        f'<li class="tile {style}"><span>{name}</span><strong>{value}</strong><small>{note}</small></li>'
        for name, value, note, style in tiles
    )
    return f'<ul class="tiles">{shown}</ul>'


def _table(report: SearchReport) -> str:
    heads = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = []
    for measured, cells in zip(report.measured, table_rows(report), strict=True):
        style = ' class="best"' if measured == report.recommended else ""
        first, *others = map(escape, cells)
        figures = "".join(f"<td>{cell}</td>" for cell in others)
        rows.append(f"<tr{style}><th>{first}</th>{figures}</tr>")
    return (
        f'<section class="card"><h2>Every search</h2><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _notes(report: SearchReport) -> str:
    queries = max(measured.queries for measured in report.measured)
    return (
        f'<p class="muted">{queries} vectors of the release\'s own {escape(report.queried_with)} were looked '
        f"for; recall is the share of the true {report.k} best items that was found, by score, so that equal "
        f"ones count. Queries a second are of one client asking {report.batch} at a time; latencies of one "
        "asking one at a time. The indexes were built on a copy of the table, with the settings that "
        "<code>release load</code> uses.</p>"
    )


def _picture(report: SearchReport) -> str:
    floor = min(0.9, *(measured.recall for measured in report.measured))
    slowest = math.floor(math.log10(min(m.queries_per_second for m in report.measured)))
    fastest = math.ceil(math.log10(max(m.queries_per_second for m in report.measured)))
    axes = _Axes(floor, slowest, max(fastest, slowest + 1))
    parts = [axes.frame(report.target)]
    for kind, (name, style) in _KINDS.items():
        series = [measured for measured in report.measured if measured.setting.index == kind]
        points = " ".join(f"{axes.x(m.recall):.1f},{axes.y(m.queries_per_second):.1f}" for m in series)
        if series:
            parts.append(f'<polyline class="line {style}" points="{points}"><title>{name}</title></polyline>')
    parts += [_dot(axes, measured, measured == report.recommended) for measured in report.measured]
    title = "Recall against queries a second"
    return (
        f'<figure class="card"><h2>{title}</h2><p class="muted">Up and to the right is better. '
        '<span class="key one">HNSW</span> <span class="key two">IVFFlat</span>; single dots are exact '
        "searches; the filled one is recommended</p>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
        f"{''.join(parts)}</svg></figure>"
    )


def _dot(axes: "_Axes", measured: MeasuredSearch, best: bool) -> str:
    style = _KINDS.get(measured.setting.index, ("", "exact"))[1] + (" best" if best else "")
    hint = f"{measured.name}: recall {measured.recall:.4f}, {measured.queries_per_second:,.0f} queries/s"
    return (
        f'<circle class="dot {style}" cx="{axes.x(measured.recall):.1f}" '
        f'cy="{axes.y(measured.queries_per_second):.1f}" r="4.5"><title>{escape(hint)}</title></circle>'
    )


class _Axes:
    """Recall from a floor to 1 from left to right, powers of ten of queries a second upwards."""

    def __init__(self, floor: float, slowest: int, fastest: int) -> None:
        self._floor, self._slowest, self._fastest = floor, slowest, fastest

    def x(self, recall: float) -> float:
        """Place of a recall."""
        share = (recall - self._floor) / (1 - self._floor)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, queries_per_second: float) -> float:
        """Place of a rate."""
        share = (math.log10(queries_per_second) - self._slowest) / (self._fastest - self._slowest)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def frame(self, target: float) -> str:
        """Grid, labels, and the recall that was asked for."""
        bottom = _HEIGHT - _BOTTOM
        parts = [self._level(10**power) for power in range(self._slowest, self._fastest + 1)]
        steps: Sequence[float] = [self._floor + (1 - self._floor) * step / 4 for step in range(5)]
        parts += [
            f'<text class="axis" x="{self.x(recall):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{recall:.3g}</text>"
            for recall in steps
        ]
        if target > self._floor:
            x = self.x(target)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="axis" x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">recall</text>'
        )
        return "".join(parts)

    def _level(self, rate: float) -> str:
        y = self.y(rate)
        return (
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{rate:,g}/s</text>'
        )
