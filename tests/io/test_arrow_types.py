"""Declared SQL types become exact Arrow types; values that do not fit are refused, never bent."""

import pyarrow as pa
import pytest

from beamrec.io.arrow_types import (
    NOT_OF_THE_TYPE,
    arrow_type,
    check_key_type,
    from_fitting,
    misfits,
    refuse_unknown,
    to_array,
)
from beamrec.schemas.errors import UsageError


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("int(11)", pa.int32()),
        ("int(10) unsigned", pa.uint32()),
        ("INT UNSIGNED ZEROFILL", pa.uint32()),
        ("tinyint(1)", pa.int8()),
        ("smallint(6)", pa.int16()),
        ("mediumint", pa.int32()),
        ("bigint(20) unsigned", pa.uint64()),
        ("decimal(10,2)", pa.decimal128(10, 2)),
        ("DECIMAL(10, 2) unsigned", pa.decimal128(10, 2)),
        ("numeric", pa.decimal128(10, 0)),
        ("decimal(65,30)", pa.decimal256(65, 30)),
        ("varchar(50)", pa.string()),
        ("enum('a','b')", pa.string()),
        ("enum('Small (S)','L, unsigned')", pa.string()),
        ("SET('x)')", pa.string()),
        ("double", pa.float64()),
        ("double precision", pa.float64()),
        ("float", pa.float32()),
        ("date", pa.date32()),
        ("datetime(6)", pa.timestamp("us")),
        ("mediumblob", pa.binary()),
        ("year(4)", pa.int16()),
    ],
)
def test_a_declared_type_has_its_arrow_type(declared: str, expected: pa.DataType) -> None:
    assert arrow_type(declared) == expected


@pytest.mark.parametrize("declared", ["geometry", "my type", "", "vector(3)", "decimal(77,0)", "decimal(x)"])
def test_a_column_of_an_unknown_type_is_refused_if_it_is_read(declared: str) -> None:
    refuse_unknown({"id": arrow_type("int")}, "t")
    with pytest.raises(UsageError, match=r"table t, column c: unknown column type") as caught:
        refuse_unknown({"id": arrow_type("int"), "c": arrow_type(declared)}, "t")
    assert repr(declared) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        (["21000.00", None, "-0.01"], pa.decimal128(10, 2), ["21000.00", None, "-0.01"]),
        (["95.7", "3"], pa.decimal128(10, 2), ["95.70", "3.00"]),
        ([1, None], pa.int16(), ["1", None]),
        (["18446744073709551615"], pa.uint64(), ["18446744073709551615"]),
        (["", None, "Norway  "], pa.string(), ["", None, "Norway  "]),
        (["2004-10-19"], pa.date32(), ["2004-10-19"]),
        ([None, None], pa.int32(), [None, None]),
        ([], pa.date32(), []),
        ([3.0], pa.int32(), ["3"]),
    ],
)
def test_values_keep_their_value(
    values: list[object], type_: pa.DataType, expected: list[str | None]
) -> None:
    array = to_array(values, type_)
    assert array.type == type_
    assert array.cast(pa.string()).to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([3.5], pa.int32()),
        (["secret"], pa.int32()),
        ([2**40], pa.int32()),
        (["-1"], pa.uint32()),
        (["1.005"], pa.decimal128(10, 2)),
        (["123456789.00"], pa.decimal128(10, 2)),
        # Arrow would make 685055151781982937.7 of it: modulo 2**128.
        (["50428212743793442270814901748677432112"], pa.decimal128(38, 20)),
        ([9 * 10**18], pa.decimal128(38, 20)),
        (["0000-00-00"], pa.date32()),
        ([1, "secret"], pa.int64()),
        (["secret"], pa.float64()),
        # Seconds since 1970, which Arrow would take for microseconds.
        ([1097884800], pa.timestamp("us")),
        ([1097884800], pa.date32()),
        ([1097884800.5], pa.timestamp("us")),
    ],
)
def test_a_value_that_does_not_fit_is_found(values: list[object], type_: pa.DataType) -> None:
    with pytest.raises(NOT_OF_THE_TYPE):
        to_array(values, type_)
    # Among many others, and more than once.
    good: list[object] = [None] * 300
    mixed = [*good, values[-1], *good, values[-1]]
    assert list(misfits(mixed, type_)) == [300, 601]
    assert list(misfits(good, type_)) == []


def test_values_of_several_types_that_each_fit_are_kept() -> None:
    values = [1, "2", None, 3.0]
    assert list(misfits(values, pa.int32())) == []
    assert from_fitting(values, pa.int32()).equals(pa.array([1, 2, None, 3], pa.int32()))
    assert from_fitting([], pa.int32()).equals(pa.array([], pa.int32()))


def test_a_key_must_be_of_the_shops_type() -> None:
    check_key_type(pa.uint16(), "int", "customers.id")
    check_key_type(pa.string(), "string", "customers.id")
    for type_, key_type in ((pa.string(), "int"), (pa.int32(), "string"), (pa.float64(), "int")):
        with pytest.raises(UsageError, match=r"customers\.id: the shop says key_type"):
            check_key_type(type_, key_type, "customers.id")
