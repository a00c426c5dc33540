"""Partitions from many ranges: every row once, ascending by key, however the ranges were cut."""

import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from beamrec.io import merge
from beamrec.io.merge import encode_runs, fill_files, merge_runs, read_run
from beamrec.io.partitions import split_partitions

ORDER = ("customer", "product")
Row = tuple[str, str, int]


def rows(count: int, seed: int = 1) -> list[Row]:
    """Distinct (customer, product) with a country each; customers of any case and script."""
    draw = random.Random(seed)
    customers = [f"{'aBcÄz'[n % 5]}{n}" for n in range(40)]
    keys = draw.sample([(customer, product) for customer in customers for product in range(60)], count)
    return [(customer, f"C{len(customer) % 2}{customer[0]}", product) for customer, product in keys]


def merged(ranges: Sequence[Sequence[Row]], file_rows: int = 10**9) -> list[tuple[str, list[Any]]]:
    """(folder, rows) of every file that the ranges give, over all groups."""
    groups: dict[int, list[bytes]] = {}
    for part in ranges:
        customers, countries, products = zip(*part, strict=True)
        batch = pa.RecordBatch.from_pydict({"customer": customers, "country": countries, "product": products})
        ordered = batch.sort_by([(name, "ascending") for name in ORDER])
        for group, run in encode_runs(split_partitions(ordered, ["country"])):
            groups.setdefault(group, []).append(run.to_pybytes())
    files = []
    for runs in groups.values():
        pieces = merge_runs([read_run(run) for run in runs], ORDER)
        files += [(folder, batch.to_pylist()) for folder, batch in fill_files(pieces, file_rows)]
    return sorted(files, key=lambda file: (file[0], file[1][0]["customer"], file[1][0]["product"]))


def expected(all_rows: Sequence[Row]) -> list[tuple[str, list[Any]]]:
    """The same by plain sorting."""
    folders: dict[str, list[Any]] = {}
    for customer, country, product in sorted(all_rows, key=lambda row: (row[0], row[2])):
        record = {"customer": customer, "country": country, "product": product}
        folders.setdefault(f"country={country}", []).append(record)
    return sorted(folders.items())


@pytest.mark.parametrize("batch_rows", [1, 3, 2048])
@pytest.mark.parametrize("cut", ["by customer", "at random", "one range"])
def test_rows_come_out_once_and_in_order(monkeypatch: pytest.MonkeyPatch, batch_rows: int, cut: str) -> None:
    monkeypatch.setattr(merge, "_BATCH_ROWS", batch_rows)
    every = rows(900)
    if cut == "by customer":
        # As a collation would order them: ranges that overlap in the order of bytes.
        every.sort(key=lambda row: (row[0].lower(), row[2]))
    size = 900 if cut == "one range" else 130
    ranges = [every[start : start + size] for start in range(0, 900, size)]
    assert merged(ranges[::-1]) == expected(every)


def test_files_have_exactly_the_rows_asked_for() -> None:
    every = rows(900)
    whole = expected(every)
    files = merged([every[:500], every[500:]], file_rows=25)
    for folder, records in whole:
        parts = [part for name, part in files if name == folder]
        assert [len(part) for part in parts[:-1]] == [25] * (len(parts) - 1)
        assert [record for part in parts for record in part] == records


def test_a_merge_holds_one_batch_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of disjoint ranges are decoded one after the other, whatever their number."""
    monkeypatch.setattr(merge, "_BATCH_ROWS", 10)
    decoded = [0] * 5
    runs = []
    for index in range(5):
        part = pa.RecordBatch.from_pydict(
            {"customer": range(index * 100, index * 100 + 100), "product": [0] * 100}
        )
        ((_, run),) = encode_runs([("country=x", part)])
        runs.append(run.to_pybytes())

    def counted(index: int) -> Any:
        for piece in read_run(runs[index]):
            decoded[index] += 1
            yield piece

    given = 0
    for _, piece in merge_runs([counted(index) for index in range(5)], ORDER):
        given += piece.num_rows
        assert sum(decoded) * 10 - given <= 5 * 10
    assert given == 500
