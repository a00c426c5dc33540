"""What PostgreSQL refuses is told with what mends it, and with nothing that does not."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from beamrec.io.postgres import Database, connect
from beamrec.schemas.errors import UnavailableError

if TYPE_CHECKING:
    from postgresql_fixtures import PostgreSQL


def test_a_missing_role_has_nothing_to_do_with_a_password(server: Path) -> None:
    with pytest.raises(
        UnavailableError, match='role "nobody" does not exist; check the database name'
    ) as told:
        connect(f"postgresql://nobody@/postgres?host={quote(str(server), '')}")
    assert "PASSWORD" not in str(told.value)


def test_where_nobody_listens_host_and_port_are_to_be_checked() -> None:
    with pytest.raises(UnavailableError, match=r"TCP/IP connections; check that it runs, and host and port"):
        connect("postgresql://ann@127.0.0.1:1/shop")


def test_a_wrong_password_is_to_be_checked_where_it_comes_from(
    postgresql: "PostgreSQL", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("wrong one")
    with pytest.raises(UnavailableError, match=f"the user and the password, in file://{tmp_path}/password"):
        connect(f"{postgresql.uri('postgres')}?secret=file://{tmp_path}/password")
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", "wrong one")
    with pytest.raises(
        UnavailableError, match="check the user and the password, in BEAMREC_VECTOR_DB_PASSWORD"
    ):
        connect(postgresql.uri("postgres"))


@pytest.mark.parametrize(
    ("statement", "grant"),
    [
        ("CREATE VIEW public.mine AS SELECT 1", "GRANT USAGE, CREATE ON SCHEMA public TO this user"),
        ("SELECT * FROM public.secret", "GRANT SELECT ON secret TO this user, and to write, INSERT"),
    ],
)
def test_a_missing_privilege_is_told_with_its_grant(
    postgresql: "PostgreSQL",
    source_password: str,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    grant: str,
) -> None:
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    postgresql.create_database("rights")
    postgresql.execute("CREATE TABLE public.secret (id int)", database="rights")
    database = Database(postgresql.uri("rights", "reader"))
    with pytest.raises(UnavailableError, match=grant):
        database.transaction(lambda cursor: cursor.execute(statement))
    database.close()
