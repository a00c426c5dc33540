"""Customers and products: every rule sends the rows that break it, and only those, to the dead letters."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from beamrec.schemas.errors import UsageError
from beamrec.schemas.ranges import MalformedRow
from beamrec.schemas.shop import Feature, Table
from beamrec.transforms.entities import CheckedTable, check_table
from beamrec.transforms.rejects import Rejects

TAKEN_AT = "2026-11-22T07:00:00.000+00:00"
MONEY = pa.decimal128(10, 2)


def check(
    keys: pa.Array, column: pa.Array, feature: Feature, malformed: Sequence[MalformedRow] = ()
) -> CheckedTable:
    """Checks a table `t` of a key `k` and one feature."""
    batch = pa.RecordBatch.from_arrays([keys, column], names=["k", feature.column])
    table = Table("t", "k", "string" if pa.types.is_string(keys.type) else "int", (feature,))
    return check_table(batch, table, malformed, Rejects("mysql", "t", ("k",), TAKEN_AT))


def split(feature: Feature, values: Sequence[Any], type_: pa.DataType) -> tuple[list[Any], list[str]]:
    """The values that pass, and the rules that the others break."""
    keys = pa.array(range(len(values)), pa.int32())
    checked = check(keys, pa.array(values, type_), feature)
    assert checked.rows.num_rows + len(checked.letters) == len(values)
    return checked.rows.column(1).to_pylist(), [letter.error_type for letter in checked.letters]


def test_rows_without_a_key_or_with_an_empty_one_are_dead_letters() -> None:
    checked = check(pa.array(["b", None, "", "a", " "]), pa.array([1, 2, 3, 4, 5]), Feature("c"))
    assert checked.rows.column(0).to_pylist() == [" ", "a", "b"]
    assert {letter.error_type: letter.payload for letter in checked.letters} == {
        "empty_key": b'{"c":3,"k":""}',
        "null_key": b'{"c":2,"k":null}',
    }
    assert checked.rejected == {""}


def test_an_integer_key_of_zero_is_a_key() -> None:
    checked = check(pa.array([0, None]), pa.array(["x", "y"]), Feature("c"))
    assert checked.rows.column(0).to_pylist() == [0]
    assert [letter.error_type for letter in checked.letters] == ["null_key"]
    assert checked.rejected == frozenset()


def test_null_is_a_dead_letter_only_where_the_shop_says_so() -> None:
    assert split(Feature("c", nullable=False), ["", None, "x"], pa.string()) == (["", "x"], ["null_value"])
    assert split(Feature("c"), ["", None, "x"], pa.string()) == (["", None, "x"], [])


@pytest.mark.parametrize("type_", [pa.int8(), pa.int64(), pa.float32(), pa.float64(), MONEY])
def test_bounds_of_numbers_are_inclusive_and_say_nothing_about_null(type_: pa.DataType) -> None:
    feature = Feature("c", kind="number", min=-1, max=2)
    values = pa.array([-2, -1, 0, 2, 3, None]).cast(pa.float64()).cast(type_).to_pylist()
    kept, rules = split(feature, values, type_)
    assert [None if value is None else int(value) for value in kept] == [-1, 0, 2, None]
    assert rules == ["out_of_range"] * 2


def test_one_bound_is_enough() -> None:
    assert split(Feature("c", kind="number", min=0.1), [0, 1], pa.int16()) == ([1], ["out_of_range"])
    assert split(Feature("c", kind="number", max=0), [0, 1], pa.uint8()) == ([0], ["out_of_range"])


def test_decimals_equal_to_a_bound_are_within_it() -> None:
    cents = pa.array(["0.09", "0.10", "0.30", "0.31"]).cast(MONEY)
    kept, rules = split(Feature("c", kind="number", min=0.1, max=0.3), cents.to_pylist(), MONEY)
    assert [str(value) for value in kept] == ["0.10", "0.30"]
    assert rules == ["out_of_range"] * 2
    limit = pa.array(["21000.35"]).cast(MONEY).to_pylist()
    assert split(Feature("c", kind="number", max=21000.35), limit, MONEY) == (limit, [])


def test_what_is_no_number_is_out_of_range() -> None:
    values = [float("nan"), float("inf"), float("-inf"), 1.0]
    assert split(Feature("c", kind="number", min=0), values, pa.float64()) == (
        [float("inf"), 1.0],
        ["out_of_range"] * 2,
    )
    assert len(split(Feature("c", kind="number"), values, pa.float64())[0]) == 4


@pytest.mark.parametrize("type_", [pa.date32(), pa.timestamp("us"), pa.timestamp("s")])
def test_dates_bound_dates_and_times(type_: pa.DataType) -> None:
    days = pa.array(["1989-12-31", "1990-01-01", "2026-11-22", "2026-11-23"]).cast(type_).to_pylist()
    kept, rules = split(Feature("c", min="1990-01-01", max="2026-11-22"), [*days, None], type_)
    assert kept == [days[1], days[2], None]
    assert rules == ["out_of_range"] * 2


def test_the_last_day_counts_to_its_end() -> None:
    times = pa.array(["2026-11-22T23:59:59", "2026-11-23T00:00:00"]).cast(pa.timestamp("us")).to_pylist()
    assert split(Feature("c", max="2026-11-22"), times, pa.timestamp("us"))[0] == times[:1]


def test_values_are_compared_as_the_model_sees_them() -> None:
    values = ["cash", " cash\t", "Cash", "", None, "card"]
    kept, rules = split(Feature("c", values=("cash", "card")), values, pa.string())
    assert kept == ["cash", " cash\t", None, "card"]
    assert rules == ["not_allowed"] * 2
    assert split(Feature("c", values=("CASH ",), lower=True), values, pa.string())[0] == [
        *values[:3],
        None,
    ]
    assert split(Feature("c", values=("cash",), trim=False), values, pa.string())[0] == ["cash", None]


def test_values_of_a_column_of_numbers_are_its_text() -> None:
    assert split(Feature("c", values=("1", "3")), [1, 2, 3], pa.int16()) == ([1, 3], ["not_allowed"])


@pytest.mark.parametrize(
    ("feature", "type_", "message"),
    [
        (Feature("c", min=1), pa.string(), "min and max are numbers, the database has string"),
        (Feature("c", max=1), pa.date32(), "min and max are numbers, the database has date32"),
        (Feature("c", max="2026-11-22"), pa.string(), "min and max are dates, the database has string"),
        (Feature("c", min="2026-11-22"), pa.int32(), "min and max are dates, the database has int32"),
        (Feature("c", values=("a",)), pa.binary(), "values are text, the database has binary"),
    ],
)
def test_a_rule_that_does_not_go_with_its_column_is_wrong_usage(
    feature: Feature, type_: pa.DataType, message: str
) -> None:
    with pytest.raises(UsageError, match=f"table t, column c: {message}"):
        check(pa.array([1]), pa.array([None], type_), feature)


def test_of_rows_with_one_key_the_least_stays_in_whatever_order_they_come() -> None:
    keys, values = [2, 1, 2, 2, 1, 3], ["b", "x", "a", "b", None, "y"]
    forward = check(pa.array(keys), pa.array(values), Feature("c"))
    backward = check(pa.array(keys[::-1]), pa.array(values[::-1]), Feature("c"))
    assert forward.rows.equals(backward.rows)
    assert forward.letters == backward.letters
    assert forward.rows.to_pylist() == [{"k": 1, "c": "x"}, {"k": 2, "c": "a"}, {"k": 3, "c": "y"}]
    assert [letter.payload for letter in forward.letters] == [
        b'{"c":"b","k":2}',
        b'{"c":"b","k":2}',
        b'{"c":null,"k":1}',
    ]
    assert {letter.error_type for letter in forward.letters} == {"duplicate_key"}


def test_an_invalid_row_does_not_make_a_valid_one_a_duplicate() -> None:
    checked = check(pa.array([1, 1]), pa.array([-1, 5]), Feature("c", kind="number", min=0))
    assert checked.rows.to_pylist() == [{"k": 1, "c": 5}]
    assert [letter.error_type for letter in checked.letters] == ["out_of_range"]


def test_of_several_broken_rules_the_first_is_reported() -> None:
    table = Table("t", "k", "int", (Feature("a", nullable=False), Feature("b", kind="number", max=1)))
    batch = pa.RecordBatch.from_pydict(
        {"k": pa.array([None, 1, 2], pa.int32()), "a": [None, None, "x"], "b": [9, 9, 9]}
    )
    checked = check_table(batch, table, (), Rejects("mysql", "t", ("k",), TAKEN_AT))
    rules = {json.loads(letter.payload)["k"]: letter.error_type for letter in checked.letters}
    assert rules == {None: "null_key", 1: "null_value", 2: "out_of_range"}


def test_a_row_that_fits_no_batch_is_a_dead_letter_with_its_column_and_type() -> None:
    row = MalformedRow("t", "c", "int32", {"k": 7, "c": b"\xff" * 500})
    checked = check(pa.array([1]), pa.array([1]), Feature("c"), [row])
    (letter,) = checked.letters
    assert letter.error_type == "bad_type"
    assert letter.error_message.startswith("expected c of type int32, got b'\\xff")
    assert letter.error_message.endswith("… (500 bytes)")
    assert letter.payload == b'{"c":"' + b"ff" * 500 + b'","k":7}'
    assert checked.rejected == {7}


@pytest.mark.parametrize("key", [b"\x01\xff", 1.5, float("inf"), "text", "\udcff", None])
def test_a_key_that_fits_no_column_makes_a_letter_that_is_json(key: Any) -> None:
    (letter,) = check(
        pa.array([1]), pa.array([1]), Feature("c"), [MalformedRow("t", "k", "int32", {"k": key, "c": 1})]
    ).letters
    record = json.loads(letter.to_json(), parse_constant=pytest.fail)
    assert set(record["source"]["position"]) == {"k"}
    json.loads(letter.payload, parse_constant=pytest.fail)


def test_a_letter_says_where_the_row_is_what_was_expected_and_what_came() -> None:
    (letter,) = check(pa.array(["a"]), pa.array([-5]), Feature("c", kind="number", min=0, max=9)).letters
    assert letter.error_message == "expected c from 0 to 9, got -5"
    assert letter.source == {"system": "mysql", "name": "t", "position": {"k": "a"}}
    assert (letter.stage, letter.first_seen) == ("validate", TAKEN_AT)


def test_valid_rows_in_order_are_not_copied() -> None:
    column = pa.array(["x", "y"])
    checked = check(pa.array([1, 2]), column, Feature("c", nullable=False, values=("x", "y")))
    assert checked.rows.column(1).buffers()[2].address == column.buffers()[2].address
    assert checked.index.rows(pa.array([2, 3])).to_pylist() == [1, None]


def test_an_empty_table_is_valid() -> None:
    feature = Feature("c", kind="number", min=0, nullable=False)
    checked = check(pa.array([], pa.string()), pa.array([], pa.int32()), feature)
    assert (checked.rows.num_rows, checked.letters) == (0, ())
    assert checked.index.rows(pa.array(["x"])).to_pylist() == [None]
