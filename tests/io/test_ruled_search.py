"""Search under rules: lists stay full as long as there is anything, and are those of a look at everything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as Pipeline
from apache_beam.testing.util import assert_that
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beamrec.io.pgvector import Catalogue, ReleaseStore
from beamrec.io.ruled_search import SearchByRules, SearchRules, until_full, with_popular
from beamrec.schemas.events import CANDIDATES, RELEASE_ID, SIMILAR, event_schema
from beamrec.schemas.reasons import RULED_SIMILAR
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.rules import RuleSpec
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.transforms.rank_by_rules import RankByRules

ITEMS = 5
HISTORY = event_schema(CLASSICMODELS).field("history").type
OWN = """
class Only:
    def __init__(self, ids):
        self.ids = set(ids)

    def __call__(self, candidates):
        return [item in self.ids for item in candidates.column("id").to_pylist()]
"""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.booleans(), max_size=12), max_size=6),
    st.lists(st.integers(0, 12), min_size=1, max_size=3).map(sorted),
    st.integers(1, 4),
)
def test_each_row_gets_what_the_first_search_that_fills_it_finds(
    stays: list[list[bool]], depths: list[int], items: int
) -> None:
    """`stays[row][place]`: whether the rules leave the item at that place."""
    asked: list[tuple[int, int]] = []

    def search(depth: int) -> Callable[[Any], pa.ListArray]:
        def find(rows: Any) -> pa.ListArray:
            asked.extend((depth, row) for row in rows.tolist())
            found = [[{"id": str(at), "score": 1.0} for at in range(len(stays[row]))][:depth] for row in rows]
            return pa.array(found, CANDIDATES)

        return find

    def rank(rows: Any, candidates: pa.ListArray) -> pa.ListArray:
        pairs = zip(rows.tolist(), candidates.to_pylist(), strict=True)
        left = [[item for item in found if stays[row][int(item["id"])]][:items] for row, found in pairs]
        return pa.array(left, CANDIDATES)

    lists, short = until_full(len(stays), [(depth, search(depth)) for depth in depths], rank, items)
    expected = []
    for row, flags in enumerate(stays):
        for number, depth in enumerate(depths):
            left = [str(at) for at, stay in enumerate(flags[:depth]) if stay][:items]
            if len(left) == items or number == len(depths) - 1:
                expected.append(left)
                break
        assert [d for d, asked_row in asked if asked_row == row] == depths[: number + 1]
    assert [[item["id"] for item in found] for found in lists.to_pylist()] == expected
    assert short == sum(len(found) < items for found in expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
def test_popular_items_are_put_where_their_score_belongs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count, dim = int(draw.integers(0, 5)), 3
    head = Catalogue(pa.array([f"P{n}" for n in range(6)]), draw.normal(size=(6, dim)).astype(np.float32))
    scored = draw.random(count) < 0.7
    vectors = draw.normal(size=(int(scored.sum()), dim)).astype(np.float32)
    found: list[list[dict[str, Any]]] = []
    for _ in range(count):
        places = draw.permutation(10)[: int(draw.integers(0, 5))]
        found.append([{"id": f"P{n}", "score": float(10 - n)} for n in sorted(places)])
    merged = with_popular(pa.array(found, CANDIDATES), vectors, scored, head)
    merged.validate(full=True)
    for row, entries in enumerate(merged.to_pylist()):
        own = {entry["id"]: (entry["score"], False) for entry in found[row]}
        if scored[row]:
            products = head.vectors @ vectors[int(scored[:row].sum())]
            more = zip(head.ids.to_pylist(), products.tolist(), strict=True)
            own = {key: (score, True) for key, score in more} | own
        assert {entry["id"]: entry["popular"] for entry in entries} == {k: p for k, (_, p) in own.items()}
        np.testing.assert_allclose(
            [entry["score"] for entry in entries], [own[entry["id"]][0] for entry in entries], rtol=1e-5
        )
        assert [entry["score"] for entry in entries] == sorted((e["score"] for e in entries), reverse=True)


@pytest.fixture
def own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's package with a rule that leaves some items only."""
    (tmp_path / "rules_of_ruled_search.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("retrieval", ["exact", "index"])
@pytest.mark.parametrize("left", [9, 3])
def test_lists_are_as_full_as_can_be_however_deep_the_items_lie(
    database: str,
    store: ReleaseStore,
    make_release: Callable[..., ReleaseContents],
    own_rules: None,
    retrieval: Any,
    left: int,
) -> None:
    release = make_release(items=400)
    store.load(release)
    user = release.user_vectors[0]
    scores = dict(zip(release.item_ids, (release.item_vectors @ user).tolist(), strict=True))
    # Some of those far from the user, all of them among the 40 most popular.
    only = sorted(release.popular[:40], key=scores.__getitem__)[:left]
    rule = RuleSpec("python", "only", {"factory": "rules_of_ruled_search:Only", "options": {"ids": only}})
    ranking = RankByRules((rule,), ITEMS, "customerNumber")
    rules = SearchRules(ranking, None, candidates=8, most_candidates=50)
    batch = pa.RecordBatch.from_pydict(
        {
            "customerNumber": pa.array([1, None, 2], pa.int64()),
            "history": pa.array([[], [], [{"product": only[0], "in_cart": False}]], HISTORY),
            "user_vector": pa.array([user, None, user], pa.list_(pa.float32(), 8)),
            "similar": pa.array([[], [], []], SIMILAR),
        }
    ).replace_schema_metadata({RELEASE_ID: release.manifest.id})

    def check(batches: list[pa.RecordBatch]) -> None:
        (found,) = batches
        first, popular, last = (
            [item["id"] for item in entries] for entries in found.column("candidates").to_pylist()
        )
        best = sorted(only, key=scores.__getitem__, reverse=True)
        assert first == best[:ITEMS]
        assert popular == [item for item in release.popular if item in only][:ITEMS]
        assert last == [item for item in best if item != only[0]][:ITEMS]
        assert found.column(RULED_SIMILAR).to_pylist() == [[], [], []]

    with Pipeline() as pipeline:
        search = SearchByRules(database, rules, "customerNumber", retrieval)
        assert_that(pipeline | beam.Create([batch]) | search, check)
