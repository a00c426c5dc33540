"""The vector and serving store: releases, look-ups, search and upserts in PostgreSQL with pgvector.

Every answer names its release in SQL, never the views: a promote in the middle of a batch changes nothing
for that batch. One statement answers a whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psycopg2

from beamrec.io import pgvector_load, pgvector_releases, pgvector_search, pgvector_serving
from beamrec.io.pgvector_guards import Guards
from beamrec.io.pgvector_index import IndexOptions
from beamrec.io.pgvector_schema import ensure_schema
from beamrec.io.pgvector_search import Catalogue, Lookup
from beamrec.io.postgres import Database
from beamrec.schemas.releases import ActiveRelease, ReleaseContents
from beamrec.schemas.serving import SearchSetting, ServingRow

__all__ = ["Catalogue", "Lookup", "ReleaseStore"]

_HNSW = IndexOptions()


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

    def promote(self, release_id: str, reason: str, guards: Guards | None = None) -> ActiveRelease:
        """Makes a loaded release the active one, in one transaction, and the views follow.

        Args:
          guards: bounds against the release that it replaces; None for none.

        Raises:
          UsageError: no such release is loaded, or a guard says no.
        """
        return self._move_pointer(release_id, reason, guards)

    def rollback(self, reason: str = "rollback") -> ActiveRelease:
        """Goes back to the release that the last promote of the active one replaced.

        Raises:
          UsageError: there is none.
        """
        return self._move_pointer(None, reason, None)

    def _move_pointer(self, release_id: str | None, reason: str, guards: Guards | None) -> ActiveRelease:
        def work(cursor: psycopg2.extensions.cursor) -> ActiveRelease:
            ensure_schema(cursor)
            return pgvector_releases.move_pointer(
                cursor, release_id, reason, (self.item_view, self.user_view), guards
            )

        return self._database.transaction(work)

    def set_search(self, release_id: str, setting: SearchSetting) -> None:
        """Keeps with a loaded release how its items are best searched; `active` hands it out.

        Raises:
          UsageError: no such release is loaded.
        """

        def work(cursor: psycopg2.extensions.cursor) -> None:
            ensure_schema(cursor)
            pgvector_releases.set_search(cursor, release_id, setting)

        self._database.transaction(work)

    def active(self) -> ActiveRelease | None:
        """The active release, or None where none was promoted yet."""
        return self._database.transaction(pgvector_releases.active)

    def releases(self) -> list[dict[str, Any]]:
        """Loaded releases, newest first: id, loaded_at (RFC 3339), dim, items, users, active, index…"""
        self.ensure_schema()
        return self._database.transaction(pgvector_releases.loaded)

    def show(self, release_id: str) -> dict[str, Any]:
        """A release's folder, manifest and audit trail.

        Raises:
          UsageError: no such release is loaded.
        """
        self.ensure_schema()
        return self._database.transaction(lambda cursor: pgvector_releases.show(cursor, release_id))

    def lookup(
        self,
        release_id: str,
        product_ids: Sequence[str],
        customer_ids: Sequence[str],
        with_vectors: bool = False,
    ) -> Lookup:
        """Item neighbours and known customers of a whole batch, in one statement by primary key."""
        return self._database.transaction(
            lambda cursor: pgvector_search.lookup(cursor, release_id, product_ids, customer_ids, with_vectors)
        )

    def catalogue(self, release_id: str) -> Catalogue:
        """Every item of a release with its vector, most popular first.

        Raises:
          UsageError: no such release is loaded.
        """
        return self._database.transaction(lambda cursor: pgvector_search.catalogue(cursor, release_id))

    def search(
        self, release_id: str, vectors: np.ndarray, k: int, ef_search: int = 100
    ) -> list[list[tuple[str, float]]]:
        """The k items of highest inner product for each vector, by the release's index, in one statement.

        Args:
          vectors: [n, dim] float32.
          ef_search: width of the HNSW search, raised to k where that is more (1,000 at most).

        Returns:
          For each vector [(id, score)] with scores descending.
        """
        return self._database.transaction(
            lambda cursor: pgvector_search.search(cursor, release_id, vectors, k, ef_search)
        )

    def upsert_latest(self, rows: Sequence[ServingRow]) -> int:
        """Keeps the newest recommendations of each customer; returns how many rows changed."""
        return self._database.transaction(lambda cursor: pgvector_serving.upsert_latest(cursor, rows))

    def append_log(self, rows: Sequence[ServingRow]) -> int:
        """Adds recommendations to the log, one row for each event; returns how many were new."""
        return self._database.transaction(lambda cursor: pgvector_serving.append_log(cursor, rows))
