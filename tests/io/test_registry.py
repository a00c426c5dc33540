"""The scheme of a URI chooses the module; a password in it is refused."""

import pytest

from beamrec.io import mysql, sqlite
from beamrec.io.registry import backend, reject_password, scheme_of
from beamrec.schemas.errors import UsageError


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("sqlite:///shop.db", "sqlite"),
        ("MySQL://root@host/db", "mysql"),
        ("/data/events", ""),
        ("events:today", ""),
        ("file:///data", "file"),
    ],
)
def test_the_scheme_is_what_stands_before_the_slashes(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


def test_a_scheme_gives_its_module() -> None:
    assert backend("tables", "sqlite:///x", "--source") is sqlite
    assert backend("tables", "mysql://u@h/d", "--source") is mysql


@pytest.mark.parametrize("uri", ["oracle://host/db", "shop.db", ""])
def test_an_unknown_scheme_lists_the_known_ones(uri: str) -> None:
    known = "sqlite://, mysql://, postgresql://"
    with pytest.raises(UsageError, match=f"--source: expected one of {known}, got"):
        backend("tables", uri, "--source")


@pytest.mark.parametrize(
    "uri",
    [
        "mysql://u:hunter2@h/d",
        "mysql://:hunter2@h/d",
        "mysql://u@h/d?password=hunter2",
        "mysql://u@h/d?a=b&PWD=hunter2",
    ],
)
def test_a_password_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(UsageError, match="BEAMREC_SOURCE_PASSWORD") as caught:
        reject_password(uri, "--source", "BEAMREC_SOURCE_PASSWORD")
    assert "hunter2" not in str(caught.value)


def test_a_user_without_a_password_is_accepted() -> None:
    reject_password("mysql://shop@host:3306/db", "--source", "BEAMREC_SOURCE_PASSWORD")
