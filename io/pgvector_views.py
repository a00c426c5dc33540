"""The two public views that show the active release, whatever its dimension and the type of its ids."""

import dataclasses

import psycopg2
from psycopg2 import sql

from beamrec.io.pgvector_schema import EMBEDDING_TABLES
from beamrec.schemas.errors import UsageError

__all__ = ["follow_with_views"]

_MARK = "beamrec: shows the active release"


def follow_with_views(
    cursor: psycopg2.extensions.cursor,
    dim: int,
    key_types: tuple[str, str],
    names: tuple[str, str],
) -> None:
    """Makes the public views of the active release, again only if dimension or key type changed.

    A view that is made again keeps its owner and its grants. A table or view of that name that is not ours is
    left alone.

    Args:
      key_types: SQL types of the item's and the user's id.
      names: names of the item view and the user view in `public`.

    Raises:
      UsageError: somebody's view is made of one that must be made again.
    """
    for table, key_type, name in zip(EMBEDDING_TABLES, key_types, names, strict=True):
        mark = f"{_MARK} ({table}, {key_type}, {dim})"
        cursor.execute(
            "SELECT oid, obj_description(oid, 'pg_class') FROM pg_class "
            "WHERE relname = %s AND relnamespace = 'public'::regnamespace",
            [name],
        )
        found, comment = cursor.fetchone() or (None, None)
        is_ours = (comment or "").startswith(_MARK)
        if (found is not None and not is_ours) or comment == mark:
            continue
        view = sql.Identifier("public", name)
        granted = _Granted.of(cursor, found) if found is not None else None
        if found is not None:
            _drop(cursor, view, name)
        _create(cursor, view, table, key_type, dim)
        cursor.execute(sql.SQL("COMMENT ON VIEW {} IS {}").format(view, sql.Literal(mark)))
        if granted is not None:
            granted.give(cursor, view)


def _create(
    cursor: psycopg2.extensions.cursor, view: sql.Identifier, table: str, key_type: str, dim: int
) -> None:
    cursor.execute(
        sql.SQL(
            "CREATE VIEW {} AS SELECT id::{} AS id, embedding::vector({}) AS embedding FROM beamrec.{} "
            "WHERE release = (SELECT release FROM beamrec.active_release)"
        ).format(view, sql.SQL(key_type), sql.Literal(dim), sql.Identifier(table))
    )


def _drop(cursor: psycopg2.extensions.cursor, view: sql.Identifier, name: str) -> None:
    """Drops a view; its columns change their types, which PostgreSQL does to no view that stands."""
    try:
        cursor.execute(sql.SQL("DROP VIEW {}").format(view))
    except psycopg2.errors.DependentObjectsStillExist as error:
        depending = "; ".join((error.diag.message_detail or "").splitlines())
        raise UsageError(
            f"public.{name} must be made again, for vectors of another length or ids of another type, and "
            f"what is made of it stands in the way: {depending}. Nothing was changed; drop that, run the "
            "command again, and make it anew"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Granted:
    """Who owns a view, and what others may do with it or with one of its columns.

    Attributes:
      rights: (privilege, column or None, role or None for PUBLIC, whether that role may hand it on).
    """

    owner: str
    rights: tuple[tuple[str, str | None, str | None, bool], ...]

    @classmethod
    def of(cls, cursor: psycopg2.extensions.cursor, view: int) -> "_Granted":
        cursor.execute("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = %s", [view])
        owner = cursor.fetchone()[0]
        cursor.execute(
            "SELECT a.privilege_type, held.name, "
            "CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END, a.is_grantable FROM ("
            "SELECT relacl AS acl, NULL AS name FROM pg_class WHERE oid = %(view)s UNION ALL "
            "SELECT attacl, attname FROM pg_attribute WHERE attrelid = %(view)s) AS held "
            "CROSS JOIN aclexplode(held.acl) AS a ORDER BY 1, 2, 3",
            {"view": view},
        )
        return cls(owner, tuple(row for row in cursor.fetchall() if row[2] != owner))

    def give(self, cursor: psycopg2.extensions.cursor, view: sql.Identifier) -> None:
        """The same to a view that was made in place of the other one."""
        cursor.execute("SELECT current_user")
        if cursor.fetchone()[0] != self.owner:
            cursor.execute(sql.SQL("ALTER VIEW {} OWNER TO {}").format(view, sql.Identifier(self.owner)))
        for privilege, column, role, may_grant in self.rights:
            cursor.execute(
                sql.SQL("GRANT {}{} ON {} TO {}{}").format(
                    sql.SQL(privilege),
                    sql.SQL(" ({})").format(sql.Identifier(column)) if column else sql.SQL(""),
                    view,
                    sql.Identifier(role) if role else sql.SQL("PUBLIC"),
                    sql.SQL(" WITH GRANT OPTION") if may_grant else sql.SQL(""),
                )
            )
