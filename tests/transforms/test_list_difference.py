"""Overlap and rank correlation of two lists against their definitions, pair by pair in plain Python."""

import itertools
import math
import random

import pytest

from beamrec.transforms.list_difference import Difference, Served, overlap, rank_correlation


def tau_b(old: list[str], new: list[str]) -> float:
    """Kendall's tau-b by counting pairs; what a list lacks is tied behind its end."""
    items = sorted({*old, *new})
    concordant = discordant = tied_old = tied_new = 0
    for a, b in itertools.combinations(items, 2):
        x = (old.index(a) if a in old else len(old)) - (old.index(b) if b in old else len(old))
        y = (new.index(a) if a in new else len(new)) - (new.index(b) if b in new else len(new))
        concordant += x * y > 0
        discordant += x * y < 0
        tied_old += x == 0
        tied_new += y == 0
    pairs = len(items) * (len(items) - 1) // 2
    return (concordant - discordant) / math.sqrt((pairs - tied_old) * (pairs - tied_new))


def test_rank_correlation_is_kendalls_tau_b_over_the_items_of_either() -> None:
    draw = random.Random(1)
    for _ in range(300):
        old, new = (draw.sample("abcdefgh", draw.randint(2, 5)) for _ in range(2))
        assert rank_correlation(old, new) == pytest.approx(tau_b(old, new))
        assert rank_correlation(old, new) == pytest.approx(rank_correlation(new, old))


@pytest.mark.parametrize(
    ("old", "new", "shared", "correlation"),
    [
        ("abcde", "abcde", 1.0, 1.0),
        ("abcde", "edcba", 1.0, -1.0),
        ("abcde", "fghij", 0.0, -25 / 35),
        ("abcde", "", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("a", "a", 1.0, 1.0),
        ("abc", "abcd", 0.75, math.sqrt(1.0)),
    ],
)
def test_edges(old: str, new: str, shared: float, correlation: float) -> None:
    assert overlap([*old], [*new]) == pytest.approx(shared)
    assert rank_correlation([*old], [*new]) == pytest.approx(correlation)


def test_a_difference_counts_by_the_path_that_serves_now_and_shows_what_changed_most() -> None:
    found = Difference(items=3)
    for number in range(20):
        old = Served(("a", "b", "c", "d"), "popular", "r1")
        changed = ("a", "b", "c", "x") if number % 2 else ("c", "b", "a")
        path = "popular" if number < 5 else "known_customer"
        found.add(f"e{number:02}", old, Served(changed if number != 8 else ("x", "y", "z"), path, "r2"))
    found.only_new = 2
    told = found.to_dict()
    # Beyond the third item nothing counts.
    assert (told["events"], told["changed"], told["served_by_changed"]) == (20, 10, 15)
    assert told["overlap@3"] == pytest.approx(19 / 20)
    assert told["by_served_by"]["popular"]["events"] == 5
    assert told["by_served_by"]["popular"]["changed"] == 3
    assert (told["only_old"], told["only_new"]) == (0, 2)
    first = told["examples"][0]
    assert (first["event_id"], first["overlap@3"], len(told["examples"])) == ("e08", 0.0, 5)
    assert first["old"] == {"release": "r1", "served_by": "popular", "recommended_items": ["a", "b", "c"]}
    assert {example["overlap@3"] for example in told["examples"][1:]} == {1.0}
