"""Horizontal bars as SVG text, for a page that loads nothing."""

import dataclasses
from collections.abc import Sequence
from html import escape

__all__ = ["Bar", "bar_chart"]

_WIDTH, _ROW, _LABEL, _VALUE = 760, 34, 300, 110
_COLOURS = {"ours": "#1b6ca8", "peer": "#9aa5b1", "met": "#2e8b57", "missed": "#c0392b"}


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
      label: left of it.
      value: its length.
      text: right of it.
      points: single measurements, drawn as dots.
      style: `ours`, `peer`, `met` or `missed`.
    """

    label: str
    value: float
    text: str
    points: tuple[float, ...] = ()
    style: str = "peer"


def bar_chart(bars: Sequence[Bar], title: str, marker: float | None = None) -> str:
    """Bars from zero on one scale, with a dashed line at `marker`.

    Args:
      bars: from top to bottom; at least one.
      title: read out by screen readers.
      marker: a value to hold them against.
    """
    longest = max([*(max(bar.value, *bar.points, 0) for bar in bars), marker or 0]) or 1
    scale = (_WIDTH - _LABEL - _VALUE) / longest
    height = _ROW * len(bars) + 8
    drawn = "".join(_bar(bar, 4 + _ROW * row, scale) for row, bar in enumerate(bars))
    if marker is not None:
        x = _LABEL + marker * scale
        drawn += (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="#333" stroke-dasharray="4 3"/>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{drawn}</svg>"
    )


def _bar(bar: Bar, top: float, scale: float) -> str:
    middle = top + _ROW / 2
    furthest = max(bar.value, *bar.points, 0) * scale
    dots = "".join(
        f'<circle cx="{_LABEL + point * scale:.1f}" cy="{middle}" r="2.5" fill="#222" fill-opacity="0.6"/>'
        for point in bar.points
    )
    return (
        f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>'
        f'<rect x="{_LABEL}" y="{top + 6}" width="{bar.value * scale:.1f}" height="{_ROW - 12}" rx="2" '
        f'fill="{_COLOURS[bar.style]}"/>{dots}'
        f'<text x="{_LABEL + furthest + 8:.1f}" y="{middle + 4}">{escape(bar.text)}</text>'
    )
