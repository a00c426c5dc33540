"""The public views, made again: who owned and read them still does, and what is made of them is named."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ReleaseContents

Make = Callable[..., ReleaseContents]


def rows(uri: str, *statements: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(uri)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def roles(database: str) -> Iterator[None]:
    """`analyst`, `planner` and `keeper`, who may log in nowhere."""
    names = ("analyst", "planner", "keeper")
    rows(database, *(f"CREATE ROLE {name}" for name in names))
    yield
    for name in names:
        rows(database, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


@pytest.mark.usefixtures("roles")
def test_a_view_made_again_keeps_its_owner_and_its_grants(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    store.load(make_release("short", dim=8))
    store.load(make_release("long", dim=9))
    store.promote("short", "a start")
    rows(
        database,
        "GRANT CREATE ON SCHEMA public TO keeper",
        "ALTER VIEW public.item_emb OWNER TO keeper",
        "GRANT SELECT ON public.item_emb TO analyst WITH GRANT OPTION",
        "GRANT SELECT (id) ON public.item_emb TO planner",
        "GRANT SELECT ON public.item_emb TO PUBLIC",
    )
    held = (
        "SELECT has_table_privilege('analyst', 'public.item_emb', 'SELECT WITH GRANT OPTION'), "
        "relowner::regrole::text, array(SELECT aclitem::text FROM unnest(relacl) AS u (aclitem) ORDER BY 1), "
        "(SELECT attacl::text FROM pg_attribute WHERE attrelid = c.oid AND attname = 'id'), "
        "(SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = c.oid AND attname = 'embedding') FROM pg_class c WHERE relname = 'item_emb'"
    )
    (before,) = rows(database, held)
    assert before[:2] == (True, "keeper")
    assert before[-1] == "vector(8)"
    store.promote("long", "longer")
    assert rows(database, held) == [(*before[:-1], "vector(9)")]


def test_a_view_of_somebody_stops_the_promote_and_is_named(
    store: ReleaseStore, database: str, make_release: Make
) -> None:
    store.load(make_release("short", dim=8))
    store.load(make_release("long", dim=9))
    store.promote("short", "a start")
    rows(database, "CREATE VIEW public.top_items AS SELECT id FROM public.item_emb LIMIT 3")
    with pytest.raises(UsageError, match=r"public\.item_emb must be made again.*view top_items depends on"):
        store.promote("long", "longer")
    active = store.active()
    assert active is not None
    assert active.id == "short", "nothing was changed"
    rows(database, "DROP VIEW public.top_items")
    assert store.promote("long", "longer").active.dim == 9
