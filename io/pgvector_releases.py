"""Releases in the store: which are loaded, which is active, and who moved the pointer when and why.

Functions of a cursor; the caller owns the transaction.
"""

import dataclasses
import getpass
import os
import socket
from collections.abc import Sequence
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extras import Json

from beamrec.io.pgvector_guards import Guards, violations
from beamrec.io.pgvector_schema import ensure_schema, is_ready, partition_name
from beamrec.io.pgvector_views import follow_with_views
from beamrec.schemas.errors import BadDataError, UsageError
from beamrec.schemas.releases import ActiveRelease
from beamrec.schemas.serving import SearchSetting

__all__ = [
    "Moved",
    "active",
    "audit",
    "follow_active",
    "history",
    "loaded",
    "move_pointer",
    "not_loaded",
    "release",
    "release_before",
    "set_search",
    "show",
]

_BIGGEST_INT = 2**31 - 1
_COLUMNS = "r.id, r.uri, r.checksum, r.dim, r.operator, r.has_user_tower, r.items, r.items_version, r.search"


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a promote or rollback did, as its own transaction saw it.

    Attributes:
      before: id of the release that was active; None where none was.
      active: the release that is active now.
      forced: guards that said no and were overruled, each with what it said.
    """

    before: str | None
    active: ActiveRelease
    forced: tuple[str, ...] = ()


def release(cursor: psycopg2.extensions.cursor, release_id: str) -> ActiveRelease:
    """A loaded release, active or not.

    Raises:
      UsageError: no release of this id is loaded.
    """
    cursor.execute(f"SELECT {_COLUMNS} FROM beamrec.releases r WHERE id = %s", [release_id])  # noqa: S608
    row = cursor.fetchone()
    if row is None:
        raise not_loaded(release_id)
    return _from_row(row)


def not_loaded(release_id: str) -> UsageError:
    """What is raised where a release is asked for that the store does not have."""
    return UsageError(
        f"release {release_id or '(an empty id)'} is not loaded; `beamrec release list` shows those that "
        "are, `beamrec release load` loads one, `beamrec release history` says what became of another"
    )


def _from_row(row: tuple[Any, ...]) -> ActiveRelease:
    *fields, search = row
    found = ActiveRelease(*fields)
    return dataclasses.replace(found, search=SearchSetting.from_dict(search)) if search else found


def active(cursor: psycopg2.extensions.cursor) -> ActiveRelease | None:
    """The active release; None where none was promoted, or the tables are not there yet.

    Raises:
      UnavailableError: the tables are of an older version, and this user may not migrate them.
    """
    cursor.execute("SELECT to_regclass('beamrec.active_release') IS NOT NULL")
    if not cursor.fetchone()[0]:
        return None
    if not is_ready(cursor):
        ensure_schema(cursor)
    cursor.execute(
        f"SELECT {_COLUMNS} FROM beamrec.active_release a JOIN beamrec.releases r ON r.id = a.release"  # noqa: S608
    )
    row = cursor.fetchone()
    return _from_row(row) if row else None


def loaded(cursor: psycopg2.extensions.cursor) -> list[dict[str, Any]]:
    """Loaded releases, newest first: id, loaded_at (RFC 3339), dim, items, users, active, index, search…"""
    cursor.execute(
        "SELECT r.id, r.loaded_at, r.dim, r.items, r.users, a.release IS NOT NULL, "
        "coalesce(r.built->'index'->>'kind', 'hnsw'), r.search, r.uri "
        "FROM beamrec.releases r LEFT JOIN beamrec.active_release a ON a.release = r.id "
        "ORDER BY r.loaded_at DESC, r.id DESC"
    )
    names = ("id", "loaded_at", "dim", "items", "users", "active", "index", "search", "uri")
    rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return [row | {"loaded_at": row["loaded_at"].isoformat()} for row in rows]


def show(cursor: psycopg2.extensions.cursor, release_id: str) -> dict[str, Any]:
    """A release's folder, manifest, how its tables were built, and audit trail (`history`, oldest first).

    Raises:
      UsageError: no release of this id is loaded.
    """
    found = release(cursor, release_id)
    cursor.execute("SELECT built FROM beamrec.releases WHERE id = %s", [release_id])
    built = cursor.fetchone()[0]
    return {
        "id": found.id,
        "uri": found.uri,
        "checksum": found.checksum,
        "items": found.items,
        "items_version": found.items_version,
        "built": built,
        "search": found.search.to_dict() if found.search else None,
        "manifest": _manifest(cursor, release_id),
        "history": history(cursor, release_id),
    }


def history(
    cursor: psycopg2.extensions.cursor, release_id: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """The audit trail, oldest first: at (RFC 3339), who, action, from, to, why, forced.

    Args:
      release_id: only what came from it or went to it, also of a release that was dropped long ago.
      limit: only the latest so many.
    """
    cursor.execute(
        "SELECT at, who, action, from_release, to_release, why, forced FROM beamrec.release_audit "
        "WHERE %(id)s IS NULL OR %(id)s IN (from_release, to_release) ORDER BY number DESC LIMIT %(limit)s",
        {"id": release_id, "limit": limit},
    )
    names = ("at", "who", "action", "from", "to", "why", "forced")
    rows = [dict(zip(names, row, strict=True)) for row in reversed(cursor.fetchall())]
    return [row | {"at": row["at"].isoformat()} for row in rows]


def set_search(cursor: psycopg2.extensions.cursor, release_id: str, setting: SearchSetting | None) -> None:
    """Keeps with a release how it is best searched; None forgets it.

    Raises:
      UsageError: no release of this id is loaded.
    """
    found = release(cursor, release_id)
    values = Json(setting.to_dict()) if setting else None
    cursor.execute("UPDATE beamrec.releases SET search = %s WHERE id = %s", [values, found.id])
    why = setting.name if setting else "by the size of the catalogue"
    audit(cursor, "set-search", None, found.id, why)


def move_pointer(
    cursor: psycopg2.extensions.cursor,
    release_id: str | None,
    why: str,
    views: tuple[str, str],
    guards: Guards | None,
) -> Moved:
    """Makes `release_id` the active release, or with None the one before it; the views follow.

    Args:
      views: names in `public` of the item view and the user view.
      guards: bounds against the active release; None for none. A rollback has none: it goes back to what
        was active before, at a time when nobody should have to argue with it.

    Raises:
      UsageError: it is not loaded, there is none to go back to, a guard says no, or somebody's view is made
        of a public one that must change.
      BadDataError: its ids do not have the shop's key type.
    """
    # Promotes queue up here; readers of the pointer are not held up by this mode.
    cursor.execute("LOCK TABLE beamrec.active_release IN SHARE ROW EXCLUSIVE MODE")
    cursor.execute("SELECT release FROM beamrec.active_release")
    before = (cursor.fetchone() or (None,))[0]
    wanted = _release_to_go_back_to(cursor, before) if release_id is None else release_id
    found, forced = release(cursor, wanted), list[str]()
    if before != found.id:
        forced = _overruled(cursor, before, found.id, guards) if before and guards else []
        cursor.execute(
            "INSERT INTO beamrec.active_release (release) VALUES (%s) "
            "ON CONFLICT (one) DO UPDATE SET release = excluded.release, since = now()",
            [found.id],
        )
        audit(cursor, "rollback" if release_id is None else "promote", before, found.id, why, forced)
    _show_in_views(cursor, found, views)
    return Moved(before, found, tuple(forced))


def follow_active(cursor: psycopg2.extensions.cursor, release_id: str, views: tuple[str, str]) -> None:
    """The views once more, if the release is the active one: an upsert may have brought it a wider integer.

    Args:
      views: names in `public` of the item view and the user view.

    Raises:
      UsageError: somebody's view is made of a public one that must change.
    """
    cursor.execute("SELECT release FROM beamrec.active_release FOR SHARE")  # no promote comes between
    if cursor.fetchone() == (release_id,):
        _show_in_views(cursor, release(cursor, release_id), views)


def _show_in_views(cursor: psycopg2.extensions.cursor, shown: ActiveRelease, views: tuple[str, str]) -> None:
    manifest = _manifest(cursor, shown.id)
    key_types = (
        _sql_type(cursor, "item_embeddings", manifest["item_key_type"], shown.id),
        _sql_type(cursor, "user_embeddings", manifest["user_key_type"], shown.id),
    )
    follow_with_views(cursor, shown.dim, key_types, views)


def _overruled(cursor: psycopg2.extensions.cursor, before: str, after: str, guards: Guards) -> list[str]:
    """Guards that said no and were overruled by force, each with what it said."""
    found = violations(cursor, before, after, guards)
    if found and not guards.force:
        raise UsageError(
            f"release {after} is not promoted: {'; '.join(v.says for v in found)}. "
            f"{before} stays active; --force promotes it nevertheless"
        )
    return [f"{v.guard}: {v.says}" for v in found]


def audit(
    cursor: psycopg2.extensions.cursor,
    action: str,
    before: str | None,
    after: str | None,
    why: str,
    forced: Sequence[str] = (),
) -> None:
    """Writes one line of the audit table: who (user@host), when, from, to, why, and overruled guards."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # containers run under numbers that have no name
    cursor.execute(
        "INSERT INTO beamrec.release_audit (who, action, from_release, to_release, why, forced) "
        "VALUES (%s, %s, %s, %s, %s, %s)",
        [f"{user}@{socket.gethostname()}", action, before, after, why, list(forced)],
    )


def _manifest(cursor: psycopg2.extensions.cursor, release_id: str) -> dict[str, Any]:
    cursor.execute("SELECT manifest FROM beamrec.releases WHERE id = %s", [release_id])
    manifest: dict[str, Any] = cursor.fetchone()[0]
    return manifest


def release_before(cursor: psycopg2.extensions.cursor, current: str | None) -> str | None:
    """The release that the last promote of this one replaced, loaded or not."""
    cursor.execute(
        "SELECT from_release FROM beamrec.release_audit WHERE action = 'promote' AND to_release = %s "
        "ORDER BY number DESC LIMIT 1",
        [current],
    )
    return (cursor.fetchone() or (None,))[0]


def _release_to_go_back_to(cursor: psycopg2.extensions.cursor, current: str | None) -> str:
    before = release_before(cursor, current)
    if before is None:
        raise UsageError(f"rollback: no release was active before {current or 'now'}; promote one by its id")
    return before


def _sql_type(cursor: psycopg2.extensions.cursor, table: str, key_type: str, release_id: str) -> str:
    """The id's type in the public view: varchar, or the narrower integer that holds every id."""
    if key_type == "string":
        return "varchar"
    try:
        cursor.execute(
            sql.SQL(
                "SELECT coalesce(min(id::bigint), 0), coalesce(max(id::bigint), 0) FROM beamrec.{}"
            ).format(sql.Identifier(partition_name(table, release_id)))
        )
    except psycopg2.DataError as error:
        raise BadDataError(
            f"release {release_id}: {table}: the manifest says that ids are integers, but "
            f"{str(error).splitlines()[0]}"
        ) from error
    least, greatest = cursor.fetchone()
    return "int" if least >= -_BIGGEST_INT - 1 and greatest <= _BIGGEST_INT else "bigint"
