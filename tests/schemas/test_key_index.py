"""Rows are found by key exactly, by Arrow's look-up of few keys and by the hash table of many."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.schemas.key_index import KeyIndex, find_rows

MANY = 160_000


@pytest.fixture(scope="module")
def text_keys() -> pa.Array:
    """Distinct text of 0 to 300 bytes, some of which differ in one early, middle or late byte only."""
    keys = [str(i) for i in range(MANY)]
    keys += ["", " ", "\x00", "\x00\x00", "ü", "u\u0308", "A", "a", "a "]
    keys += ["x" * size for size in range(1, 301)]
    keys += ["y" * at + "z" + "y" * (39 - at) for at in range(40)]
    return pa.array(keys)


def test_text_is_found_by_its_bytes(text_keys: pa.Array) -> None:
    index = KeyIndex(text_keys)
    order = np.random.default_rng(42).permutation(len(text_keys)).astype(np.int32)
    assert index.rows(text_keys.take(pa.array(order))).equals(pa.array(order))
    strangers = pa.array(["b", "A ", "x" * 301, "y" * 40, None, "-1", "\x00\x00\x00"])
    assert index.rows(strangers).null_count == len(strangers)


def test_slices_and_empty_arrays_are_found(text_keys: pa.Array) -> None:
    index = KeyIndex(text_keys.slice(7))
    assert index.rows(text_keys.slice(5, 4)).to_pylist() == [None, None, 0, 1]
    assert index.rows(text_keys.slice(0, 0)).to_pylist() == []
    assert index.rows(pa.array(["", None, ""])).to_pylist() == [MANY - 7, None, MANY - 7]
    assert index.rows(pa.array([], pa.string())).type == pa.int32()


def test_keys_whose_hashes_agree_are_found_nevertheless() -> None:
    keys = pa.array([f"{'/' * 256}{i:06}" for i in range(MANY)])
    rows = KeyIndex(keys).rows(pa.array([keys[MANY - 1].as_py(), "/" * 262, None]))
    assert rows.to_pylist() == [MANY - 1, None, None]


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=20))
def test_integers_are_found_as_a_rebuilt_table_finds_them(values: list[int | None]) -> None:
    given_values = pa.array(values, pa.int64())
    assert INTEGERS.rows(given_values).equals(find_rows(given_values, INTEGER_KEYS))


INTEGER_KEYS = pa.array(np.concatenate([np.arange(-10, MANY), [-(2**63), 2**63 - 1, 2**40]]))
INTEGERS = KeyIndex(INTEGER_KEYS)


def test_integers_are_found_across_widths() -> None:
    assert INTEGERS.rows(pa.array([3, None, -10], pa.int8())).to_pylist() == [13, None, 0]
    assert INTEGERS.rows(pa.array([65_535, 2**32 - 1], pa.uint32())).to_pylist() == [65_545, None]
    assert KeyIndex(pa.array([7], pa.uint8())).rows(pa.array([7, 8], pa.int32())).to_pylist() == [0, None]


@pytest.mark.parametrize("more", [0, MANY], ids=["few", "many"])
def test_integers_of_both_signs_and_64_bits_are_numbers(more: int) -> None:
    unsigned = KeyIndex(pa.array([2**64 - 1, 2**63, *range(more + 1)], pa.uint64()))
    assert unsigned.rows(pa.array([-1, -(2**63), 0, None])).to_pylist() == [None, None, 2, None]
    assert unsigned.rows(pa.array([-1], pa.int8())).to_pylist() == [None]
    assert unsigned.rows(pa.array([2**64 - 1, 2**63], pa.uint64())).to_pylist() == [0, 1]
    signed = KeyIndex(pa.array([-1, -(2**63), *range(more + 1)], pa.int64()))
    assert signed.rows(pa.array([2**64 - 1, 2**63, 0, None], pa.uint64())).to_pylist() == [
        None,
        None,
        2,
        None,
    ]
    assert signed.rows(pa.array([-1, -(2**63)])).to_pylist() == [0, 1]
