"""The bench's own PostgreSQL with pgvector: the embedded one, its folder kept, with memory to work in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from beamrec.io import embedded
from beamrec.io.postgres import connect

__all__ = ["serve"]

# All contestants ask this server. Its tables and indexes fit into the buffers, as a vector store's should.
_SETTINGS = {"shared_buffers": "3GB", "max_wal_size": "4GB", "jit": "off"}


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A libpq URI of the running server; it is stopped at the end."""
    _settle(embedded.ensure_running(folder).uri)
    embedded.stop_server(folder)  # the size of the buffers is taken at a start
    try:
        yield embedded.ensure_running(folder).uri
    finally:
        embedded.stop_server(folder)


def _settle(uri: str) -> None:
    connection = connect(uri)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name, value in _SETTINGS.items():
            cursor.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.close()
