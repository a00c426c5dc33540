"""Defaults from the environment, with the variables of the course."""

import pytest

from beamrec.pipelines.environment import PASSWORDS, SETTINGS, default, variables
from beamrec.schemas.errors import UsageError


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS.values():
        for variable in (*setting.variables, "VECTOR_DB_USER"):
            monkeypatch.delenv(variable, raising=False)


def test_defaults_are_those_of_the_design() -> None:
    names = ("window_seconds", "allowed_lateness", "dedupe_horizon", "items", "seed", "shards")
    assert [default(name) for name in names] == [60, 3600, 24, 5, 42, 8]
    assert default("vector_db") == "embedded:"
    assert default("source") is None


@pytest.mark.parametrize(
    ("name", "variable", "text", "value"),
    [
        ("items", "ITEM_LIMIT", "7", 7),
        ("seed", "RANDOM_SEED", "1", 1),
        ("items", "BEAMREC_ITEMS", "3", 3),
        ("source", "BEAMREC_SOURCE", "sqlite:///x.db", "sqlite:///x.db"),
        ("vector_db", "VECTOR_DB_HOST", "db.example", "postgresql://postgres@db.example:5432/postgres"),
        ("vector_db", "VECTOR_DB_HOST", "db.example:6000", "postgresql://postgres@db.example:6000/postgres"),
        ("vector_db", "BEAMREC_VECTOR_DB", "embedded:", "embedded:"),
    ],
)
def test_a_variable_sets_the_default(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str, text: str, value: object
) -> None:
    monkeypatch.setenv(variable, text)
    assert default(name) == value


def test_our_own_variable_wins_over_the_course_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITEM_LIMIT", "7")
    monkeypatch.setenv("BEAMREC_ITEMS", "8")
    assert default("items") == 8


def test_the_course_s_user_is_quoted_in_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_DB_HOST", "db")
    monkeypatch.setenv("VECTOR_DB_USER", "a@b")
    assert default("vector_db") == "postgresql://a%40b@db:5432/postgres"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITEM_LIMIT", "")
    assert default("items") == 5


def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITEM_LIMIT", "five")
    with pytest.raises(UsageError, match=r"\$ITEM_LIMIT: expected items, got 'five'"):
        default("items")


def test_variables_of_an_option_for_the_documentation() -> None:
    assert variables("items") == ("BEAMREC_ITEMS", "ITEM_LIMIT")
    assert variables("no_such_option") == ()


def test_the_documented_password_variables_are_those_that_the_connections_read() -> None:
    from beamrec.io.mysql import PASSWORD_VARIABLE
    from beamrec.io.postgres import PASSWORD_VARIABLES

    assert PASSWORDS == {"source": (PASSWORD_VARIABLE,), "vector_db": PASSWORD_VARIABLES}
