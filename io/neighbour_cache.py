"""What a worker remembers of its look-ups: neighbours change only when items are upserted into a release.

Shops' clicks follow Zipf's law, so most products of a batch were in batches before it. Half of a look-up's
time is the server's, and most of the rest goes into decoding what it sends.
"""

import threading

import numpy as np
import pyarrow as pa

from beamrec.io.pgvector import Lookup, ReleaseStore
from beamrec.schemas.events import NEIGHBOURS
from beamrec.schemas.releases import ActiveRelease

__all__ = ["NeighbourCache"]

_MOST_BYTES = 64 * 2**20
_MOST_KEYS = 500_000
_UNKNOWN = -1


class NeighbourCache:
    """Look-ups of one release at one version of its items; anything else begins it anew. Safe for threads.

    Args:
      store: asked for what is not remembered.
      most_bytes: of neighbours, beyond which all are forgotten.
    """

    def __init__(self, store: ReleaseStore, most_bytes: int = _MOST_BYTES) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._version: tuple[str, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self._rows: dict[str, int] = {}
        self._parts: list[pa.ListArray] = []

    def lookup(
        self,
        release: ActiveRelease,
        products: pa.StringArray,
        customers: pa.StringArray,
        with_vectors: bool = False,
    ) -> Lookup:
        """As `ReleaseStore.lookup`; asks for no product that it remembers, not even for one unknown then."""
        version = release.id, release.items_version
        keys: list[str] = products.to_pylist()
        with self._lock:
            if self._version != version or self._is_full():
                self._version = version
                self._begin()
            rows = self._rows
            missing = [key for key in keys if key not in rows]
        asked = pa.array(missing, pa.string())
        if not len(customers) and not missing and not with_vectors:
            found = Lookup(asked, pa.array([], NEIGHBOURS), asked)
        else:
            found = self._store.lookup(release.id, asked, customers, with_vectors)
        with self._lock:
            if self._rows is not rows:  # another thread began it anew meanwhile
                return self._store.lookup(release.id, products, customers, with_vectors)
            self._add(missing, found)
            known, neighbours = self._take(keys)
        return Lookup(known, neighbours, found.customers, found.vectors)

    def _is_full(self) -> bool:
        return len(self._rows) > _MOST_KEYS or sum(part.nbytes for part in self._parts) > self._most_bytes

    def _add(self, asked: list[str], found: Lookup) -> None:
        """Appends what was found; adjacent parts of like size become one, so that there are few."""
        if not asked:
            return
        self._rows.update(dict.fromkeys(asked, _UNKNOWN))
        first = sum(map(len, self._parts))
        self._rows.update(
            zip(found.products.to_pylist(), range(first, first + len(found.products)), strict=True)
        )
        self._parts.append(found.neighbours)
        while len(self._parts) > 1 and len(self._parts[-2]) < 2 * len(self._parts[-1]):
            self._parts[-2:] = [pa.concat_arrays(self._parts[-2:])]

    def _take(self, keys: list[str]) -> tuple[pa.StringArray, pa.ListArray]:
        """The known ones of some keys, in the order of the parts that hold them, with their neighbours."""
        rows = np.fromiter(map(self._rows.__getitem__, keys), np.int64, len(keys))
        order = np.argsort(rows, kind="stable")
        order = order[np.searchsorted(rows[order], 0) :]
        starts = np.cumsum([0, *map(len, self._parts)])
        cuts = np.searchsorted(rows[order], starts)
        taken = [
            part.take(pa.array(rows[order[begin:end]] - start))
            for part, start, begin, end in zip(self._parts, starts, cuts, cuts[1:], strict=False)
            if begin < end
        ]
        neighbours = pa.concat_arrays(taken) if taken else pa.array([], NEIGHBOURS)
        return pa.array([keys[place] for place in order], pa.string()), neighbours
