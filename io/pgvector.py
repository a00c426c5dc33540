"""The vector and serving store: releases, look-ups, search and upserts in PostgreSQL with pgvector.

Every answer names its release in SQL, never the views: a promote in the middle of a batch changes nothing
for that batch. One statement answers a whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import psycopg2
import pyarrow as pa

from beamrec.io import (
    pgvector_gc,
    pgvector_items,
    pgvector_load,
    pgvector_releases,
    pgvector_search,
    pgvector_serving,
)
from beamrec.io.pgvector_gc import Collected, Keep
from beamrec.io.pgvector_guards import Guards
from beamrec.io.pgvector_index import IndexOptions
from beamrec.io.pgvector_items import UpsertedItems
from beamrec.io.pgvector_releases import Moved
from beamrec.io.pgvector_schema import ensure_schema
from beamrec.io.pgvector_search import Catalogue, Lookup
from beamrec.io.postgres import Database
from beamrec.schemas.releases import ActiveRelease, ReleaseContents
from beamrec.schemas.serving import SearchSetting, ServingRow

__all__ = ["Catalogue", "Lookup", "Moved", "ReleaseStore"]

_Answer = TypeVar("_Answer")
_HNSW = IndexOptions()
_DEFAULT_SEARCH = SearchSetting()


@dataclasses.dataclass(frozen=True)
class ReleaseStore:
    """Picklable access to the store; connects at first use, reconnects after a server restart.

    Every method raises UnavailableError where the store is away or refuses the login.

    Attributes:
      uri: `postgresql://user@host:port/db` (no password inside) or `embedded:/folder`.
      patient: wait an outage out instead of raising; for a stream's look-ups and upserts.
      item_view, user_view: names in `public` of the views of the active release.
    """

    uri: str
    patient: bool = False
    item_view: str = "item_emb"
    user_view: str = "user_emb"

    @functools.cached_property
    def _database(self) -> Database:
        return Database(self.uri, self.patient)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_database"}

    def close(self) -> None:
        """Closes this thread's connection; the next use opens another."""
        self._database.close()

    def ensure_schema(self) -> None:
        """Creates the schema `beamrec` and its tables where they are missing."""
        self._database.transaction(ensure_schema)

    def _with_schema(self, work: Callable[[psycopg2.extensions.cursor], _Answer]) -> _Answer:
        """Does some work in one transaction, after it has made the tables where they are missing."""

        def both(cursor: psycopg2.extensions.cursor) -> _Answer:
            ensure_schema(cursor)
            return work(cursor)

        return self._database.transaction(both)

    def load(
        self,
        contents: ReleaseContents,
        index: IndexOptions = _HNSW,
        status: Callable[[str], None] = lambda text: None,
    ) -> bool:
        """Loads a verified release, on a connection of its own; readers notice nothing of it.

        Killed anywhere and called again it goes on behind its last finished step and ends the same.

        Args:
          index: how its items are indexed.
          status: told which step begins.

        Returns:
          False if it was loaded already; then nothing is changed, its index neither.

        Raises:
          BadDataError: its id is taken by other content, or what was stored is not what was given.
        """
        return pgvector_load.load_release(self.uri, contents, index, status)

    def promote(self, release_id: str, reason: str, guards: Guards | None = None) -> Moved:
        """Makes a loaded release the active one, in one transaction, and the views follow.

        Args:
          guards: bounds against the release that it replaces; None for none.

        Raises:
          UsageError: no such release is loaded, or a guard says no.
        """
        return self._move_pointer(release_id, reason, guards)

    def rollback(self, reason: str = "rollback") -> Moved:
        """Goes back to the release that the last promote of the active one replaced.

        Raises:
          UsageError: there is none.
        """
        return self._move_pointer(None, reason, None)

    def _move_pointer(self, release_id: str | None, reason: str, guards: Guards | None) -> Moved:
        def work(cursor: psycopg2.extensions.cursor) -> Moved:
            ensure_schema(cursor)
            return pgvector_releases.move_pointer(
                cursor, release_id, reason, (self.item_view, self.user_view), guards
            )

        return self._database.transaction(work)

    def set_search(self, release_id: str, setting: SearchSetting | None) -> None:
        """Keeps with a loaded release how its items are best searched, None for by their number; `active`
        hands it out.

        Raises:
          UsageError: no such release is loaded.
        """

        def work(cursor: psycopg2.extensions.cursor) -> None:
            ensure_schema(cursor)
            pgvector_releases.set_search(cursor, release_id, setting)

        self._database.transaction(work)

    def upsert_items(
        self, release_id: str, ids: Sequence[str], vectors: np.ndarray, why: str
    ) -> UpsertedItems:
        """Adds items to a loaded release between releases, or replaces their vectors, in one transaction.

        The next search finds them, and their neighbours are exact; `items_version` of the active release
        tells workers that remember its catalogue. They stay as long as the release does.

        Args:
          ids: distinct.
          vectors: [len(ids), dim] float32, as the release's item tower makes them.

        Raises:
          UsageError: no such release is loaded, or somebody's view is made of a public one that must change.
          BadDataError: a vector or an id is not one that the release could hold.
        """

        def work(cursor: psycopg2.extensions.cursor) -> UpsertedItems:
            ensure_schema(cursor)
            done = pgvector_items.upsert_items(cursor, release_id, ids, vectors, why)
            pgvector_releases.follow_active(cursor, release_id, (self.item_view, self.user_view))
            return done

        return self._database.transaction(work)

    def unknown_items(self, release_id: str, ids: Sequence[str]) -> list[str]:
        """Those ids that a loaded release does not know, in their order.

        Raises:
          UsageError: no such release is loaded.
        """
        return self._with_schema(lambda cursor: pgvector_items.unknown_items(cursor, release_id, ids))

    def collect(self, keep: Keep, dry_run: bool = False) -> Collected:
        """Drops releases that nothing needs, and what killed loads left over; readers are not held up.

        Args:
          dry_run: only say what would be dropped.
        """
        return pgvector_gc.collect(self.uri, keep, dry_run)

    def active(self) -> ActiveRelease | None:
        """The active release, or None where none was promoted yet."""
        return self._database.transaction(pgvector_releases.active)

    def releases(self) -> list[dict[str, Any]]:
        """Loaded releases, newest first: id, loaded_at (RFC 3339), dim, items, users, active, index…"""
        return self._with_schema(pgvector_releases.loaded)

    def show(self, release_id: str) -> dict[str, Any]:
        """A release's folder, manifest and audit trail.

        Raises:
          UsageError: no such release is loaded.
        """
        return self._with_schema(lambda cursor: pgvector_releases.show(cursor, release_id))

    def history(self, release_id: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """The audit trail of all releases or one, dropped ones too, oldest first; `limit`: the latest."""
        self.ensure_schema()
        return self._database.transaction(lambda cursor: pgvector_releases.history(cursor, release_id, limit))

    def release(self, release_id: str) -> ActiveRelease:
        """A loaded release, active or not.

        Raises:
          UsageError: no such release is loaded.
        """
        return self._with_schema(lambda cursor: pgvector_releases.release(cursor, release_id))

    def lookup(
        self,
        release_id: str,
        product_ids: pa.StringArray,
        customer_ids: pa.StringArray,
        with_vectors: bool = False,
    ) -> Lookup:
        """Item neighbours and known customers of a whole batch, in one statement by primary key."""
        return self._database.transaction(
            lambda cursor: pgvector_search.lookup(cursor, release_id, product_ids, customer_ids, with_vectors)
        )

    def catalogue(self, release_id: str, limit: int | None = None) -> Catalogue:
        """Every item of a release with its vector, most popular first; with a limit the first of them.

        Raises:
          UsageError: no such release is loaded.
        """
        return self._with_schema(lambda cursor: pgvector_search.catalogue(cursor, release_id, limit))

    def user_vectors(self, release_id: str, count: int, seed: int) -> np.ndarray:
        """The vectors of some of a release's users, [count or fewer, dim]; one seed draws the same ones.

        Raises:
          UsageError: no such release is loaded.
        """
        return self._with_schema(lambda cursor: pgvector_search.user_vectors(cursor, release_id, count, seed))

    def popular(self, release_id: str, count: int) -> list[str]:
        """Ids of a release's most popular items, `count` of them if there are so many."""
        return self._database.transaction(lambda cursor: pgvector_search.popular(cursor, release_id, count))

    def search(
        self, release_id: str, vectors: np.ndarray, k: int, setting: SearchSetting = _DEFAULT_SEARCH
    ) -> pa.ListArray:
        """The k items of highest inner product for each vector, by the release's index, in one statement.

        Args:
          vectors: [n, dim] float32.
          setting: width of the search; that in an HNSW index is raised to k (1,000 at most).

        Returns:
          CANDIDATES [n], scores descending.

        Raises:
          UsageError: the release is not loaded, or has vectors of another dimension.
        """
        return self._database.transaction(
            lambda cursor: pgvector_search.search(cursor, release_id, vectors, k, setting)
        )

    def upsert_serving(self, rows: pa.RecordBatch) -> int:
        """`upsert_latest` of rows of the schema SERVING."""
        return self._database.transaction(lambda cursor: pgvector_serving.upsert_serving(cursor, rows))

    def upsert_latest(self, rows: Sequence[ServingRow]) -> int:
        """Keeps the newest recommendations of each customer; returns how many rows changed."""
        return self._database.transaction(lambda cursor: pgvector_serving.upsert_latest(cursor, rows))

    def append_log(self, rows: Sequence[ServingRow]) -> int:
        """Adds recommendations to the log, one row for each event; returns how many were new."""
        return self._database.transaction(lambda cursor: pgvector_serving.append_log(cursor, rows))
