"""The GRANTs of docs/releases.md are enough for a stream, and give it no more than it needs."""

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import Database
from beamrec.io.session_history import check_history, remove_old_clicks
from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.releases import ReleaseContents
from beamrec.schemas.serving import ServingRow

if TYPE_CHECKING:
    from postgresql_fixtures import PostgreSQL

DOCS = Path(__file__).parents[2] / "docs" / "releases.md"


def test_a_role_with_the_documented_grants_streams_and_promotes_nothing(
    postgresql: "PostgreSQL",
    source_password: str,
    monkeypatch: pytest.MonkeyPatch,
    make_release: Callable[..., ReleaseContents],
) -> None:
    monkeypatch.setenv("BEAMREC_VECTOR_DB_PASSWORD", source_password)
    postgresql.create_database("granted")
    postgresql.execute("CREATE EXTENSION vector", database="granted")
    owner = ReleaseStore(postgresql.uri("granted"))
    owner.load(make_release("before"))
    grants = DOCS.read_text().split("```sql\n", 1)[1].split("```", 1)[0]
    grants = re.sub(r"TO stream\b", "TO reader", re.sub(r"TO owner\b", "TO shop", grants))
    postgresql.execute(f"SET ROLE shop; {grants}", database="granted")
    owner.load(make_release("after"))  # what is made later is granted by the defaults
    owner.promote("after", "a start")

    stream = ReleaseStore(postgresql.uri("granted", "reader"))
    active = stream.active()
    assert active is not None
    assert active.id == "after"
    assert len(stream.catalogue("after").ids) == active.items
    assert stream.lookup("after", pa.array(["P3"]), pa.array(["100"])).products.to_pylist() == ["P3"]
    assert len(stream.search("after", make_release().item_vectors[:1], 3).to_pylist()[0]) == 3
    now = dt.datetime.now(dt.UTC)
    row = ServingRow("7", "event", now, now, "after", "popular", "[]", "[]")
    assert (stream.upsert_latest([row]), stream.append_log([row])) == (1, 1)
    assert stream.upsert_latest([row]) == 0
    check_history(stream.uri)
    Database(stream.uri).transaction(lambda cursor: remove_old_clicks(cursor, 48, 10))
    with pytest.raises(UnavailableError, match="GRANT SELECT ON"):
        stream.promote("before", "not mine")
    owner.close()
    stream.close()
