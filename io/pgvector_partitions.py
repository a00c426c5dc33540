"""Tables of releases: attached to their parents, or left over; dropped without a reader having to wait.

A table is ours by its CHECK of the release's id, not by its name: somebody's `item_embeddings_backup` is left
alone.
"""

import contextlib
import logging
import time

import psycopg2
from psycopg2 import sql

from beamrec.io.pgvector_schema import PARTITIONED_TABLES, partition_name
from beamrec.io.pgvector_session import SAY_SECONDS, Session
from beamrec.io.pgvector_waiting import readers_of
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["attach", "drop_tables", "new_table", "orphans"]

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '200ms'"
_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.1, 2.0
_PATIENCE_SECONDS = 600.0
_DROPS = "-drops"  # no id of a release begins so
# The statement that detaches cannot say that it waits; when it gives up, the detach is begun and goes on.
_DETACH_TIMEOUT = f"SET lock_timeout = '{SAY_SECONDS:.0f}s'"

_log = logging.getLogger(__name__)
# Tables of some parents that are attached to them, or have the CHECK that an attached one had.
_OURS = (
    "SELECT t.parent, c.relname, substr(c.relname, length(t.parent) + 2) AS id FROM pg_class c "
    "JOIN unnest(%s) AS t (parent) ON starts_with(c.relname, t.parent || '_') "
    "WHERE c.relnamespace = 'beamrec'::regnamespace AND c.relkind = 'r' AND ("
    "EXISTS (SELECT FROM pg_inherits i "
    "WHERE i.inhrelid = c.oid AND i.inhparent = to_regclass('beamrec.' || t.parent)) "
    "OR EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c' "
    "AND pg_get_expr(k.conbin, c.oid) = "
    "format('(release = %%L::text)', substr(c.relname, length(t.parent) + 2))))"
)


def new_table(cursor: psycopg2.extensions.cursor, parent: str, release_id: str) -> str:
    """Makes the empty table of a release, not attached yet, in place of one that was left over.

    Its CHECK spares ATTACH PARTITION the scan under a lock, and says that the table is ours.

    Raises:
      UsageError: somebody's table of that name stands there.
    """
    name = partition_name(parent, release_id)
    _drop_ours(cursor, parent, name)
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [f'beamrec."{name}"'])
    if cursor.fetchone()[0]:
        raise UsageError(f"beamrec.{name} stands there and is no table of a release: rename it, or drop it")
    cursor.execute(
        sql.SQL("CREATE TABLE beamrec.{} (LIKE beamrec.{}, CHECK (release = {}))").format(
            sql.Identifier(name), sql.Identifier(parent), sql.Literal(release_id)
        )
    )
    return name


def attach(cursor: psycopg2.extensions.cursor, parent: str, release_id: str) -> None:
    """Attaches the filled table of a release; its mode of lock lets readers of the parent pass."""
    cursor.execute(
        sql.SQL("ALTER TABLE beamrec.{} ATTACH PARTITION beamrec.{} FOR VALUES IN ({})").format(
            sql.Identifier(parent),
            sql.Identifier(partition_name(parent, release_id)),
            sql.Literal(release_id),
        )
    )


def orphans(cursor: psycopg2.extensions.cursor) -> list[str]:
    """Ids with tables but without a release: of loads and drops that did not come to their end."""
    cursor.execute(
        f"SELECT DISTINCT id FROM ({_OURS}) AS ours "  # noqa: S608
        "WHERE NOT EXISTS (SELECT FROM beamrec.releases r WHERE r.id = ours.id) ORDER BY id",
        [list(PARTITIONED_TABLES)],
    )
    return [row[0] for row in cursor.fetchall()]


def drop_tables(session: Session, release_id: str) -> None:
    """Drops the tables of a release that no reader can find any more; wherever it is stopped, it can go on.

    DETACH … CONCURRENTLY lets new readers of the parent pass while it waits for old ones. The rest takes
    locks that would hold them up, so it waits 200 ms for each and tries again. Where there is nothing to drop
    it waits for nobody.

    Raises:
      UnavailableError: for ten minutes no moment was free of older readers; the message names them.
    """
    tables = {parent: partition_name(parent, release_id) for parent in PARTITIONED_TABLES}
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'beamrec'::regnamespace AND relname = ANY(%s)",
            [list(tables.values())],
        )
        there = {row[0] for row in cursor.fetchall()}
    if not there:
        return
    session.lock(_DROPS, "dropping old releases")  # a parent detaches one partition at a time
    try:
        for parent, name in tables.items():
            if name in there:
                _drop_patiently(session, parent, name)
    finally:
        session.unlock(_DROPS)


def _drop_patiently(session: Session, parent: str, name: str) -> None:
    began, pause, said = time.monotonic(), _PAUSE_SECONDS, False
    while True:
        try:
            return _drop(session, parent, name)
        except psycopg2.errors.LockNotAvailable as error:
            waited = time.monotonic() - began
            if waited > _PATIENCE_SECONDS:
                raise UnavailableError(_waiting(session, parent, name, waited)) from error
            if waited > SAY_SECONDS and not said:
                _log.warning("%s", _waiting(session, parent, name, waited))
                said = True
        time.sleep(pause)
        pause = min(2 * pause, _MOST_PAUSE_SECONDS)


def _waiting(session: Session, parent: str, name: str, seconds: float) -> str:
    with session.cursor() as cursor:
        readers = readers_of(cursor, parent, name)
    return (
        f"beamrec.{name}: to be dropped, waiting for {seconds:.0f} s until transactions that may read of it "
        f"end: {readers}; commit or end them (SELECT pg_terminate_backend(PROCESS)); stopped and run again, "
        "this command goes on"
    )


def _drop(session: Session, parent: str, name: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, i.inhdetachpending FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = %s::regclass AND (i.inhdetachpending OR c.relname = %s)",
            [f"beamrec.{parent}", name],
        )
        attached = dict(cursor.fetchall())
    for pending in [found for found, is_pending in attached.items() if is_pending]:
        with session.step() as cursor:
            cursor.execute(_LOCK_TIMEOUT)
            cursor.execute(_detach(parent, pending, "FINALIZE"))
    if attached.get(name) is False:
        _detach_beside_readers(session, parent, name)
    with session.step() as cursor:
        cursor.execute(_LOCK_TIMEOUT)
        _drop_ours(cursor, parent, name)


def _drop_ours(cursor: psycopg2.extensions.cursor, parent: str, name: str) -> None:
    cursor.execute(f"SELECT FROM ({_OURS}) AS ours WHERE relname = %s", [[parent], name])
    if cursor.rowcount:
        cursor.execute(sql.SQL("DROP TABLE beamrec.{}").format(sql.Identifier(name)))


def _detach_beside_readers(session: Session, parent: str, name: str) -> None:
    with session.cursor() as cursor:
        cursor.execute(_DETACH_TIMEOUT)
        try:
            cursor.execute(_detach(parent, name, "CONCURRENTLY"))
        finally:
            with contextlib.suppress(psycopg2.Error):  # the connection may be what went wrong
                cursor.execute("RESET lock_timeout")


def _detach(parent: str, name: str, how: str) -> sql.Composed:
    return sql.SQL("ALTER TABLE beamrec.{} DETACH PARTITION beamrec.{} {}").format(
        sql.Identifier(parent), sql.Identifier(name), sql.SQL(how)
    )
