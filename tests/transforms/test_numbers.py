"""Numbers are compared as the nearest float64, whatever type the database keeps them in."""

import decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamrec.transforms.numbers import to_float64
from beamrec.transforms.rules import within


@given(
    st.decimals(-(10**8) + 1, 10**8 - 1, places=2, allow_nan=False),
    st.sampled_from([pa.decimal128(10, 2), pa.decimal128(38, 20), pa.decimal256(60, 30), pa.string()]),
)
def test_a_number_is_the_nearest_float_and_within_itself(number: decimal.Decimal, type_: pa.DataType) -> None:
    text = pa.array([str(number)])
    floats = to_float64(text if pa.types.is_string(type_) else text.cast(type_))
    assert floats.to_pylist() == [float(number)]
    assert within(floats, float(number), float(number)).all()


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        ([2**53 + 1, None], pa.int64(), [2.0**53, None]),
        ([2**64 - 1], pa.uint64(), [2.0**64]),
        ([0.10000000149011612], pa.float32(), [0.10000000149011612]),
        ([decimal.Decimal("0.00000000000000000001")], pa.decimal128(38, 20), [1e-20]),
    ],
)
def test_every_type_comes_on_one_scale(values: list[Any], type_: pa.DataType, expected: list[Any]) -> None:
    assert to_float64(pa.array(values, type_)).to_pylist() == expected


def test_a_text_that_is_no_number_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        to_float64(pa.array(["many"]))
