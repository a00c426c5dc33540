"""Who keeps a session waiting, told so that the user can end that transaction."""

import psycopg2

__all__ = ["lock_holder", "readers_of"]

_MOST = 3
_SHOWN = (
    "'process ' || a.pid || concat(' (', concat_ws(', ', 'user ' || a.usename, "
    "nullif(a.application_name, ''), a.state, "
    "'since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ')), ')')"
)


def readers_of(cursor: psycopg2.extensions.cursor, *tables: str) -> str:
    """Those who use one of the tables of the schema `beamrec`, the longest first.

    Where nobody does, those who hold an old snapshot: DETACH PARTITION waits for these too.
    """
    cursor.execute(
        f"SELECT {_SHOWN}, l.pid IS NOT NULL AS uses FROM pg_stat_activity a LEFT JOIN ("  # noqa: S608
        "SELECT DISTINCT pid FROM pg_locks WHERE granted AND relation = ANY(SELECT c.oid FROM pg_class c "
        "WHERE c.relnamespace = 'beamrec'::regnamespace AND c.relname = ANY(%s))) l ON l.pid = a.pid "
        "WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() "
        "AND (l.pid IS NOT NULL OR a.backend_xmin IS NOT NULL) ORDER BY uses DESC, a.xact_start LIMIT %s",
        [list(tables), _MOST],
    )
    found = cursor.fetchall()
    return _listed([shown for shown, uses in found if uses] or [shown for shown, _ in found])


def lock_holder(cursor: psycopg2.extensions.cursor, key: int) -> str:
    """Who holds an advisory lock."""
    cursor.execute(
        f"SELECT {_SHOWN} FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "  # noqa: S608
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.datname = current_database() "
        "AND (l.classid::bigint << 32) | l.objid::bigint = %s",
        [key],
    )
    return _listed([shown for (shown,) in cursor.fetchall()])


def _listed(shown: list[str]) -> str:
    return "; ".join(shown) or "a process that has just gone"
