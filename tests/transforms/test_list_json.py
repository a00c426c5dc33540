"""Lists as JSON, beside what orjson writes of the same objects."""

import math
from typing import Any

import orjson
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from beamrec.schemas.events import CANDIDATES, NEIGHBOURS, SIMILAR
from beamrec.transforms.list_json import quoted, ranked_json, similar_json

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.floats(allow_subnormal=True)


def entries(name: str) -> Any:
    return st.lists(st.builds(lambda i, n: {"id": i, name: n}, texts, numbers), max_size=3)


def as_read(objects: Any) -> bytes:
    return orjson.dumps(objects)


@given(st.lists(st.one_of(st.none(), entries("score")), max_size=5), st.integers(0, 2))
def test_candidates_are_written_as_orjson_does(rows: list[Any], first: int) -> None:
    lists = pa.array(rows, CANDIDATES)[first:]
    assert ranked_json(lists).to_pylist() == [as_read(row or []).decode() for row in rows[first:]]


@given(
    st.lists(
        st.lists(st.fixed_dictionaries({"product": texts, "items": entries("distance")}), max_size=3),
        max_size=4,
    )
)
def test_similar_items_are_written_as_orjson_does(rows: list[Any]) -> None:
    renamed = [[{"product_code": e["product"], "similar_items": e["items"]} for e in row] for row in rows]
    assert similar_json(pa.array(rows, SIMILAR)).to_pylist() == [as_read(row).decode() for row in renamed]


def test_lists_with_more_than_an_id_and_a_number() -> None:
    kind = pa.list_(pa.struct([("id", pa.string()), ("score", pa.float64()), ("why", pa.list_(pa.string()))]))
    rows = [[{"id": "P", "score": 0.5, "why": ["near", "new"]}], []]
    assert ranked_json(pa.array(rows, kind)).to_pylist() == [as_read(row).decode() for row in rows]


def test_numbers_that_json_has_no_word_for() -> None:
    rows = [[{"id": "P", "distance": math.nan}, {"id": "Q", "distance": math.inf}]]
    expected = '[{"id":"P","distance":null},{"id":"Q","distance":null}]'
    assert ranked_json(pa.array(rows, NEIGHBOURS)).to_pylist() == [expected]


@given(st.lists(st.one_of(st.none(), texts), max_size=6))
def test_quoted(values: list[str | None]) -> None:
    assert quoted(pa.array(values, pa.string())).to_pylist() == [as_read(v).decode() for v in values]
