"""Dropping releases that nothing needs any more, and what killed loads and drops left over."""

import dataclasses
import datetime as dt

import psycopg2

from beamrec.io.pgvector_partitions import drop_tables, orphans
from beamrec.io.pgvector_releases import audit, release_before
from beamrec.io.pgvector_schema import ensure_schema
from beamrec.io.pgvector_session import Session, open_session
from beamrec.schemas.errors import UsageError

__all__ = ["Collected", "Keep", "collect"]

_UNFINISHED = dt.timedelta(hours=1)  # a load that was killed may be gone on with for that long
_MOST_KEPT = 1_000_000  # as good as all of them, and no more than SQL counts
_MOST_RETENTION = dt.timedelta(days=36_500)  # before it PostgreSQL's own times begin to end


@dataclasses.dataclass(frozen=True)
class Keep:
    """What `collect` keeps besides the active release.

    Attributes:
      newest: releases loaded last, and releases that so many rollbacks would go back to.
      retention: releases that scored recommendations in the serving tables since then.
    """

    newest: int = 3
    retention: dt.timedelta = dt.timedelta(days=30)

    def __post_init__(self) -> None:
        if not 1 <= self.newest <= _MOST_KEPT:
            raise UsageError(f"--keep: expected at least 1 and {_MOST_KEPT:,} at most, got {self.newest}")
        if not dt.timedelta(0) <= self.retention <= _MOST_RETENTION:
            raise UsageError(
                f"--retention: expected 0 to {_MOST_RETENTION.days:,} days, got {self.retention.days:,}"
            )

    @classmethod
    def of(cls, newest: int, retention_days: float) -> "Keep":
        """What numbers of releases and of days say.

        Raises:
          UsageError: one is out of range, or no number.
        """
        try:
            retention = dt.timedelta(days=retention_days)
        except (ValueError, OverflowError):
            raise UsageError(
                f"--retention: expected 0 to {_MOST_RETENTION.days:,} days, got {retention_days}"
            ) from None
        return cls(newest, retention)


@dataclasses.dataclass(frozen=True)
class Collected:
    """What was done, or would be.

    Attributes:
      dropped: ids of releases, oldest first.
      kept: id → why: `active`, `newest`, `rollback` or `serving`.
      leftovers: ids whose tables were left over by a killed load or drop.
      busy: leftovers that another command is at work on.
      gone: ids that this command or an earlier one dropped and nobody loads or has loaded again; what is left
        of them is a folder.
    """

    dropped: tuple[str, ...]
    kept: dict[str, str]
    leftovers: tuple[str, ...]
    busy: tuple[str, ...]
    gone: tuple[str, ...] = ()


def collect(uri: str, keep: Keep, dry_run: bool) -> Collected:
    """Drops what nothing needs; readers are not held up, and wherever it is killed it can be run again.

    Args:
      uri: of the store, as `postgres.connect` takes it.
      dry_run: only say what would be dropped.

    Raises:
      UnavailableError: the store is away, refuses us, or readers kept a table locked for ten minutes.
      UsageError: a newer beamrec made the tables.
    """
    with open_session(uri, "release gc") as session:
        with session.step() as cursor:
            ensure_schema(cursor)
            kept = _kept(cursor, keep)
            cursor.execute(
                "SELECT id FROM beamrec.releases WHERE NOT id = ANY(%s) ORDER BY loaded_at, id", [list(kept)]
            )
            doomed = tuple(row[0] for row in cursor.fetchall())
        if dry_run:
            with session.step() as cursor:
                return Collected(doomed, kept, tuple(_leftovers(cursor)), (), _gone(cursor))
        dropped = tuple(release_id for release_id in doomed if _forget(session, release_id, keep))
        with session.step() as cursor:
            leftovers = _leftovers(cursor)
        swept = tuple(release_id for release_id in leftovers if _sweep(session, release_id))
        busy = tuple(release_id for release_id in leftovers if release_id not in swept)
        with session.step() as cursor:
            gone = _gone(cursor)
        return Collected(dropped, kept, tuple(i for i in swept if i not in dropped), busy, gone)


def _gone(cursor: psycopg2.extensions.cursor) -> tuple[str, ...]:
    cursor.execute(
        "SELECT DISTINCT from_release FROM beamrec.release_audit a WHERE action = 'gc' "
        "AND NOT EXISTS (SELECT FROM beamrec.releases r WHERE r.id = a.from_release) "
        "AND NOT EXISTS (SELECT FROM beamrec.release_loads l WHERE l.id = a.from_release) ORDER BY 1"
    )
    return tuple(row[0] for row in cursor.fetchall())


def _kept(cursor: psycopg2.extensions.cursor, keep: Keep) -> dict[str, str]:
    """Releases to keep, each with the strongest reason."""
    cursor.execute("SELECT id FROM beamrec.releases ORDER BY loaded_at DESC, id DESC LIMIT %s", [keep.newest])
    newest = [row[0] for row in cursor.fetchall()]
    reasons = dict.fromkeys(_serving(cursor, keep.retention), "serving")
    return reasons | dict.fromkeys(newest, "newest") | _pointed_at(cursor, keep.newest)


def _pointed_at(cursor: psycopg2.extensions.cursor, rollbacks: int) -> dict[str, str]:
    """The active release, and those that rollbacks would go back to."""
    cursor.execute("SELECT release FROM beamrec.active_release")
    active = (cursor.fetchone() or (None,))[0]
    reasons = dict.fromkeys(_rollback_targets(cursor, active, rollbacks), "rollback")
    return reasons | ({active: "active"} if active else {})


def _rollback_targets(cursor: psycopg2.extensions.cursor, active: str | None, count: int) -> list[str]:
    """What so many rollbacks in a row would go back to."""
    targets: list[str] = []
    current = active
    while current is not None and len(targets) < count:
        current = release_before(cursor, current)
        if current is None or current in targets or current == active:
            break
        targets.append(current)
    return targets


def _serving(cursor: psycopg2.extensions.cursor, retention: dt.timedelta) -> list[str]:
    """Loaded releases that visible recommendations inside the retention name."""
    cursor.execute(
        "SELECT id FROM beamrec.releases WHERE id IN ("
        "SELECT release FROM beamrec.recommendations_latest WHERE processed_at > now() - %s UNION "
        "SELECT release FROM beamrec.recommendations_log WHERE processed_at > now() - %s)",
        [retention, retention],
    )
    return [row[0] for row in cursor.fetchall()]


def _forget(session: Session, release_id: str, keep: Keep) -> bool:
    """Takes a release out of the list, so that nobody finds it any more; False if it is needed after all."""
    if not session.try_lock(release_id):
        return False
    try:
        with session.step() as cursor:
            # As a promote does: from here on it cannot become active.
            cursor.execute("LOCK TABLE beamrec.active_release IN SHARE ROW EXCLUSIVE MODE")
            if release_id in _pointed_at(cursor, keep.newest):
                return False
            cursor.execute("DELETE FROM beamrec.releases WHERE id = %s", [release_id])
            audit(cursor, "gc", release_id, None, f"keeps {keep.newest} and {keep.retention.days} days")
        return True
    finally:
        session.unlock(release_id)


def _leftovers(cursor: psycopg2.extensions.cursor) -> list[str]:
    """Ids with tables but no release, but for loads that were at work within the last hour."""
    cursor.execute(
        "SELECT id FROM beamrec.release_loads WHERE touched_at > clock_timestamp() - %s", [_UNFINISHED]
    )
    fresh = {row[0] for row in cursor.fetchall()}
    cursor.execute(
        "SELECT id FROM beamrec.release_loads WHERE touched_at <= clock_timestamp() - %s", [_UNFINISHED]
    )
    stale = [row[0] for row in cursor.fetchall()]
    return sorted({*orphans(cursor), *stale} - fresh)


def _sweep(session: Session, release_id: str) -> bool:
    """Drops the tables of an id that is no release; False if another command is at work on it."""
    if not session.try_lock(release_id):
        return False
    try:
        with session.cursor() as cursor:
            cursor.execute("SELECT FROM beamrec.releases WHERE id = %s", [release_id])
            if cursor.fetchone() is not None:
                return False
        with session.cursor() as cursor:
            # First: a load believes what stands there, and goes on behind tables that we are about to drop.
            cursor.execute("DELETE FROM beamrec.release_loads WHERE id = %s", [release_id])
        drop_tables(session, release_id)
        return True
    finally:
        session.unlock(release_id)
