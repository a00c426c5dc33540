"""The preprocessing graph, against plain Python on the same values."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beamrec.model.handler import quiet_tensorflow
from beamrec.model.preprocessing import (
    FIRST_ENTRY,
    MISSING,
    TOKENS,
    UNSEEN,
    FeatureSpec,
    load_transform,
    missing_name,
    raw_arrays,
    read_vocabulary,
    vocabulary_sizes,
)
from beamrec.schemas.shop import CLASSICMODELS, Feature, RatingsTable, Shop, Table

SHOP = Shop(
    "odd",
    Table(
        "c",
        "id",
        "string",
        (
            Feature("plain", trim=False, event_field="p"),
            Feature("Ort (Straße)", lower=True, event_field="o"),
            Feature("sum", kind="number", event_field="s"),
            Feature("none", kind="number", event_field="n"),
            Feature("never", event_field="v"),
        ),
    ),
    Table("p", "sku", "string", (Feature("words", kind="text"), Feature("skewed", kind="number", log=True))),
    RatingsTable("r", "c", "p", "x"),
)
ROWS = {
    "id": ["a", "a", "b", "c", None, "new\nline"],
    "plain": ["x ", "x", "x ", "", None, "y"],
    "Ort (Straße)": ["\u00a0ÖL ", "öl", " Öl\t", "  ", "WIEN", None],
    "sum": [1e7 + 1, 1e7 + 2, 1e7 + 3, None, float("inf"), 1e7 + 2],
    "none": [None] * 6,
    "never": [None] * 6,
    "sku": ["s"] * 6,
    "words": ["Der ROTE-Wagen", "der wagen!", "", None, "  -- ", "w " * 40],
    "skewed": [0.0, 9.0, 99.0, -9.0, None, 9.0],
}


def _features() -> pa.RecordBatch:
    numbers = {"sum", "none", "skewed"}
    return pa.RecordBatch.from_pydict(
        {n: pa.array(v, pa.float32() if n in numbers else pa.string()) for n, v in ROWS.items()}
    )


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_tensorflow()
    import apache_beam as beam

    import beamrec.transforms.coders  # noqa: F401
    from beamrec.model.analysis import analyze_features

    folder = tmp_path_factory.mktemp("graph") / "scalers"
    batches = [_features().slice(0, 1), _features().slice(1, 4), _features().slice(5)]
    analyze_features(beam.Create(batches), FeatureSpec.from_shop(SHOP), folder)
    return folder


@pytest.fixture(scope="module")
def outputs(graph: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    raw = raw_arrays(_features(), FeatureSpec.from_shop(SHOP).inputs)
    transformed = load_transform(graph).transform_raw_features({n: tf.constant(v) for n, v in raw.items()})
    return {name: values.numpy() for name, values in transformed.items()}


def test_vocabularies_are_by_count_then_value_without_what_a_line_cannot_hold(graph: Path) -> None:
    assert read_vocabulary(graph, "user_id") == ["a", "b", "c"]
    assert read_vocabulary(graph, "user_0_plain") == ["x ", "x", "y"]
    assert read_vocabulary(graph, "user_1_ort_stra_e") == ["öl", "wien"]
    assert read_vocabulary(graph, "item_0_words") == ["w", "der", "wagen", "rote"]
    sizes = vocabulary_sizes(graph, FeatureSpec.from_shop(SHOP))
    assert sizes["user_0_plain"] == 3
    assert sizes["user_4_never"] == 1


def test_indices_tell_known_unseen_and_missing_apart(outputs: dict[str, np.ndarray]) -> None:
    first = FIRST_ENTRY
    assert outputs["user_id"].tolist() == [first, first, first + 1, first + 2, MISSING, UNSEEN]
    assert outputs["user_0_plain"].tolist() == [first, first + 1, first, MISSING, MISSING, first + 2]
    assert outputs["user_1_ort_stra_e"].tolist() == [first, first, first, MISSING, first + 1, MISSING]
    assert outputs["user_4_never"].tolist() == [MISSING] * 6


def test_texts_are_words_folded_padded_and_cut(outputs: dict[str, np.ndarray]) -> None:
    words = outputs["item_0_words"]
    w, der, wagen, rote = range(FIRST_ENTRY, FIRST_ENTRY + 4)
    assert words.shape == (6, TOKENS)
    assert words[0, :4].tolist() == [der, rote, wagen, MISSING]
    assert words[1, :3].tolist() == [der, wagen, MISSING]
    assert (words[2:5] == MISSING).all()
    assert (words[5] == w).all()


def test_numbers_are_deviations_from_the_mean_of_those_present(outputs: dict[str, np.ndarray]) -> None:
    deviation = np.std([1, 2, 3, 2])
    expected = [-1 / deviation, 0, 1 / deviation, 0, 0, 0]
    np.testing.assert_allclose(outputs["user_2_sum"], expected, atol=1e-5)
    assert outputs[missing_name("user_2_sum")].tolist() == [0, 0, 0, 1, 1, 0]
    logs = np.array([0, np.log(10), np.log(100), -np.log(10), np.log(10)])
    scaled = (logs - logs.mean()) / logs.std()
    np.testing.assert_allclose(outputs["item_1_skewed"], [*scaled[:4], 0, scaled[4]], atol=1e-5)


def test_a_number_that_is_never_there_is_zero_and_missing(outputs: dict[str, np.ndarray]) -> None:
    assert outputs["user_3_none"].tolist() == [0] * 6
    assert outputs[missing_name("user_3_none")].tolist() == [1] * 6


def test_absurd_numbers_are_clipped(graph: Path) -> None:
    import tensorflow as tf

    raw = {n: v[:1] for n, v in raw_arrays(_features(), FeatureSpec.from_shop(SHOP).inputs).items()}
    for value, expected in ((-3e38, -5), (3e38, 5)):
        raw["user_2_sum"] = np.array([value], np.float32)
        out = load_transform(graph).transform_raw_features({n: tf.constant(v) for n, v in raw.items()})
        assert out["user_2_sum"].numpy().tolist() == [expected]


def test_input_names_are_safe_and_distinct_for_any_column_name() -> None:
    odd = tuple(Feature(name, event_field="e") for name in ("a b", "a-b", "日本", "x" * 64))
    shop = Shop(
        "s", Table("c", "id", "int", odd), Table("p", "sku", "int", ()), RatingsTable("r", "c", "p", "x")
    )
    names = [i.name for i in FeatureSpec.from_shop(shop).inputs]
    assert names[:4] == ["user_id", "user_0_a_b", "user_1_a_b", "user_2_"]
    assert len(set(names)) == len(names)


def test_classicmodels_sees_only_what_events_carry() -> None:
    spec = FeatureSpec.from_shop(CLASSICMODELS)
    assert [i.column for i in spec.user] == ["customerNumber", "city", "country", "creditLimit"]
    assert [i.kind for i in spec.item] == ["identity", "category", "category", "number", "number", "number"]
