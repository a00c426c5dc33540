"""Business rules against a plain loop: what stays, in which order, and what moved."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import CANDIDATES, SIMILAR
from beamrec.schemas.rules import Facts, ProductFacts, RuleSpec
from beamrec.transforms.rank_by_rules import RankByRules, apply_rules
from beamrec.transforms.rule_kinds import open_rule

PRODUCTS = [f"P{number}" for number in range(12)]
ids = st.sampled_from(PRODUCTS)
lines = st.sampled_from(["ships", "cars", "", None])
stocks = st.one_of(st.none(), st.integers(-2, 3))
rule_names = st.lists(st.sampled_from(["in_stock", "diversity", "already_bought"]), unique=True)


@dataclasses.dataclass
class Reverse:
    """A re-ranking rule: each list from its end."""

    def __call__(self, candidates: pa.RecordBatch) -> Any:
        return np.arange(candidates.num_rows)[::-1]


def spec(kind: str, **options: Any) -> RuleSpec:
    return RuleSpec(kind, kind, options)


SPECS = {
    "in_stock": spec("in_stock", column="stock"),
    "diversity": spec("diversity", column="line", most=2),
    "already_bought": spec("already_bought"),
}


@st.composite
def shops(draw: Any) -> dict[str, Any]:
    """Rows of a batch with their candidates, and facts of products; some products have none."""
    known = draw(st.lists(ids, unique=True))
    rows = draw(st.integers(0, 4))
    return {
        "facts": {key: (draw(stocks), draw(lines)) for key in known},
        "history": [draw(st.lists(ids, max_size=3)) for _ in range(rows)],
        "bought": [draw(st.lists(ids, max_size=3)) for _ in range(rows)],
        "candidates": [draw(st.lists(ids, unique=True)) for _ in range(rows)],
    }


def batch_of(shop: dict[str, Any]) -> pa.RecordBatch:
    history = pa.array(
        [[{"product": p, "in_cart": False} for p in row] for row in shop["history"]],
        pa.list_(pa.struct([("product", pa.string()), ("in_cart", pa.bool_())])),
    )
    similar = [
        [{"product": p, "items": [{"id": i, "distance": 0.5} for i in row]} for p in seen]
        for row, seen in zip(shop["candidates"], shop["history"], strict=True)
    ]
    customers = pa.array(range(len(history)), pa.int64())
    return pa.RecordBatch.from_pydict(
        {"customer": customers, "history": history, "similar": pa.array(similar, SIMILAR)}
    )


def facts_of(shop: dict[str, Any]) -> Facts:
    known = list(shop["facts"])
    columns = {
        "stock": pa.array([shop["facts"][key][0] for key in known], pa.int16()),
        "line": pa.array([shop["facts"][key][1] for key in known], pa.string()),
    }
    pairs = [(row, product) for row, products in enumerate(shop["bought"]) for product in products]
    return Facts(
        ProductFacts(pa.array(known, pa.string()), pa.RecordBatch.from_pydict(columns)),
        np.array([row for row, _ in pairs], np.int64),
        pa.array([product for _, product in pairs], pa.string()),
    )


def lists_of(shop: dict[str, Any]) -> pa.ListArray:
    return pa.array(
        [[{"id": key, "score": -float(at)} for at, key in enumerate(row)] for row in shop["candidates"]],
        CANDIDATES,
    )


def obvious(shop: dict[str, Any], row: int, rules: list[str]) -> list[tuple[str, int, list[Any]]]:
    """(item, rank before the rules, moves) of a row, one item at a time."""
    left = [key for key in shop["candidates"][row] if key not in shop["history"][row]]
    ranks = {key: [place] for place, key in enumerate(left, 1)}
    for rule in rules:
        stays: list[str] = []
        for key in left:
            stock, line = shop["facts"].get(key, (None, None))
            alike = [k for k in stays if line is not None and shop["facts"].get(k, (0, None))[1] == line]
            keep = {
                "in_stock": stock is not None and stock >= 1,
                "diversity": len(alike) < 2,
                "already_bought": key not in shop["bought"][row],
            }[rule]
            stays += [key] * keep
        left = stays
        for place, key in enumerate(left, 1):
            ranks[key].append(place)
    return [
        (
            key,
            ranks[key][0],
            [
                {"rule": rule, "from": before, "to": after}
                for rule, before, after in zip(rules, ranks[key], ranks[key][1:], strict=False)
                if before != after
            ],
        )
        for key in left
    ]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shops(), rule_names, st.integers(1, 6))
def test_the_rules_leave_what_a_loop_over_items_leaves(
    shop: dict[str, Any], rules: list[str], items: int
) -> None:
    ranking = RankByRules(tuple(SPECS[name] for name in rules), items, "customer", explain=True)
    batch, facts = batch_of(shop), facts_of(shop)
    rows = np.arange(batch.num_rows)
    found = ranking.rank(batch, rows, lists_of(shop), facts)
    found.validate(full=True)
    expected = [obvious(shop, row, rules)[:items] for row in rows]
    assert [[(e["id"], e["rank"], e["moves"]) for e in entries] for entries in found.to_pylist()] == expected
    assert not any(entry["popular"] for entries in found.to_pylist() for entry in entries)
    plain = dataclasses.replace(ranking, explain=False).rank(batch, rows, lists_of(shop), facts)
    assert plain.type == CANDIDATES
    assert [[e["id"] for e in entries] for entries in plain.to_pylist()] == [
        [key for key, _, _ in entries] for entries in expected
    ]
    # Some of the rows, as a deeper search asks for them.
    some = rows[::2]
    assert ranking.rank(batch, some, lists_of(shop).take(pa.array(some)), facts).equals(
        found.take(pa.array(some))
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shops(), st.booleans())
def test_similar_items_are_left_to_the_rules_that_ask_for_them(shop: dict[str, Any], asked: bool) -> None:
    specs = (spec("in_stock", column="stock", similar=asked), SPECS["diversity"], SPECS["already_bought"])
    batch = batch_of(shop)
    found = RankByRules(specs, 5, "customer").similar(batch, facts_of(shop))
    found.validate(full=True)

    def stays(key: str) -> bool:
        return not asked or (shop["facts"].get(key, (None,))[0] or 0) >= 1

    for before, after in zip(batch.column("similar").to_pylist(), found.to_pylist(), strict=True):
        kept = [{**entry, "items": [i for i in entry["items"] if stays(i["id"])]} for entry in before]
        assert after == kept


def candidates(*lists: int) -> pa.RecordBatch:
    """Candidates of lists of those lengths."""
    rows = np.repeat(np.arange(len(lists)), lists)
    count = len(rows)
    return pa.RecordBatch.from_pydict(
        {
            "list": pa.array(rows, pa.int64()),
            "id": pa.array([f"P{number}" for number in range(count)], pa.string()),
            "score": pa.array([0.0] * count, pa.float64()),
            "customer": pa.nulls(count, pa.string()),
            "bought": pa.nulls(count, pa.bool_()),
        }
    )


@pytest.mark.parametrize("seed", range(10))
def test_an_order_is_kept_within_its_list_and_what_is_left_out_is_gone(seed: int) -> None:
    draw = random.Random(seed)
    given_ = candidates(*(draw.randrange(4) for _ in range(5)))
    places = draw.sample(range(given_.num_rows), draw.randint(0, given_.num_rows))
    order, ranks = apply_rules(given_, [("mine", lambda batch: np.array(places, np.int64))])
    lists = given_.column("list").to_pylist()
    assert order.tolist() == [place for row in range(5) for place in places if lists[place] == row]
    for place in order:
        own = [other for other in order if lists[other] == lists[place]]
        assert ranks[1, place] == own.index(place) + 1


def test_a_rule_sees_the_ranks_that_the_rules_before_it_left() -> None:
    seen: list[Any] = []

    def third(batch: pa.RecordBatch) -> Any:
        seen.append(batch.select(["id", "rank"]).to_pydict())
        return np.ones(batch.num_rows, bool)

    apply_rules(candidates(3), [("reverse", Reverse()), ("drop", lambda b: np.arange(3) > 0), ("see", third)])
    assert seen == [{"id": ["P1", "P0"], "rank": [1, 2]}]


@pytest.mark.parametrize(
    "answer",
    [[True], [0, 0], [3], [-1], [0.5], "P1", None, [[True, True, True]], ["a", "b", "c"]],
)
def test_an_answer_that_is_none_is_refused_by_the_rules_name(answer: Any) -> None:
    with pytest.raises(BeamrecError, match="rule 'mine': expected a Boolean for each of 3 candidates"):
        apply_rules(candidates(3), [("mine", lambda batch: answer)])


def test_a_rule_that_raises_is_named_with_what_to_do() -> None:
    def bad(batch: pa.RecordBatch) -> Any:
        raise KeyError("line")

    with pytest.raises(BeamrecError, match=r"rule 'mine' raised KeyError.*nothing is lost"):
        apply_rules(candidates(3), [("mine", bad)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spec("stock"), "expected one of in_stock, diversity"),
        (spec("in_stock"), "the key 'column' is missing"),
        (
            spec("in_stock", colum="stock"),
            "unknown key 'colum'; known are kind, name, column, at_least, similar",
        ),
        (
            spec("python", factory="x:y", option={}),
            "unknown key 'option'; known are kind, name, factory, options",
        ),
        (spec("in_stock", column="stock", at_least="1"), "finite number"),
        (spec("diversity", column="line", most=0), "from 1"),
        (spec("diversity", column="score", most=1), "candidates' own"),
        (spec("already_bought", days=3), "days"),
        (spec("python", factory="no.such.module:rule"), "cannot be imported"),
        (spec("python", factory="json:no_such"), "cannot be imported"),
        (spec("python", factory="__main__:rule"), "installed on the workers"),
        (spec("python", factory="json.dumps"), "installed on the workers"),
        (spec("python", factory="json:dumps", options={"obj": 1}), "expected a callable"),
        (spec("python", factory="json:loads", options={"s": "no"}), "JSONDecodeError"),
    ],
)
def test_a_rule_that_cannot_be_made_is_refused_before_the_job_starts(wrong: RuleSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_rule(wrong)


OWN = """
class Wrong:
    columns = ["line"]

    def __call__(self, candidates):
        return []

def cheapest(column):
    def rank(candidates):
        return candidates.column(column).to_numpy().argsort()
    rank.columns = (column,)
    return rank
"""


def test_a_plain_function_of_a_users_package_is_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rules_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = spec("python", factory="own_rules_of_a_test:cheapest", options={"column": "price"})
    ranking = RankByRules((own,), 5, "customer")
    assert (ranking.columns, ranking.purchases) == (("price",), False)
    prices = pa.RecordBatch.from_pydict({"price": [3.0, 1.0, 2.0, 5.0, 4.0]})
    order, _ = apply_rules(candidates(3, 2), ranking.rules, prices)
    assert order.tolist() == [1, 2, 0, 4, 3]
    with pytest.raises(UsageError, match="are a tuple"):
        open_rule(spec("python", factory="own_rules_of_a_test:Wrong"))
