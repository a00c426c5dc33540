"""A feature's rules: what they may be, and what they mean as bounds."""

from typing import Any

import pytest

from beamrec.schemas.errors import UsageError
from beamrec.schemas.feature import Feature


@pytest.mark.parametrize(
    "rules",
    [
        {"kind": "number", "min": 0, "max": 0},
        {"kind": "number", "min": -0.5},
        {"kind": "number", "max": 10**30},
        {"kind": "category", "min": 1888, "max": 2100},
        {"kind": "none", "min": "1990-01-01", "max": "1990-01-01"},
        {"kind": "category", "max": "2026-11-22T07:00:00"},
        {"kind": "category", "values": ("cash", "")},
        {"kind": "text", "values": ("a",), "nullable": False},
    ],
)
def test_rules_that_some_row_can_keep_are_accepted(rules: dict[str, Any]) -> None:
    assert Feature("c", **rules).column == "c"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min": 2, "max": 1}, "min must not be above max, got 2 and 1"),
        ({"min": "2026-11-23", "max": "2026-11-22"}, "min must not be above max"),
        ({"min": 2, "max": "2026-11-22"}, "min and max must be of one kind"),
        ({"min": "soon"}, "min: expected a number or an ISO 8601 date or time, got 'soon'"),
        ({"min": ""}, "min: expected a number or an ISO 8601"),
        ({"max": "2026-11-22T07:00:00Z"}, "max: a time in a database has no offset"),
        ({"min": True}, "min: expected a finite number, got True"),
        ({"max": float("nan")}, "max: expected a finite number"),
        ({"max": float("inf")}, "max: expected a finite number"),
        ({"max": 10**400}, "max: expected a finite number"),
        ({"max": [1]}, "max: expected a finite number"),
        ({"kind": "number", "min": "2026-11-22"}, "a number has no such bounds"),
        ({"kind": "text", "min": 1}, "a text has no such bounds"),
        ({"kind": "text", "max": "2026-11-22"}, "a text has no such bounds"),
        ({"kind": "number", "values": ("a",)}, "values are for categories"),
        ({"values": ()}, "values: expected a list of at least one text"),
        ({"values": "cash"}, "values: expected a list of at least one text, got 'cash'"),
        ({"values": ("a", 1)}, "values: expected text, got 1"),
        ({"nullable": "no"}, "nullable: expected true or false, got 'no'"),
        ({"nullable": 0}, "nullable: expected true or false, got 0"),
        ({"trim": "yes"}, "trim: expected true or false, got 'yes'"),
        ({"lower": 1}, "lower: expected true or false"),
        ({"log": None}, "log: expected true or false"),
        ({"event_field": 5}, "event_field: expected text, got 5"),
        ({"kind": "amount"}, "kind: expected one of category, number, text, none, got 'amount'"),
        ({"kind": ["number"]}, "kind: expected one of"),
    ],
)
def test_rules_that_mean_nothing_are_refused_and_the_column_is_named(
    rules: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Feature("paid", **rules)
    assert str(caught.value).startswith("feature paid: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("column", [5, None, "", "a/b", "a\x00b", "x" * 65])
def test_a_column_has_a_name(column: Any) -> None:
    with pytest.raises(UsageError, match="feature column: expected a column or table name"):
        Feature(column)


def test_a_date_alone_as_max_means_all_of_that_day() -> None:
    low, high = Feature("d", min="2026-11-21", max="2026-11-22").bounds
    assert (low.isoformat(), high.isoformat()) == ("2026-11-21T00:00:00", "2026-11-22T23:59:59.999999")
    low, high = Feature("d", min="2026-11-22T07:00").bounds
    assert (low.isoformat(), high) == ("2026-11-22T07:00:00", None)


def test_numbers_are_their_own_bounds() -> None:
    assert Feature("n", kind="number", min=0.5, max=3).bounds == (0.5, 3)
    assert Feature("n").bounds == (None, None)
