"""Tables `item_emb` and `user_emb` of another system, read as the embeddings files of a release folder."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import psycopg2
from psycopg2 import sql

from beamrec.io.postgres import PASSWORD_VARIABLES, connect, connection_options
from beamrec.io.registry import reject_password
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError

__all__ = ["EMBEDDING_TABLES", "export_embedding_tables", "fetch_embeddings"]

EMBEDDING_TABLES = {"item_emb": "item_embeddings.csv", "user_emb": "user_embeddings.csv"}
"""Tables of the schema `public`, and the file that each becomes."""

_COPY = (
    "COPY (SELECT id::text AS id, embedding::text AS embedding FROM public.{}) TO STDOUT (FORMAT csv, HEADER)"
)
_FOUND = """
SELECT c.relname, c.relkind IN ('v', 'm') AND pg_get_viewdef(c.oid) ~ '\\mbeamrec\\M',
       array(SELECT attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""


def fetch_embeddings(uri: str, folder: Path, wanted: Callable[[str], bool]) -> tuple[Path, tuple[str, ...]]:
    """Both tables as `embeddings/*.csv` of a folder on this machine, and what was left: nothing.

    Args:
      uri: `postgresql://user@host:port/db` or `embedded:/folder`.
      folder: an empty one, which gets the files.
      wanted: not asked: the tables are all that is looked at.

    Raises:
      As `export_embedding_tables`.
    """
    if not uri.startswith("embedded:"):
        reject_password(uri, "SOURCE", PASSWORD_VARIABLES[0])
        connection_options(uri, "SOURCE")
    (folder / "embeddings").mkdir()
    export_embedding_tables(uri, folder / "embeddings")
    return folder, ()


def export_embedding_tables(uri: str, folder: Path) -> tuple[str, ...]:
    """Copies both tables, as one moment sees them, into `folder`; nothing is written to the database.

    Args:
      uri: `postgresql://user@host:port/db`, its password in the environment.
      folder: gets the CSV files; row n of a table's scan is line n + 1.

    Returns:
      The tables that were there.

    Raises:
      UsageError: there is no table of items, a column is missing, or they are beamrec's own views.
      UnavailableError: no connection, or no right to read.
      BadDataError: a row cannot be read.
    """
    connection = connect(uri)
    with contextlib.closing(connection):
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        try:
            with connection, connection.cursor() as cursor:
                tables = _find_tables(cursor)
                for table in tables:
                    with (folder / EMBEDDING_TABLES[table]).open("wb") as file:
                        cursor.copy_expert(sql.SQL(_COPY).format(sql.Identifier(table)), file)
        except psycopg2.errors.DataError as error:
            raise BadDataError(f"release import: {_first_line(error)}") from None
        except psycopg2.Error as error:
            raise UnavailableError(
                f"release import: {_first_line(error)}; the user needs SELECT on public.item_emb and user_emb"
            ) from None
    return tables


def _first_line(error: psycopg2.Error) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find_tables(cursor: psycopg2.extensions.cursor) -> tuple[str, ...]:
    cursor.execute(_FOUND, [list(EMBEDDING_TABLES)])
    found = {name: (is_ours, columns) for name, is_ours, columns in cursor.fetchall()}
    if "item_emb" not in found:
        raise UsageError(
            "release import: expected a table public.item_emb(id, embedding) in that database, and user_emb "
            "if there is one"
        )
    for name, (is_ours, columns) in found.items():
        if is_ours:
            raise UsageError(
                f"release import: public.{name} is beamrec's own view of the active release, which is a "
                "release already; `beamrec release list` names it"
            )
        if not {"id", "embedding"}.issubset(columns):
            raise UsageError(
                f"release import: public.{name}: expected the columns id and embedding, got "
                f"{', '.join(columns)}"
            )
    return tuple(name for name in EMBEDDING_TABLES if name in found)
