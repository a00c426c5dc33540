"""Tables of what was measured, each figure beside its goal."""

from pathlib import Path

from records import Record, Records

__all__ = ["write_report"]

_README = Path(__file__).resolve().parents[1] / "README.md"
_BEGIN, _END = "<!-- stream: begin (bench/stream/run.py writes this) -->", "<!-- stream: end -->"
_GOALS = {"function_connect": 100, "function_warm": 15, "loop": 0.8, "bytewax": 2}
_TITLES = {
    "beamrec": "beamrec stream, on Prism",
    "loop": "hand-batched Python loop",
    "bytewax": "Bytewax flow",
    "function_warm": "function per event, warm",
    "function_connect": "function per event, connects",
}


def write_report(records: Records, path: Path, readme: bool) -> Path:
    """Writes the tables into a file of their own, and into bench/README.md if asked to."""
    text = "\n\n".join(_tables(records))
    path.write_text(f"{text}\n", encoding="utf-8")
    if readme:
        whole = _README.read_text(encoding="utf-8")
        before, _, rest = whole.partition(_BEGIN)
        after = rest.partition(_END)[2]
        _README.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")
    return path


def _tables(records: Records) -> list[str]:
    sizes = sorted({record["products"] for record in records.find({}) if "products" in record})
    tables = []
    for products in sizes:
        tables += [_throughput(records, products), _latency(records, products), _rest(records, products)]
    machine = records.last({"contest": "machine"}) or {}
    rows = [(name, str(value)) for name, value in machine.items() if name != "contest"]
    return [*filter(None, tables), _table(["machine", ""], rows)]


def _throughput(records: Records, products: int) -> str:
    key: Record = {"contest": "throughput", "products": products}
    ours = records.median({**key, "system": "beamrec"})
    rows = []
    for system, title in _TITLES.items():
        rounds = records.find({**key, "system": system})
        rate = records.median({**key, "system": system})
        if rate is None or ours is None:
            continue
        cpu = records.median({**key, "system": system}, "cpu_us_per_event")
        peak = records.median({**key, "system": system}, "peak_mib")
        goal = f"{_GOALS[system]}×" if system in _GOALS else ""
        ratio = f"**{ours / rate:,.3g}×**" if system in _GOALS else ""
        rows.append((title, str(len(rounds)), f"{rate:,.0f}", ratio, goal, f"{cpu:,.0f}", f"{peak:,.0f}"))
    head = ["", "rounds", "events/s", "beamrec is", "goal", "CPU s per million", "peak MiB"]
    return (
        f"**{products:,} products: events a second from a full topic**\n\n{_table(head, rows)}"
        if rows
        else ""
    )


def _latency(records: Records, products: int) -> str:
    newest: dict[int, Record] = {}
    for record in records.find({"contest": "latency", "products": products}):
        newest[record["share"]] = record
    rows = [
        (
            f"{share} %",
            f"{found['rate']:,.0f}",
            *(f"{found[name]:,.0f}" for name in ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms")),
            f"{found['cpu_us_per_event']:,.0f}",
            "yes" if found["grows"] else "no",
        )
        for share, found in sorted(newest.items())
    ]
    head = [
        "of capacity",
        "events/s",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "most",
        "CPU s per million",
        "backlog grows",
    ]
    title = f"**{products:,} products: from when an event was due to its row in the serving table**"
    return f"{title}\n\n{_table(head, rows)}" if rows else ""


def _rest(records: Records, products: int) -> str:
    rows = []
    half = records.last({"contest": "latency", "products": products, "share": 50})
    floor = records.last({"contest": "floor", "products": products})
    if half and floor:
        ratio = half["p99_ms"] / floor["p99_ms"]
        figure = f"{half['p99_ms']:,.0f} ms by {floor['p99_ms']:,.0f} ms: **{ratio:.2g}×**"
        rows.append(("p99 to the serving table by Prism's floor of two stages, half capacity", figure, "3×"))
    files = records.last({"contest": "files", "products": products})
    if files:
        figure = f"p50 {files['p50_ms'] / 1e3:.2f} s, p99 **{files['p99_ms'] / 1e3:.2f} s**"
        rows.append(("end of the window to the visible file", figure, "1 s"))
    flat = records.last({"contest": "flat", "products": products})
    if flat:
        figure = f"{', '.join(f'{value:,}' for value in flat['memory_mib'])}; p99 {flat['p99_ms']:,.0f} ms"
        title = f"memory over {flat['minutes']:g} min at {flat['rate']:,.0f} events/s, by tenths [MiB]"
        rows.append((title, figure, "flat"))
    return _table([f"{products:,} products", "reached", "goal"], rows) if rows else ""


def _table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    line = "| --- |" + " ---: |" * (len(head) - 1)
    return (
        "\n".join(f"| {' | '.join(cells)} |" for cells in (head,))
        + "\n"
        + "\n".join([line, *(f"| {' | '.join(row)} |" for row in rows)])
    )
