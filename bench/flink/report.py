"""Tables of what was measured on Flink, each figure beside its goal."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from records import Record, Records

__all__ = ["write_report"]

_README = Path(__file__).resolve().parents[1] / "README.md"
_BEGIN, _END = "<!-- flink: begin (bench/flink/run.py writes this) -->", "<!-- flink: end -->"
_TITLES = {
    "flink": "Flink, the preset",
    "flink_bundles": "Flink, the preset but for Flink's default bundles (1,000 elements, 1 s)",
    "flink_defaults": "Flink, default bundles, and Beam's default reads (polls of 1 s, reads of 10 s)",
    "prism": "Prism, the preset",
}


def write_report(records: Records, path: Path, readme: bool) -> Path:
    """Writes the tables into a file of their own, and into bench/README.md if asked to."""
    parts = [_latency(records), _goals(records), _growth(records), _soak(records), _machine(records)]
    text = "\n\n".join(filter(None, parts))
    path.write_text(f"{text}\n", encoding="utf-8")
    if readme:
        whole = _README.read_text(encoding="utf-8")
        before, _, rest = whole.partition(_BEGIN)
        after = rest.partition(_END)[2]
        _README.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")
    return path


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latency(records: Records) -> str:
    rows = []
    for contestant, title in _TITLES.items():
        found = records.find({"contest": "latency", "contestant": contestant})
        if found:
            figures = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "events_per_second")
            medians = [f"{statistics.median(record[name] for record in found):,.0f}" for name in figures]
            rate = f"{found[-1]['rate']:,.0f}"
            rows.append([title, str(len(found)), rate, *medians])
    if not rows:
        return ""
    head = ["110 products", "rounds", "events/s", "p50 ms", "p90", "p99", "most", "events/s at most"]
    return f"**From when an event was due to its row in the serving table, medians**\n\n{_table(head, rows)}"


def _goals(records: Records) -> str:
    rows = []
    for other in ("flink_defaults", "flink_bundles"):
        rounds = [
            (ours, theirs)
            for ours in records.find({"contest": "latency", "contestant": "flink"})
            for theirs in records.find({"contest": "latency", "contestant": other, "round": ours["round"]})
        ]
        if rounds:
            faster = [theirs["p99_ms"] / ours["p99_ms"] for ours, theirs in rounds]
            speed = [ours["events_per_second"] / theirs["events_per_second"] for ours, theirs in rounds]
            rows += [
                [f"p99 lower than: {_TITLES[other]}", *_quotients(faster, 5.0)],
                [f"throughput by: {_TITLES[other]}", *_quotients(speed, 0.8)],
            ]
    head = ["the preset on Flink", "goal", "reached", "round by round", ""]
    return _table(head, rows) if rows else ""


def _quotients(found: Sequence[float], goal: float) -> list[str]:
    middle = statistics.median(found)
    verdict = "reached" if middle >= goal else "missed"
    return [f"≥ {goal:g}×", f"**{middle:.2f}×**", f"{min(found):.2f} – {max(found):.2f}", verdict]


def _growth(records: Records) -> str:
    newest = {(r["setting"], r["rate"]): r for r in records.find({"contest": "growth"})}
    rows = [
        [
            setting,
            "quiet" if not rate else f"{rate:g} events/s",
            "–"
            if found["bytes_per_hour"] is None
            else f"{found['bytes_per_hour'] / found['splits'] / 1e6:,.1f}",
            f"{found['bundles_per_second'] / found['splits']:.2f}",
            "–" if found["bytes_per_bundle"] is None else f"{found['bytes_per_bundle']:,.0f}",
            "–" if found["most_ms"] is None else f"{found['most_ms'] / 1e3:,.1f}",
        ]
        for (setting, rate), found in newest.items()
    ]
    head = [
        "polls of a source without data",
        "source",
        "MB an hour and split",
        "bundles a second",
        "bytes each",
        "slowest checkpoint s",
    ]
    return f"**How fast checkpoints grow, by how a source is read**\n\n{_table(head, rows)}" if rows else ""


def _soak(records: Records) -> str:
    found: Record | None = records.last({"contest": "soak"})
    if found is None:
        return ""
    rows = [[name, *map(str, tenths)] for name, tenths in found["memory_mib"].items()]
    grown = found["checkpoint_bytes_per_hour"]
    account = ", ".join(f"{name} {value}" for name, value in found["account"].items())
    said = (
        f"**{found['minutes']:g} minutes at {found['rate']:,.0f} events/s, "
        f"{found['bad_records']:,} bad records, {found['promotes']} promotes.** Account: {account}; "
        f"p50 {found['p50_ms']:,.0f} ms, p99 {found['p99_ms']:,.0f} ms."
    )
    if grown is not None:
        said += f" Checkpoints grew by {grown / found['splits'] / 1e6:,.1f} MB an hour and split."
    sizes = [
        [f"{at} s", f"{size / 1e3:,.0f}", f"{took / 1e3:.1f}"] for at, size, took in found["checkpoints"]
    ]
    head = ["memory by tenths of the time, MiB", *(str(number) for number in range(1, 11))]
    return f"{said}\n\n{_table(head, rows)}\n\n{_table(['checkpoint at', 'kB', 'took s'], sizes)}"


def _machine(records: Records) -> str:
    machine = records.last({"contest": "machine"}) or {}
    return _table(
        ["machine", ""], [[name, str(value)] for name, value in machine.items() if name != "contest"]
    )
