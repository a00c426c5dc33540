"""List columns without a loop by row: equal to the loop, on empty lists, slices and repeated values."""

import random

import numpy as np
import pyarrow as pa
import pytest

from beamrec.transforms.ranked_lists import ProductsOfRows, as_objects, kept, lengths_of, ranks_of, sliced

LISTS = pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64())]))


def drawn(seed: int, rows: int) -> pa.ListArray:
    draw = random.Random(seed)
    entries = [
        [{"id": f"P{draw.randrange(6)}", "score": draw.random()} for _ in range(draw.choice((0, 0, 1, 3, 9)))]
        for _ in range(rows)
    ]
    return pa.array(entries, LISTS)


@pytest.mark.parametrize("seed", range(20))
def test_entries_are_kept_as_a_loop_would_keep_them(seed: int) -> None:
    lists = drawn(seed, 2 * seed).slice(seed // 2)
    flags = np.random.default_rng(seed).random(len(lists.flatten())) < 0.6
    pieces = sliced(list(zip(lists.flatten().to_pylist(), flags.tolist(), strict=True)), lengths_of(lists))
    for most in (None, 0, 1, 3):
        expected = [[entry for entry, flag in piece if flag][:most] for piece in pieces]
        found = kept(lists, flags, most)
        found.validate(full=True)
        assert found.to_pylist() == as_objects(found) == expected


def test_ranks_begin_anew_with_each_run() -> None:
    assert ranks_of(np.array([3, 3, 5, 3, 3, 3])).tolist() == [1, 2, 1, 1, 2, 3]
    assert ranks_of(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("seed", range(20))
def test_products_are_found_in_their_own_row_only(seed: int) -> None:
    own, asked = drawn(seed, 12), drawn(seed + 100, 12)
    rows, of_rows = (np.repeat(np.arange(12), lengths_of(lists)) for lists in (own, asked))
    found = ProductsOfRows(rows, own.flatten().field("id")).have(of_rows, asked.flatten().field("id"))
    stand = [{entry["id"] for entry in entries} for entries in own.to_pylist()]
    expected = [entry["id"] in stand[i] for i, entries in enumerate(asked.to_pylist()) for entry in entries]
    assert found.tolist() == expected


def test_a_null_is_a_list_without_entries() -> None:
    lists = pa.array([None, [{"id": "P", "score": 1.0}], None], LISTS)
    assert as_objects(lists) == [[], [{"id": "P", "score": 1.0}], []]
    assert kept(lists, np.array([True])).to_pylist() == as_objects(lists)


def test_nothing_stands_in_lists_without_entries() -> None:
    none = ProductsOfRows(np.array([], np.int64), pa.array([], pa.string()))
    assert none.have(np.array([0, 1]), pa.array(["P", "Q"])).tolist() == [False, False]
