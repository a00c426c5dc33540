"""How long this process has waited for stores that were away, until a reader makes metrics of it.

Whoever waits may be a thread of its own, or know nothing of Beam; the reader of a split runs in a bundle,
several times a second.
"""

import threading

__all__ = ["WAITS", "StoreWaits"]


class StoreWaits:
    """Retries and seconds by store; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[str, tuple[int, float]] = {}

    def add(self, store: str, seconds: float) -> None:
        """Takes note of one pause before a store is asked again."""
        with self._lock:
            retries, total = self._waits.get(store, (0, 0.0))
            self._waits[store] = retries + 1, total + seconds

    def take(self) -> dict[str, tuple[int, float]]:
        """Store → (retries, seconds waited) since this was asked last."""
        if not self._waits:  # as ever; a lock at each poll for nothing
            return {}
        with self._lock:
            taken, self._waits = self._waits, {}
            return taken


WAITS = StoreWaits()
"""The waits of this process."""
