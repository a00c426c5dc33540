"""The tables of the vector and serving store.

Parents are partitioned by release and hold an untyped `vector`, because a typed one would refuse a
release of another dimension; each partition has its own index on the typed cast.
"""

import psycopg2

from beamrec.schemas.errors import RefusedError, UsageError
from beamrec.schemas.releases import check_release_id

__all__ = [
    "EMBEDDING_TABLES",
    "PARTITIONED_TABLES",
    "ensure_schema",
    "is_ready",
    "partition_name",
]

EMBEDDING_TABLES = ("item_embeddings", "user_embeddings")
PARTITIONED_TABLES = (*EMBEDDING_TABLES, "item_neighbours")

_SCHEMA_LOCK = 0x6265616D  # "beam": CREATE … IF NOT EXISTS still races between two first starts
# Which tables stand there is written on one of them, so that a start that changes nothing runs no DDL: that
# would wait for every reader, and a role that only reads may not.
_VERSION = 3
_VERSION_MARK = "beamrec: store version "

_TABLES = """
CREATE TABLE IF NOT EXISTS beamrec.releases (
  id text PRIMARY KEY, uri text NOT NULL, checksum text NOT NULL, dim int NOT NULL, operator text NOT NULL,
  has_user_tower boolean NOT NULL, items bigint NOT NULL, users bigint NOT NULL, manifest jsonb NOT NULL,
  loaded_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS beamrec.active_release (
  one boolean PRIMARY KEY DEFAULT true CHECK (one), release text NOT NULL REFERENCES beamrec.releases (id),
  since timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS beamrec.release_audit (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  who text NOT NULL, action text NOT NULL, from_release text, to_release text, why text NOT NULL);
CREATE TABLE IF NOT EXISTS beamrec.item_embeddings (
  release text NOT NULL, id text COLLATE "C" NOT NULL, embedding vector NOT NULL, popularity_rank int)
  PARTITION BY LIST (release);
CREATE TABLE IF NOT EXISTS beamrec.user_embeddings (
  release text NOT NULL, id text COLLATE "C" NOT NULL, embedding vector NOT NULL)
  PARTITION BY LIST (release);
CREATE TABLE IF NOT EXISTS beamrec.item_neighbours (
  release text NOT NULL, id text COLLATE "C" NOT NULL, neighbour_ids text[] NOT NULL,
  distances real[] NOT NULL)
  PARTITION BY LIST (release);
CREATE TABLE IF NOT EXISTS beamrec.recommendations_latest (
  customer_id text COLLATE "C" PRIMARY KEY, event_id text COLLATE "C" NOT NULL,
  event_time timestamptz NOT NULL, processed_at timestamptz NOT NULL,
  release text NOT NULL, served_by text NOT NULL,
  recommended_items jsonb NOT NULL, similar_items jsonb NOT NULL);
CREATE TABLE IF NOT EXISTS beamrec.recommendations_log (
  event_id text COLLATE "C" PRIMARY KEY, customer_id text, event_time timestamptz NOT NULL,
  processed_at timestamptz NOT NULL, release text NOT NULL, served_by text NOT NULL,
  recommended_items jsonb NOT NULL, similar_items jsonb NOT NULL);
CREATE INDEX IF NOT EXISTS recommendations_log_event_time ON beamrec.recommendations_log (event_time);
"""

# Version 2. `search` is how the release is best searched, `built` how its tables were made;
# `items_version` counts what was upserted into its catalogue; `forced` names guards that were overruled.
_SINCE_VERSION_1 = """
ALTER TABLE beamrec.releases ADD COLUMN IF NOT EXISTS search jsonb,
  ADD COLUMN IF NOT EXISTS built jsonb NOT NULL DEFAULT '{}',
  ADD COLUMN IF NOT EXISTS items_version bigint NOT NULL DEFAULT 0;
ALTER TABLE beamrec.release_audit ADD COLUMN IF NOT EXISTS forced text[] NOT NULL DEFAULT '{}';
CREATE TABLE IF NOT EXISTS beamrec.release_loads (
  id text PRIMARY KEY, checksum text NOT NULL, options jsonb NOT NULL, built jsonb NOT NULL DEFAULT '{}',
  done text[] NOT NULL DEFAULT '{}', touched_at timestamptz NOT NULL DEFAULT clock_timestamp());
"""

# Version 3: the single clicks of sessions, each with the ones before it (`session_history`).
_SINCE_VERSION_2 = """
CREATE TABLE IF NOT EXISTS beamrec.session_clicks (
  session text COLLATE "C" NOT NULL, event_id text COLLATE "C" NOT NULL, event_time_us bigint NOT NULL,
  product text NOT NULL, in_cart boolean NOT NULL, products text[] NOT NULL, in_carts boolean[] NOT NULL,
  seen_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (session, event_id));
CREATE INDEX IF NOT EXISTS session_clicks_order
  ON beamrec.session_clicks (session, event_time_us, event_id) INCLUDE (product, in_cart);
CREATE INDEX IF NOT EXISTS session_clicks_age ON beamrec.session_clicks (seen_at);
"""


def is_ready(cursor: psycopg2.extensions.cursor) -> bool:
    """Whether the tables stand there, as this version has them.

    Raises:
      UsageError: a newer version has them otherwise.
    """
    cursor.execute("SELECT obj_description(to_regclass('beamrec.releases'), 'pg_class')")
    comment = cursor.fetchone()[0] or ""
    number = comment.removeprefix(_VERSION_MARK)
    found = int(number) if comment.startswith(_VERSION_MARK) and number.isdecimal() else 0
    if found > _VERSION:
        raise UsageError(
            f"--vector-db: the tables of beamrec there are of version {found}, and this beamrec knows them "
            f"up to version {_VERSION}: use the newer beamrec that made them, or another database"
        )
    return found == _VERSION


def ensure_schema(cursor: psycopg2.extensions.cursor) -> None:
    """Creates or migrates what is not as this version has it; safe at every start and from many processes.

    Raises:
      RefusedError: pgvector is not installed there, or the user may not create it or our tables.
      UsageError: a newer version made the tables.
    """
    if is_ready(cursor):
        return
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
    if is_ready(cursor):
        return
    cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    if cursor.fetchone() is None:
        _create_extension(cursor)
    try:
        cursor.execute("SELECT to_regnamespace('beamrec') IS NULL")
        if cursor.fetchone()[0]:  # IF NOT EXISTS would ask for the privilege where it is not needed
            cursor.execute("CREATE SCHEMA beamrec")
        cursor.execute(_TABLES)
        cursor.execute(_SINCE_VERSION_1)
        cursor.execute(_SINCE_VERSION_2)
        cursor.execute("COMMENT ON TABLE beamrec.releases IS %s", [f"{_VERSION_MARK}{_VERSION}"])
    except psycopg2.errors.InsufficientPrivilege as error:
        raise RefusedError(
            f"--vector-db: the tables of beamrec are missing there or of an older version, and this user may "
            f"not make them ({str(error).splitlines()[0]}); run the command once as the owner of the schema "
            "beamrec, or GRANT CREATE ON DATABASE to this user"
        ) from error


def _create_extension(cursor: psycopg2.extensions.cursor) -> None:
    try:
        cursor.execute("CREATE EXTENSION vector")
    except (psycopg2.errors.FeatureNotSupported, psycopg2.errors.UndefinedFile) as error:
        raise RefusedError("--vector-db: pgvector is not installed on that server") from error
    except psycopg2.errors.InsufficientPrivilege as error:
        raise RefusedError(
            "--vector-db: the extension `vector` is missing there; an administrator must run "
            "CREATE EXTENSION vector in that database"
        ) from error


def partition_name(table: str, release_id: str) -> str:
    """Name of the partition of `table` (`item_embeddings`, …) that holds the release; 56 bytes at most."""
    return f"{table}_{check_release_id(release_id)}"
