"""A real embedded PostgreSQL with pgvector for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import connect


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a running server, stopped at the end."""
    folder = tmp_path_factory.mktemp("embedded") / "pg"
    embedded.ensure_running(folder)
    yield folder
    embedded.stop_server(folder)


@pytest.fixture
def database(server: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """URI of the server with none of our tables in it."""
    uri = f"embedded:{server}"
    _drop_everything(uri)
    yield uri
    _drop_everything(uri)


@pytest.fixture
def store(database: str) -> Iterator[ReleaseStore]:
    """An empty store."""
    made = ReleaseStore(database)
    made.ensure_schema()
    yield made
    made.close()


def _drop_everything(uri: str) -> None:
    connection = connect(uri)
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS beamrec CASCADE; DROP TABLE IF EXISTS public.item_emb CASCADE")
    connection.close()
