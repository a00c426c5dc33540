"""Up to where each source is done, as the newest snapshot of the account says."""

import threading
from collections.abc import Mapping

from beamrec.io.snapshots import newest_account, newest_account_name
from beamrec.io.store import Store

__all__ = ["Floors"]


class Floors:
    """Shared by the shard logs of a process; read again only when there is a newer snapshot."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.name = ""
        self.by_source: Mapping[str, int] = {}

    def refresh(self) -> None:
        """Reads the newest snapshot of the account, if it is not known yet."""
        with self._lock:
            if newest_account_name(self._store) <= self.name:
                return
            snapshot = newest_account(self._store)
            if snapshot is not None:
                resume = snapshot.sources.select(["source", "resume"]).drop_null()
                names, floors = (resume[name].to_pylist() for name in ("source", "resume"))
                self.by_source = dict(zip(names, floors, strict=True))
                self.name = snapshot.name
