"""One function makes the model's inputs on both sides: equal values give equal features."""

import decimal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beamrec.schemas.shop import CLASSICMODELS, Feature
from beamrec.transforms.features import BuildFeatures, build_features

USER = CLASSICMODELS.user_features
CENTS = st.none() | st.integers(-(10**10) + 1, 10**10 - 1)
TEXT = st.none() | st.text()
ROWS = st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), TEXT, TEXT, CENTS), min_size=1, max_size=50)


def number(values: list[object], type_: pa.DataType) -> pa.Array:
    """The float32 feature made of values of one type."""
    batch = pa.RecordBatch.from_pydict({"key": ["k"] * len(values), "n": pa.array(values, type_)})
    return build_features(batch, "key", [Feature("n", "number")]).column("n")


def category(values: list[object], type_: pa.DataType) -> list[str | None]:
    """The text feature made of values of one type."""
    batch = pa.RecordBatch.from_pydict({"key": ["k"] * len(values), "c": pa.array(values, type_)})
    return build_features(batch, "key", [Feature("c")]).column("c").to_pylist()


@settings(max_examples=1000, deadline=None)
@given(ROWS)
def test_batch_side_and_stream_side_give_identical_features(
    rows: list[tuple[int, str | None, str | None, int | None]],
) -> None:
    """decimal(10,2) and int32 of a training file against float64 and int64 of an event, bit by bit."""
    keys, cities, countries, cents = map(list, zip(*rows, strict=True))
    amounts = [None if c is None else decimal.Decimal(c).scaleb(-2) for c in cents]
    batch_side = pa.RecordBatch.from_pydict(
        {
            "creditLimit": pa.array(amounts, pa.decimal128(10, 2)),
            "city": pa.array(cities, pa.string()),
            "country": pa.array(countries, pa.string()).dictionary_encode(),
            "customerNumber": pa.array(keys, pa.int32()),
        }
    )
    stream_side = pa.RecordBatch.from_pydict(
        {
            "customerNumber": pa.array(keys, pa.int64()),
            "city": pa.array(cities, pa.string()),
            "country": pa.array(countries, pa.large_string()),
            "creditLimit": pa.array([None if a is None else float(a) for a in amounts], pa.float64()),
            "event_id": ["e"] * len(keys),
        }
    )
    left = build_features(batch_side, "customerNumber", USER)
    right = build_features(stream_side, "customerNumber", USER)
    assert left.schema == right.schema
    assert left.equals(right)


def test_numbers_are_rounded_once_to_the_nearest_float32() -> None:
    values = [decimal.Decimal("21000.00"), decimal.Decimal("95.70"), decimal.Decimal("0.07"), None]
    expected = [np.float32(21000), np.float32(95.7), np.float32(0.07), None]
    assert number(values, pa.decimal128(10, 2)).type == pa.float32()
    assert number(values, pa.decimal128(10, 2)).to_pylist() == expected


@pytest.mark.parametrize("type_", [pa.int16(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(10, 2)])
def test_a_number_is_the_same_in_every_arrow_type(type_: pa.DataType) -> None:
    assert number([21000, 0, None, -3], type_).to_pylist() == [21000.0, 0.0, None, -3.0]


@pytest.mark.parametrize("type_", [pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(10, 2)])
def test_a_number_as_category_is_the_same_text_in_every_arrow_type(type_: pa.DataType) -> None:
    assert category([5, None, 120], type_) == ["5", None, "120"]


def test_fractions_as_category_keep_their_digits() -> None:
    assert (
        category([decimal.Decimal("5.50")], pa.decimal128(10, 2)) == category([5.5], pa.float64()) == ["5.5"]
    )


def test_null_and_empty_stay_apart_and_nothing_is_trimmed() -> None:
    assert category([None, "", "Norway  "], pa.string()) == [None, "", "Norway  "]


def test_a_key_is_the_same_text_as_integer_and_as_text() -> None:
    def keys(array: pa.Array) -> list[str | None]:
        return build_features(pa.RecordBatch.from_arrays([array], ["k"]), "k", []).column("k").to_pylist()

    integers, text = pa.array([103, None, -1], pa.int32()), pa.array(["103", None, "-1"])
    assert keys(integers) == keys(text) == keys(text.dictionary_encode()) == ["103", None, "-1"]


def test_a_key_that_is_a_fraction_is_refused() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([103.0])], ["k"])
    with pytest.raises(ValueError, match="key k: expected integers or text, got double"):
        build_features(batch, "k", [])


def test_text_that_is_no_number_names_the_feature() -> None:
    with pytest.raises(ValueError, match="feature n: not readable as a number"):
        number(["many"], pa.string())


def test_a_missing_column_is_an_error() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1])], ["customerNumber"])
    with pytest.raises(KeyError, match="city"):
        build_features(batch, "customerNumber", USER)


def test_the_transform_does_what_the_function_does() -> None:
    batch = pa.RecordBatch.from_pydict({"productCode": ["S1"], "MSRP": [95.7], "other": [1]})
    features = (Feature("MSRP", "number"),)
    with TestPipeline() as pipeline:
        built = pipeline | beam.Create([batch]) | BuildFeatures("productCode", features)
        rows = built | beam.FlatMap(lambda each: each.to_pylist())
        assert_that(rows, equal_to([{"productCode": "S1", "MSRP": float(np.float32(95.7))}]))
