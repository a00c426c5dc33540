"""What `release report` measures: how fast, and how well, the items of a release are found by what means."""

import dataclasses
from typing import Any

from beamrec.schemas.serving import SearchSetting

__all__ = ["MeasuredSearch", "SearchReport", "recommend"]


@dataclasses.dataclass(frozen=True)
class MeasuredSearch:
    """One way of searching, measured.

    Attributes:
      setting: the way.
      recall: share of the true `k` best items that it finds, mean over the queries.
      p50_ms, p99_ms: a query asked by itself, by one client, from its vector to the ids in the worker.
      queries_per_second: of one client that asks for a batch at a time.
      queries: how many were asked for these figures.
      build_seconds, index_bytes: of the index; None where there is none.
    """

    setting: SearchSetting
    recall: float
    p50_ms: float
    p99_ms: float
    queries_per_second: float
    queries: int
    build_seconds: float | None = None
    index_bytes: int | None = None

    @property
    def name(self) -> str:
        """For people: `hnsw, ef_search 100`."""
        return self.setting.name


@dataclasses.dataclass(frozen=True)
class SearchReport:
    """Every way of searching a release, side by side.

    Attributes:
      release: its id.
      index: what the release is indexed by in the store; a setting of another index needs a new load.
      items, dim, operator: of the release.
      queried_with: whose vectors were looked for, `users` or, in a release without users, `items`.
      k, batch: items a query; queries in a statement.
      target: the recall that was asked for.
      measured: in the order of measuring.
      recommended: what should be used; the fastest that reaches the target with what the release has, else
        the most accurate.
    """

    release: str
    index: str
    items: int
    dim: int
    operator: str
    queried_with: str
    k: int
    batch: int
    target: float
    measured: tuple[MeasuredSearch, ...]
    recommended: MeasuredSearch

    @property
    def reached(self) -> bool:
        """Whether the recommended setting has the recall that was asked for."""
        return self.recommended.recall >= self.target

    @property
    def note(self) -> str:
        """What the figures cannot say; empty where they can."""
        if any(search.recall < 1 for search in self.measured):
            return ""
        return "every search finds everything here: the catalogue is too small to choose by"

    @property
    def fastest(self) -> MeasuredSearch:
        """What would be recommended whatever index the release had."""
        return recommend(self.measured, self.target)

    def to_dict(self) -> dict[str, Any]:
        """The content of the `--json` object."""
        return dataclasses.asdict(self) | {"reached": self.reached}


def recommend(measured: tuple[MeasuredSearch, ...], target: float) -> MeasuredSearch:
    """The fastest search that reaches the target, else the most accurate.

    Raises:
      ValueError: nothing was measured.
    """
    if not measured:
        raise ValueError("recommend: nothing was measured")
    reaching = [search for search in measured if search.recall >= target]
    if reaching:
        return max(reaching, key=lambda search: search.queries_per_second)
    return max(measured, key=lambda search: (search.recall, search.queries_per_second))
