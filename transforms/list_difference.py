"""How two sets of recommendations differ: overlap, rank correlation, and the events that changed most."""

import collections
import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Difference", "Served", "overlap", "rank_correlation"]

_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Served:
    """What one event was given: items by descending score, the path that served it, and the release."""

    items: tuple[str, ...]
    served_by: str
    release: str


def overlap(old: Sequence[str], new: Sequence[str]) -> float:
    """The share of the items that both lists have, of the longer one; 1 for two empty lists."""
    return len({*old} & {*new}) / max(len(old), len(new)) if old or new else 1.0


def rank_correlation(old: Sequence[str], new: Sequence[str]) -> float:
    """Kendall's tau-b of two lists over the items of either: from -1 to 1, and 1 for equal lists.

    An item that a list does not have stands behind all that it has, tied with the others that it does not
    have. So lists in the opposite order give -1, and lists without a common item something between -1 and 0.
    Where one list ties all items nothing is correlated, and it is 0.
    """
    if tuple(old) == tuple(new):
        return 1.0
    items = [*dict.fromkeys([*old, *new])]
    first, second = (_signs(ranked, items) for ranked in (old, new))
    pairs = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum()) / pairs if pairs else 0.0


def _signs(ranked: Sequence[str], items: Sequence[str]) -> Any:
    """Of each pair of items which comes first in a list: [items, items] of -1, 0 and 1."""
    places = {item: place for place, item in enumerate(ranked)}
    ranks = np.array([places.get(item, len(ranked)) for item in items])
    return np.sign(ranks[:, None] - ranks[None, :])


@dataclasses.dataclass
class _Sums:
    events: int = 0
    changed: int = 0
    overlap: float = 0.0
    correlation: float = 0.0

    def add(self, changed: bool, shared: float, correlation: float) -> None:
        self.events += 1
        self.changed += changed
        self.overlap += shared
        self.correlation += correlation

    def to_dict(self, items: int) -> dict[str, Any]:
        count = max(self.events, 1)
        return {
            "events": self.events,
            "changed": self.changed,
            f"overlap@{items}": round(self.overlap / count, 6),
            "rank_correlation": round(self.correlation / count, 6),
        }


class Difference:
    """Adds up what differs, event by event; holds sums and a few examples.

    Args:
      items: only so many items of each list count.
    """

    def __init__(self, items: int = 5) -> None:
        self._items = items
        self._all = _Sums()
        self._paths: dict[str, _Sums] = collections.defaultdict(_Sums)
        self._examples: list[tuple[float, float, str, Served, Served]] = []
        self.only_old = self.only_new = self.other_path = 0

    def add(self, event_id: str, old: Served, new: Served) -> None:
        """An event that both have."""
        before, after = old.items[: self._items], new.items[: self._items]
        values = before != after, overlap(before, after), rank_correlation(before, after)
        self._all.add(*values)
        self._paths[new.served_by].add(*values)
        self.other_path += old.served_by != new.served_by
        if before != after:
            example = (-values[1], -values[2], event_id, old, new)
            keep = heapq.heappush if len(self._examples) < _EXAMPLES else heapq.heappushpop
            keep(self._examples, example)

    def to_dict(self) -> dict[str, Any]:
        """`events` that both have, how many `changed`, means, the same by path, and what changed most."""
        return {
            **self._all.to_dict(self._items),
            "only_old": self.only_old,
            "only_new": self.only_new,
            "served_by_changed": self.other_path,
            "by_served_by": {path: sums.to_dict(self._items) for path, sums in sorted(self._paths.items())},
            "examples": [
                {
                    "event_id": event_id,
                    f"overlap@{self._items}": round(-shared, 6),
                    "rank_correlation": round(-correlation, 6),
                    "old": _shown(old, self._items),
                    "new": _shown(new, self._items),
                }
                for shared, correlation, event_id, old, new in sorted(self._examples, reverse=True)
            ],
        }


def _shown(served: Served, items: int) -> dict[str, Any]:
    return {
        "release": served.release,
        "served_by": served.served_by,
        "recommended_items": list(served.items[:items]),
    }
