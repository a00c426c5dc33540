"""The tables of the vector and serving store, and the two public views that follow the active release.

Parents are partitioned by release and hold an untyped `vector`, because a typed one would refuse a
release of another dimension; each partition has its own index on the typed cast.
"""

import psycopg2
from psycopg2 import sql

from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.releases import check_release_id

__all__ = [
    "EMBEDDING_TABLES",
    "OPERATOR_CLASSES",
    "create_index",
    "ensure_schema",
    "follow_with_views",
    "partition_name",
]

EMBEDDING_TABLES = ("item_embeddings", "user_embeddings")
OPERATOR_CLASSES = {"<->": "vector_l2_ops", "<=>": "vector_cosine_ops", "<#>": "vector_ip_ops"}

_SCHEMA_LOCK = 0x6265616D  # "beam": CREATE … IF NOT EXISTS still races between two first starts
_VIEW_MARK = "beamrec: shows the active release"

_TABLES = """
CREATE SCHEMA IF NOT EXISTS beamrec;
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


def ensure_schema(cursor: psycopg2.extensions.cursor) -> None:
    """Creates what is missing; safe to run at every start and from many processes at once.

    Raises:
      UnavailableError: pgvector is not installed there, or the user may not create it.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
    cursor.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    if cursor.fetchone() is None:
        try:
            cursor.execute("CREATE EXTENSION vector")
        except (psycopg2.errors.FeatureNotSupported, psycopg2.errors.UndefinedFile) as error:
            raise UnavailableError("--vector-db: pgvector is not installed on that server") from error
        except psycopg2.errors.InsufficientPrivilege as error:
            raise UnavailableError(
                "--vector-db: the extension `vector` is missing there; an administrator must run "
                "CREATE EXTENSION vector in that database"
            ) from error
    cursor.execute("SELECT to_regclass('beamrec.recommendations_log_event_time') IS NOT NULL")
    if not cursor.fetchone()[0]:
        cursor.execute(_TABLES)


def partition_name(table: str, release_id: str) -> str:
    """Name of the partition of `table` (`item_embeddings`, …) that holds the release; 56 bytes at most."""
    return f"{table}_{check_release_id(release_id)}"


def create_index(
    cursor: psycopg2.extensions.cursor, partition: str, dim: int, operator: str, normalized: bool
) -> None:
    """Builds the HNSW index of a filled partition on the typed cast of its vectors.

    Scores are inner products. Vectors of length one rank alike by every operator, so one index does;
    others get a second one for the inner product.
    """
    for used in {operator} if normalized else {operator, "<#>"}:
        cursor.execute(
            sql.SQL("CREATE INDEX ON beamrec.{} USING hnsw ((embedding::vector({})) {})").format(
                sql.Identifier(partition), sql.Literal(dim), sql.SQL(OPERATOR_CLASSES[used])
            )
        )


def follow_with_views(
    cursor: psycopg2.extensions.cursor,
    dim: int,
    key_types: tuple[str, str],
    names: tuple[str, str],
) -> None:
    """Makes the public views of the active release, again only if dimension or key type changed.

    A table or view of that name that is not ours is left alone.

    Args:
      key_types: SQL types of the item's and the user's id.
      names: names of the item view and the user view in `public`.
    """
    for table, key_type, name in zip(EMBEDDING_TABLES, key_types, names, strict=True):
        mark = f"{_VIEW_MARK} ({table}, {key_type}, {dim})"
        cursor.execute(
            "SELECT relkind, obj_description(oid, 'pg_class') FROM pg_class "
            "WHERE relname = %s AND relnamespace = 'public'::regnamespace",
            [name],
        )
        kind, comment = cursor.fetchone() or (None, None)
        if kind is not None and not (comment or "").startswith(_VIEW_MARK):
            continue
        if comment == mark:
            continue
        view = sql.Identifier("public", name)
        cursor.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(view))
        cursor.execute(
            sql.SQL(
                "CREATE VIEW {} AS SELECT id::{} AS id, embedding::vector({}) AS embedding FROM beamrec.{} "
                "WHERE release = (SELECT release FROM beamrec.active_release)"
            ).format(view, sql.SQL(key_type), sql.Literal(dim), sql.Identifier(table))
        )
        cursor.execute(sql.SQL("COMMENT ON VIEW {} IS {}").format(view, sql.Literal(mark)))
