"""Pictures of the data report: inline SVG that takes its colours from the page."""

import dataclasses
import html
import unicodedata
from collections.abc import Callable, Sequence

__all__ = ["Bar", "Range", "columns", "curves", "escape", "number", "percent", "ranges", "rows"]

_WIDTH = 640
_LABEL_WIDTH = 170
_VALUE_WIDTH = 70
_RANGE_WIDTH = 150
_ROW_HEIGHT = 24
_PLOT_HEIGHT = 180
_AXIS_HEIGHT = 26
_LEFT = 58


def escape(text: object) -> str:
    """Any value as text of HTML and of XML; control and formatting characters become visible.

    A category may hold markup, characters that XML forbids, and ones that reverse the text around them.
    """
    shown = (
        f"\\u{ord(character):04x}"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn")
        else character
        for character in str(text)
    )
    return html.escape("".join(shown))


def number(value: float) -> str:
    """A number for people: thousands apart, four figures of a fraction."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share from 0 to 1 for people; what is there is never shown as 0 %."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{share * 100:.1f} %"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, how the length reads, and the length in the previous run."""

    label: str
    value: float
    shown: str
    previous: float | None = None
    style: str = "one"


@dataclasses.dataclass(frozen=True)
class Range:
    """A figure with the interval around it, and how both read; none of the three is negative."""

    label: str
    value: float
    low: float
    high: float
    shown: str
    style: str = "one"


def rows(title: str, description: str, bars: Sequence[Bar], marks: Sequence[tuple[str, float]] = ()) -> str:
    """Horizontal bars.

    Args:
      title, description: read out in place of the picture.
      bars: from top to bottom, not negative.
      marks: (label, value) of vertical lines, such as thresholds.
    """
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    scale = room / _largest(bars, [value for _, value in marks])
    height = len(bars) * _ROW_HEIGHT + (_AXIS_HEIGHT if marks else 4)
    parts = [_row(bar, place * _ROW_HEIGHT, scale) for place, bar in enumerate(bars)]
    for label, value in marks:
        x, bottom = _LABEL_WIDTH + value * scale, len(bars) * _ROW_HEIGHT
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>'
        )
    return _svg(title, description, height, parts)


def ranges(title: str, description: str, lines: Sequence[Range]) -> str:
    """Horizontal bars from 0 with a whisker from the low to the high end of each interval.

    Args:
      title, description: read out in place of the picture.
      lines: from top to bottom.
    """
    room = _WIDTH - _LABEL_WIDTH - _RANGE_WIDTH
    scale = room / (max((line.high for line in lines), default=0) or 1)
    parts = [_range(line, place * _ROW_HEIGHT, scale) for place, line in enumerate(lines)]
    return _svg(title, description, len(lines) * _ROW_HEIGHT + 4, parts)


def columns(title: str, description: str, bars: Sequence[Bar], ticks: Sequence[tuple[float, str]]) -> str:
    """Vertical bars side by side: a histogram.

    Args:
      title, description: read out in place of the picture.
      bars: from left to right, with shares as values.
      ticks: (place, label) on the axis below, places in bars from the left end.
    """
    top = _largest(bars, ())
    width = (_WIDTH - _LEFT - 8) / max(len(bars), 1)
    level = _level(top)
    parts = [_grid(share, percent(share), level) for share in (0.0, top / 2, top)]
    for place, bar in enumerate(bars):
        x, y = _LEFT + place * width, level(bar.value)
        parts.append(
            f'<rect class="{bar.style}" x="{x + 1:.1f}" y="{y:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{level(0) - y:.1f}" rx="1.5">{_hint(bar)}</rect>'
        )
        if bar.previous is not None:
            y = level(bar.previous)
            parts.append(
                f'<line class="before" x1="{x:.1f}" x2="{x + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
    parts += [_tick(_LEFT + place * width, label) for place, label in ticks]
    return _svg(title, description, _PLOT_HEIGHT + _AXIS_HEIGHT, parts)


def curves(title: str, description: str, series: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """Lines from (0, 0) to (1, 1) over a grid of shares, with the diagonal of equal shares.

    Args:
      title, description: read out in place of the picture.
      series: (name, style, values at equal steps after 0).
    """
    level = _level(1.0)
    room = _WIDTH - _LEFT - 20
    parts = [_grid(share, f"{share:.0%}", level) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts += [_tick(_LEFT + share * room, f"top {share:.0%}") for share in (0.25, 0.5, 0.75)]
    parts.append(f'<path class="mark" d="M{_LEFT} {level(0):.1f} L{_LEFT + room} {level(1):.1f}"/>')
    for name, style, values in series:
        steps = enumerate([0.0, *values])
        points = " ".join(
            f"{_LEFT + room * step / len(values):.1f},{level(value):.1f}" for step, value in steps
        )
        parts.append(
            f'<polyline class="line {style}" points="{points}"><title>{escape(name)}</title></polyline>'
        )
    return _svg(title, description, _PLOT_HEIGHT + _AXIS_HEIGHT, parts)


def _svg(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(f"{title}: {description}")}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _largest(bars: Sequence[Bar], others: Sequence[float]) -> float:
    values = [bar.value for bar in bars] + [bar.previous or 0 for bar in bars] + list(others)
    return max(values, default=0) or 1


def _row(bar: Bar, y: float, scale: float) -> str:
    length = bar.value * scale
    label = bar.label if len(bar.label) <= 24 else bar.label[:23] + "…"
    before = ""
    if bar.previous is not None:
        x = _LABEL_WIDTH + bar.previous * scale
        before = f'<line class="before" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 2}" y2="{y + 20}"/>'
    return (
        f'<text class="label" x="{_LABEL_WIDTH - 8}" y="{y + 16}" text-anchor="end">{escape(label)}</text>'
        f'<rect class="{bar.style}" x="{_LABEL_WIDTH}" y="{y + 4}" width="{max(length, 0.5):.1f}" '
        f'height="14" rx="2">{_hint(bar)}</rect>{before}'
        f'<text class="axis" x="{_WIDTH - 2}" y="{y + 16}" text-anchor="end">{escape(bar.shown)}</text>'
    )


def _range(line: Range, y: float, scale: float) -> str:
    low, high = (_LABEL_WIDTH + end * scale for end in (line.low, line.high))
    label, shown, length = escape(line.label), escape(line.shown), max(line.value * scale, 0.5)
    ends = "".join(f"M{x:.1f} {y + 7}v8" for x in (low, high))
    return (
        f'<text class="label" x="{_LABEL_WIDTH - 8}" y="{y + 16}" text-anchor="end">{label}</text>'
        f'<rect class="{line.style}" x="{_LABEL_WIDTH}" y="{y + 4}" width="{length:.1f}" '
        f'height="14" rx="2"><title>{label}: {shown}</title></rect>'
        f'<path class="whisker" d="M{low:.1f} {y + 11}H{high:.1f}{ends}"/>'
        f'<text class="axis" x="{_WIDTH - 2}" y="{y + 16}" text-anchor="end">{shown}</text>'
    )


def _hint(bar: Bar) -> str:
    return f"<title>{escape(bar.label)}: {escape(bar.shown)}</title>"


def _level(top: float) -> Callable[[float], float]:
    return lambda value: 8 + (_PLOT_HEIGHT - 8) * (1 - value / top)


def _grid(share: float, label: str, level: Callable[[float], float]) -> str:
    y = level(share)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _tick(x: float, label: str) -> str:
    return (
        f'<text class="axis" x="{x:.1f}" y="{_PLOT_HEIGHT + 18}" text-anchor="middle">{escape(label)}</text>'
    )
