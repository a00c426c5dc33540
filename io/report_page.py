"""The data report as one HTML page that needs nothing beside it: no script, no style, no picture."""

from collections.abc import Mapping

from beamrec.io.report_charts import Bar, columns, curves, escape, number, percent, rows
from beamrec.io.report_columns import beside, column_card, table
from beamrec.io.report_style import STYLE
from beamrec.schemas.report import ColumnProfile, EntityProfile, Report

__all__ = ["render"]

_TOPS = (1, 5, 10, 20, 50)
_OFTEN_MISSING = 0.5


def render(
    report: Report,
    *,
    drift: Mapping[str, float] | None = None,
    previous: Report | None = None,
    dead_letters: Mapping[str, Mapping[str, int]] | None = None,
    warn: float | None = 0.2,
    fail: float | None = None,
) -> str:
    """A page for the owner of the data: what needs attention first, then every column.

    Args:
      report: of this run.
      drift: column → population stability index; None if there was no previous run.
      previous: its report, for the comparison in the pictures.
      dead_letters: table → rule → rows.
      warn, fail: thresholds of the index; None if there is none.

    Returns:
      HTML that is also well-formed XML. Every value of the data is escaped.
    """
    letters = {table_: dict(rules) for table_, rules in (dead_letters or {}).items() if sum(rules.values())}
    parts = [
        _header(report, previous),
        _tiles(report, drift, letters, warn),
        _attention(report, drift, letters, warn),
        _drift(drift, warn, fail),
        _ratings(report, previous),
        _long_tail(report),
        _coverage(report),
        _missing(report),
        _dead_letters(letters),
        _columns(report, drift, previous, warn),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Training data of {escape(report.shop)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _header(report: Report, previous: Report | None) -> str:
    compared = f", compared with {_time(previous)}" if previous else ", first report of this output"
    return (
        f"<header><h1>Training data of {escape(report.shop)}</h1>"
        f'<p class="muted">Snapshot of {_time(report)}{compared}</p></header>'
    )


def _time(report: Report) -> str:
    if not report.taken_at:
        return "an empty source"
    shown = report.taken_at[:19].replace("T", " ")
    return f'<time datetime="{escape(report.taken_at)}">{escape(shown)} UTC</time>'


def _tiles(
    report: Report,
    drift: Mapping[str, float] | None,
    letters: Mapping[str, Mapping[str, int]],
    warn: float | None,
) -> str:
    dropped = sum(sum(rules.values()) for rules in letters.values())
    customers, products = report.customers, report.products
    tiles = [
        ("Training rows", number(report.ratings), "valid ratings", ""),
        ("Customers", number(customers.rated), f"of {number(customers.total)} have ratings", ""),
        ("Products", number(products.rated), f"of {number(products.total)} have ratings", ""),
        ("Dead letters", number(dropped), "rows that broke a rule", "bad" if dropped else "good"),
        _drift_tile(drift, warn),
    ]
    shown = "".join(
        f'<li class="tile {kind}"><span>{name}</span><strong>{value}</strong><small>{note}</small></li>'
        for name, value, note, kind in tiles
    )
    return f'<ul class="tiles">{shown}</ul>'


def _drift_tile(drift: Mapping[str, float] | None, warn: float | None) -> tuple[str, str, str, str]:
    if drift is None:
        return ("Drift", "–", "no previous run", "")
    if warn is None:
        return ("Drift", number(max(drift.values(), default=0.0)), "largest index", "")
    drifted = _drifted(drift, warn)
    return ("Drift", number(len(drifted)), f"columns above {warn:g}", "bad" if drifted else "good")


def _drifted(drift: Mapping[str, float] | None, warn: float | None) -> list[str]:
    """Columns above the threshold, the worst first."""
    above = {name: index for name, index in (drift or {}).items() if warn is not None and index > warn}
    return sorted(above, key=lambda name: (-above[name], name))


def _attention(
    report: Report,
    drift: Mapping[str, float] | None,
    letters: Mapping[str, Mapping[str, int]],
    warn: float | None,
) -> str:
    points = [
        f"<b>{escape(name)}</b> drifted since the previous run: PSI {(drift or {})[name]:.3f}"
        for name in _drifted(drift, warn)
    ]
    points += [
        f"{number(count)} {'row' if count == 1 else 'rows'} of <b>{escape(table_)}</b> broke the rule "
        f"<code>{escape(rule)}</code>"
        for table_, rules in sorted(letters.items())
        for rule, count in sorted(rules.items(), key=lambda item: -item[1])
        if count
    ]
    points += [
        f"<b>{escape(column.name)}</b> is missing in {percent(column.missing / column.rows)} of the rows"
        for column in report.columns
        if column.rows and column.missing / column.rows > _OFTEN_MISSING
    ]
    if report.products.unrated:
        points.append(
            f"{number(report.products.unrated)} of {number(report.products.total)} products have no rating: "
            "the model learns them by their features alone"
        )
    body = "".join(f"<li>{point}</li>" for point in points)
    shown = f"<ul>{body}</ul>" if points else "<p>Nothing.</p>"
    return f'<section class="card attention"><h2>Needs attention</h2>{shown}</section>'


def _section(title: str, note: str, body: str) -> str:
    return f'<section class="card"><h2>{title}</h2><p class="muted">{note}</p>{body}</section>'


def _verdict(index: float, warn: float | None, fail: float | None) -> tuple[str, str]:
    """How a PSI reads, and its style."""
    if fail is not None and index > fail:
        return "fails the run", "bad"
    if warn is not None and index > warn:
        return "drifted", "bad"
    return ("some change", "some") if index > 0.1 else ("stable", "one")


def _drift(drift: Mapping[str, float] | None, warn: float | None, fail: float | None) -> str:
    if not drift:
        return ""
    ordered = sorted(drift.items(), key=lambda item: (-item[1], item[0]))
    bars = [Bar(name, index, f"{index:.3f}", style=_verdict(index, warn, fail)[1]) for name, index in ordered]
    marks = [(label, value) for label, value in (("warn", warn), ("fail", fail)) if value is not None]
    figures = [[name, f"{index:.3f}", _verdict(index, warn, fail)[0]] for name, index in ordered]
    return _section(
        "Drift since the previous run",
        "Population stability index by column: below 0.1 hardly a change, above 0.25 a large one.",
        beside(
            rows("Drift by column", f"largest: {ordered[0][0]}, {ordered[0][1]:.3f}", bars, marks),
            table(["column", "PSI", "verdict"], figures),
        ),
    )


def _ratings(report: Report, previous: Report | None) -> str:
    if not report.rating_histogram:
        return ""
    before = dict(previous.rating_histogram) if previous else {}
    total, total_before = report.ratings, max(sum(before.values()), 1)
    bars = [
        Bar(
            number(value),
            count / total,
            percent(count / total),
            before.get(value, 0) / total_before if before else None,
        )
        for value, count in report.rating_histogram
    ]
    ticks = [(place + 0.5, bar.label) for place, bar in enumerate(bars)][:: -(-len(bars) // 20)]
    lines = [
        [bar.label, number(count), bar.shown, *([] if bar.previous is None else [percent(bar.previous)])]
        for bar, (_, count) in zip(bars, report.rating_histogram, strict=True)
    ]
    most = max(report.rating_histogram, key=lambda pair: pair[1])[0]
    return _section(
        "Ratings",
        "Share of the training rows with each rating." + (_LEGEND if before else ""),
        beside(
            columns("Rating histogram", f"most frequent: {number(most)}", bars, ticks),
            table(["rating", "rows", "share", *(["before"] if before else [])], lines),
        ),
    )


_LEGEND = ' <span class="key">orange line: previous run</span>'


def _long_tail(report: Report) -> str:
    entities = [(report.products, "one"), (report.customers, "two")]
    shown = [(entity, style) for entity, style in entities if entity.curve]
    if not shown:
        return ""
    picture = curves(
        "Long tail",
        "; ".join(f"the top 10 % of {entity.table} have {percent(entity.curve[9])}" for entity, _ in shown),
        [(entity.table, style, entity.curve) for entity, style in shown],
    )
    keys = " ".join(f'<span class="key {style}">{escape(entity.table)}</span>' for entity, style in shown)
    lines = [[f"top {top} %", *(percent(entity.curve[top - 1]) for entity, _ in shown)] for top in _TOPS]
    lines += [["Gini", *(f"{entity.gini:.3f}" for entity, _ in shown)]]
    lines += [["median ratings", *(number(entity.median) for entity, _ in shown)]]
    lines += [["most ratings", *(number(entity.most) for entity, _ in shown)]]
    return _section(
        "Long tail",
        f"Share of the ratings that the most rated have, of those with ratings. {keys}",
        beside(picture, table(["", *(entity.table for entity, _ in shown)], lines)),
    )


def _coverage(report: Report) -> str:
    entities = (report.customers, report.products)
    bars = [
        Bar(each.table, each.rated / each.total, percent(each.rated / each.total))
        for each in entities
        if each.total
    ]
    lines = [[each.table, number(each.total), number(each.rated), number(each.unrated)] for each in entities]
    figures = table(["", "all", "with ratings", "without"], lines)
    picture = rows("Coverage", ", ".join(f"{bar.label} {bar.shown}" for bar in bars), bars)
    return _section(
        "Coverage",
        "Share of the valid rows that have a rating.",
        beside(picture, figures) + _unrated(report.products),
    )


def _unrated(products: EntityProfile) -> str:
    if not products.unrated_sample:
        return ""
    more = products.unrated - len(products.unrated_sample)
    keys = ", ".join(f"<bdi>{escape(key)}</bdi>" for key in products.unrated_sample)
    return f"<p>Never rated: {keys}{f' and {number(more)} more' if more else ''}.</p>"


def _missing(report: Report) -> str:
    found = [column for column in report.columns if column.missing]
    if not report.columns:
        return ""
    if not found:
        return _section("Missing values", "No value is missing in any row.", "")
    ordered = sorted(found, key=lambda column: -column.missing)
    bars = [Bar(each.name, each.missing / each.rows, percent(each.missing / each.rows)) for each in ordered]
    lines = [[each.name, *map(number, (each.nulls, each.empty, each.not_finite))] for each in ordered]
    return _section(
        "Missing values",
        "Share of the training rows whose value is NULL, empty or not a finite number.",
        beside(
            rows("Missing values", f"most often: {bars[0].label}, {bars[0].shown}", bars),
            table(["column", "NULL", "empty", "not finite"], lines),
        ),
    )


def _dead_letters(letters: Mapping[str, Mapping[str, int]]) -> str:
    if not letters:
        return ""
    lines = [
        (table_, rule, count) for table_, rules in letters.items() for rule, count in rules.items() if count
    ]
    lines.sort(key=lambda line: (-line[2], line[0], line[1]))
    bars = [Bar(f"{table_}: {rule}", float(count), number(count)) for table_, rule, count in lines]
    return _section(
        "Dead letters",
        "Rows that broke a rule and are not in the training files; they are kept below <code>errors/</code>.",
        beside(
            rows("Dead letters by rule", f"most: {bars[0].label}, {bars[0].shown}", bars),
            table(
                ["table", "rule", "rows"], [[table_, rule, number(count)] for table_, rule, count in lines]
            ),
        ),
    )


def _columns(
    report: Report, drift: Mapping[str, float] | None, previous: Report | None, warn: float | None
) -> str:
    before: dict[str, ColumnProfile] = (
        {column.name: column for column in previous.columns} if previous else {}
    )
    cards = [
        column_card(column, before.get(column.name), _badge((drift or {}).get(column.name), warn))
        for column in report.columns
    ]
    note = f"Each as the training rows have it.{_LEGEND if before else ''}"
    return f'<h2>Columns</h2><p class="muted">{note}</p>{"".join(cards)}' if cards else ""


def _badge(index: float | None, warn: float | None) -> str:
    if index is None:
        return ""
    text, style = _verdict(index, warn, None)
    return f'<span class="badge {style}">{text}, PSI {index:.3f}</span>'
