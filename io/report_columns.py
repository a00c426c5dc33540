"""The data report's part about each column: a picture, its figures, and how it was in the previous run."""

import itertools
import math
from collections.abc import Callable, Sequence

from beamrec.io.report_charts import Bar, columns, escape, number, percent, rows
from beamrec.schemas.report import Categories, ColumnProfile, Numbers, bucket_bounds

__all__ = ["beside", "column_card", "table"]

_BARS = 24
_TOP = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FIGURES = ("minimum", "5 %", "25 %", "median", "75 %", "95 %", "maximum", "mean")


def column_card(column: ColumnProfile, previous: ColumnProfile | None, verdict: str) -> str:
    """One column as an HTML section.

    Args:
      column: of the report.
      previous: the same column of the previous run, if there is one.
      verdict: HTML that says how far it drifted; may be empty.
    """
    found = column.distribution
    before = previous.distribution if previous else None
    if isinstance(found, Numbers):
        body = _numbers(column, found, before if isinstance(before, Numbers) else None)
    elif isinstance(found, Categories):
        body = _categories(column, found, previous if isinstance(before, Categories) else None)
    else:
        body = "<p>No value in any row.</p>"
    missing = f"{percent(column.missing / column.rows)} missing" if column.missing else "no value missing"
    title = f"<h3>{escape(column.name)} <small>{escape(column.table)}</small> {verdict}</h3>"
    note = f'<p class="muted">{missing}{_missing_kinds(column)}</p>'
    return f'<section class="card">{title}{note}{body}</section>'


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first column names the row. Cells are escaped here."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row"><bdi>{escape(first)}</bdi></th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in body
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def beside(picture: str, figures: str) -> str:
    """A picture with its table beside it, or below it where there is no room."""
    return (
        f'<div class="pair"><figure>{picture}</figure><div class="scroll" tabindex="0">{figures}</div></div>'
    )


def _missing_kinds(column: ColumnProfile) -> str:
    kinds = (("NULL", column.nulls), ("empty", column.empty), ("not a finite number", column.not_finite))
    named = ", ".join(f"{number(count)} {kind}" for kind, count in kinds if count)
    return f" ({named})" if named else ""


def _categories(column: ColumnProfile, found: Categories, previous: ColumnProfile | None) -> str:
    before = _previous_shares(previous)
    bars = [
        Bar(_visible(value), count / column.rows, percent(count / column.rows), before(value))
        for value, count in found.top[:_TOP]
    ]
    distinct = f"{number(found.distinct)} different values"
    if found.sampled_share < 1:
        distinct = (
            f"More than {distinct}, rows estimated from {percent(found.sampled_share)} of the customers"
        )
    picture = rows(f"{column.name}: most frequent values", f"{distinct}; share of the training rows", bars)
    head = ["value", "rows", "share", *(["before"] if previous else [])]
    return f"<p>{distinct}.</p>{beside(picture, table(head, _category_lines(column, found, bars)))}"


def _visible(value: str) -> str:
    """A value whose outer blanks can be seen: `Norway` and `Norway  ` are two categories."""
    inner = value.strip(" ")
    if not inner:
        return "␣" * len(value) or "(empty)"
    before, after = value.split(inner, 1)
    return "␣" * len(before) + inner + "␣" * len(after)


def _category_lines(column: ColumnProfile, found: Categories, bars: Sequence[Bar]) -> list[list[str]]:
    lines = [
        [bar.label, number(count), bar.shown, *_past(bar)]
        for bar, (_, count) in zip(bars, found.top, strict=False)
    ]
    rest = column.rows - column.nulls - sum(count for _, count in found.top[:_TOP])
    if rest > 0:
        compared = bars[0].previous is not None
        lines.append(["all others", number(rest), percent(rest / column.rows), *([""] if compared else [])])
    return lines


def _past(bar: Bar) -> list[str]:
    return [] if bar.previous is None else [percent(bar.previous)]


def _previous_shares(previous: ColumnProfile | None) -> Callable[[str], float | None]:
    if previous is None or not isinstance(previous.distribution, Categories):
        return lambda _: None
    counts, total = dict(previous.distribution.top), max(previous.rows, 1)
    return lambda value: counts.get(value, 0) / total


def _numbers(column: ColumnProfile, found: Numbers, previous: Numbers | None) -> str:
    edges = _edges(found)
    bars = _bars(found, previous, edges)
    description = f"from {number(found.minimum)} to {number(found.maximum)}, mean {number(found.mean)}"
    picture = columns(f"{column.name}: distribution", description, bars, _ticks(found, edges))
    before = ["before"] if previous else []
    bins = table(["bar", "share", *before], [[bar.label, bar.shown, *_past(bar)] for bar in bars])
    figures = [
        [name, *(number(value) for value in values)]
        for name, *values in zip(
            _FIGURES, *(_figures(each) for each in (found, previous) if each), strict=True
        )
    ]
    return beside(
        f"{picture}<details><summary>The bars as a table</summary>{bins}</details>",
        table(["", "now" if previous else "value", *before], figures),
    )


def _bars(found: Numbers, previous: Numbers | None, edges: Sequence[float]) -> list[Bar]:
    shares = _histogram(found, edges)
    before = _histogram(previous, edges) if previous else [None] * len(shares)
    return [
        Bar(label, share, percent(share), past)
        for label, share, past in zip(_labels(found, edges), shares, before, strict=True)
    ]


def _labels(found: Numbers, edges: Sequence[float]) -> list[str]:
    if _is_discrete(found):
        return [number(low + 0.5) for low in edges[:-1]]
    labels = [f"{number(low)} to {number(high)}" for low, high in itertools.pairwise(edges)]
    labels[0] = f"up to {number(edges[1])}" if found.minimum < edges[0] else labels[0]
    labels[-1] = f"from {number(edges[-2])}" if found.maximum > edges[-1] else labels[-1]
    return labels


def _figures(found: Numbers) -> list[float]:
    """In the order of `_FIGURES`."""
    return [found.minimum, *map(found.quantile, _QUANTILES), found.maximum, found.mean]


def _is_discrete(found: Numbers) -> bool:
    if max(abs(found.minimum), abs(found.maximum)) > 64 or found.maximum - found.minimum >= _BARS:
        return False
    bounds = [min(bucket_bounds(bucket), key=abs) for bucket, _ in found.buckets]
    return all(value.is_integer() for value in (found.minimum, found.maximum, *bounds))


def _edges(found: Numbers) -> list[float]:
    """Edges of the bars: a bar a value, else equal steps, or equal ratios where the range is wide."""
    if _is_discrete(found):
        return [found.minimum - 0.5 + step for step in range(int(found.maximum - found.minimum) + 2)]
    # The outermost bars take what lies beyond them, or one far value would leave the others a single bar.
    low, high = found.quantile(0.005), found.quantile(0.995)
    if low == high:
        low, high = found.minimum, found.maximum
    if low == high:
        return [low - 0.5, low + 0.5]
    if low > 0 and high / low > 200:
        return [low * (high / low) ** (step / _BARS) for step in range(_BARS + 1)]
    # Weights, because the difference of two huge numbers may be infinite.
    return [low * (1 - step / _BARS) + high * (step / _BARS) for step in range(_BARS + 1)]


def _histogram(found: Numbers, edges: Sequence[float]) -> list[float]:
    """Share of the numbers in each bar; a bucket is spread evenly over the bars that it touches."""
    shares = [0.0] * (len(edges) - 1)
    total = sum(count for _, count in found.buckets)
    for bucket, count in found.buckets:
        low, high = bucket_bounds(bucket)
        low, high = max(low, found.minimum), min(high, found.maximum)
        for place in range(_place(edges, low), _place(edges, high) + 1):
            left = -math.inf if place == 0 else edges[place]
            right = math.inf if place == len(shares) - 1 else edges[place + 1]
            part = (min(high, right) - max(low, left)) / (high - low) if high > low else 1.0
            shares[place] += count * part / total
    return shares


def _place(edges: Sequence[float], value: float) -> int:
    """The bar of a value; the outermost bars have no end."""
    return max(0, min(len(edges) - 2, sum(edge <= value for edge in edges) - 1))


def _ticks(found: Numbers, edges: Sequence[float]) -> list[tuple[float, str]]:
    last = len(edges) - 1
    if _is_discrete(found):
        step = -(-last // 12)
        return [(place + 0.5, number(edges[place] + 0.5)) for place in range(0, last, step)]
    places = (1, last // 4, last // 2, 3 * last // 4, last - 1) if last >= _BARS else (0, last)
    return [(float(place), number(edges[place])) for place in places]
