"""The batch bench judges right: equal content is equal, any difference is found, medians are divided."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

BATCH = Path(__file__).resolve().parents[2] / "bench" / "batch"
ROW = {
    "city": "Köln",
    "state": None,
    "postalCode": "",
    "country": "Norway  ",
    "creditLimit": "21000.50",
    "productCode": "S10_1678",
    "productLine": "Ships",
    "productScale": "1:10",
    "quantityInStock": 7,
    "buyPrice": "10.25",
    "MSRP": "20.10",
    "productRating": 5,
}
MONEY = ("creditLimit", "buyPrice", "MSRP")


def write(
    output: Path, customers: dict[int, list[dict[str, Any]]], money: pa.DataType, files: int = 1
) -> Path:
    for customer, rows in customers.items():
        folder = output / f"customerNumber={customer}"
        folder.mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        for name in MONEY:
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table[name].cast(pa.decimal128(10, 2)).cast(money))
        for number in range(files):
            parquet.write_table(
                table.take(pa.array(range(number, len(rows), files), pa.int64())),
                folder / f"{number}.parquet",
            )
    return output


def ask(expression: str) -> str:
    """What an expression over the bench's modules prints; a script finds its siblings by its folder."""
    command = [sys.executable, "-c", f"from content import *; from pathlib import Path; print({expression})"]
    return subprocess.run(command, cwd=BATCH, check=True, capture_output=True, text=True).stdout.strip()


def compare(left: Path, right: Path) -> tuple[str, bool]:
    paths = f"Path({str(left)!r}), Path({str(right)!r}), rows=1"
    same = ask(f"fingerprint(Path({str(left)!r})) == fingerprint(Path({str(right)!r}))")
    return ask(f"first_difference({paths})"), same == "True"


def test_files_order_and_widths_do_not_matter(tmp_path: Path) -> None:
    rows = [{**ROW, "productCode": f"S{n}"} for n in range(5)]
    left = write(tmp_path / "left", {103: rows, 106: [ROW]}, pa.decimal128(10, 2))
    right = write(tmp_path / "right", {106: [ROW], 103: rows[::-1]}, pa.float64(), files=2)
    assert compare(left, right) == ("None", True)


@pytest.mark.parametrize(
    "other",
    [
        {103: [{**ROW, "state": ""}]},
        {103: [{**ROW, "postalCode": None}]},
        {103: [{**ROW, "country": "Norway"}]},
        {103: [{**ROW, "MSRP": "20.11"}]},
        {103: [{**ROW, "productRating": 4}]},
        {103: [ROW, ROW]},
        {104: [ROW]},
    ],
    ids=["NULL or empty", "empty or NULL", "blanks", "a cent", "rating", "twice", "partition"],
)
def test_every_difference_is_found(tmp_path: Path, other: dict[int, list[dict[str, Any]]]) -> None:
    left = write(tmp_path / "left", {103: [ROW]}, pa.decimal128(10, 2))
    right = write(tmp_path / "right", other, pa.decimal128(10, 2))
    difference, same = compare(left, right)
    assert "times more in" in difference
    assert not same


def test_the_report_divides_medians_and_holds_them_against_the_goals(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    # (contest, system, shop) → (seconds, GiB, million rows) of each round
    runs = {
        ("partitions10k", "beamrec", "shop5m"): [(10, 1.0, 5), (8, 1.0, 5), (9, 1.0, 5)],
        ("partitions10k", "pyspark", "shop5m"): [(90, 6.0, 5), (108, 6.0, 5), (300, 6.0, 5)],
        ("growth", "beamrec", "shop5m"): [(10, 1.0, 5)],
        ("growth", "beamrec", "shop50m_wide"): [(125, 1.5, 50)],
    }
    records = [
        {"kind": "run", "contest": contest, "system": system, "shop": shop, "round": number, "code": code}
        | {"seconds": seconds, "peak_bytes": gib * 2**30, "rows": millions * 10**6, "cpu_seconds": 1.0}
        for (contest, system, shop), measured in runs.items()
        for code, rounds in (("older", [(1, 0.1, 5)]), ("newest", measured))
        for number, (seconds, gib, millions) in enumerate(rounds)
    ]
    results.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "run", "cut')
    subprocess.run(
        [sys.executable, BATCH / "run.py", "--report", "--results", results], check=True, cwd=tmp_path
    )
    goals = {goal["goal"]: goal for goal in json.loads((tmp_path / "results.json").read_text())["goals"]}
    found = {name: (goal["reached"], goal["met"]) for name, goal in goals.items()}
    assert found == {
        "PySpark JDBC, join in SQL": (12.0, True),
        "rows a second, 50 M in 100,000 partitions, by those at 5 M": (0.8, False),
        "peak memory, 50 M in 100,000 partitions, by that at 5 M": (1.5, False),
        "peak memory, 50 M in 100,000 partitions, GiB": (1.5, True),
    }
    page = (tmp_path / "results.html").read_text()
    assert page.count("<svg") == 5  # goals, and seconds and memory of two contests
    assert "http" not in page
