"""Which system runs on which shop, and the goals that the figures are held against."""

import dataclasses

from shops import BIG, LONG, SMALL, WIDE, ShopSpec
from systems import OURS

__all__ = ["CONTESTS", "GOALS", "SMALL_CONTESTS", "Contest", "Entry", "Goal"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One system on one shop.

    Attributes:
      system, shop: who reads what.
      timed: False for a system that only vouches for the content.
    """

    system: str
    shop: ShopSpec
    timed: bool = True


@dataclasses.dataclass(frozen=True)
class Contest:
    """Entries that run in turns, so that what disturbs the machine disturbs all of them.

    Attributes:
      name: as in the results.
      title: as in the report.
      entries: in the order of a round.
    """

    name: str
    title: str
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Goal:
    """One figure that was asked for.

    Attributes:
      title: what is compared.
      contest: where its figures come from.
      kind: `speed` (seconds of `other` by seconds of `entry`), `rate` (rows a second of `entry` by those of
        `other`), `memory` (peak of `entry` by that of `other`) or `peak` (of `entry`, in GiB).
      entry, other: whose medians are divided; `peak` has no other.
      limit: the least value that reaches the goal; for memory and peak the most.
    """

    title: str
    contest: str
    kind: str
    limit: float
    entry: Entry
    other: Entry | None = None

    @property
    def at_most(self) -> bool:
        """Whether less is better."""
        return self.kind in ("memory", "peak")


def _entries(shop: ShopSpec, *systems: str) -> tuple[Entry, ...]:
    return tuple(Entry(system, shop) for system in systems)


def _speed(title: str, contest: str, shop: ShopSpec, peer: str, limit: float) -> Goal:
    return Goal(title, contest, "speed", limit, Entry(OURS, shop), Entry(peer, shop))


def _growth(shop: ShopSpec, title: str) -> tuple[Goal, ...]:
    large, small = Entry(OURS, shop), Entry(OURS, BIG)
    return (
        Goal(f"rows a second, {title}, by those at 5 M", "growth", "rate", 0.9, large, small),
        Goal(f"peak memory, {title}, by that at 5 M", "growth", "memory", 1.3, large, small),
        Goal(f"peak memory, {title}, GiB", "growth", "peak", 2.0, large),
    )


CONTESTS = (
    Contest(
        "partitions10k",
        "5 M ratings, 10,000 partitions",
        _entries(BIG, OURS, "connectorx_duckdb", "pyspark", "pyspark_tuned"),
    ),
    Contest("partitions100", "50 M ratings, 100 partitions", _entries(LONG, OURS, "connectorx_duckdb")),
    Contest("dicts", "5 M ratings, 10,000 partitions, plain Beam", _entries(BIG, OURS, "beam_dicts")),
    Contest(
        "growth",
        "5 M and 50 M ratings",
        (
            Entry(OURS, BIG),
            Entry(OURS, WIDE),
            Entry(OURS, LONG),
            Entry("reference", WIDE, timed=False),
        ),
    ),
)

GOALS = (
    _speed("PySpark JDBC, join in SQL", "partitions10k", BIG, "pyspark", 12),
    _speed("connectorx and DuckDB, 10,000 partitions", "partitions10k", BIG, "connectorx_duckdb", 1.2),
    _speed("connectorx and DuckDB, 100 partitions", "partitions100", LONG, "connectorx_duckdb", 1.0),
    _speed("plain Beam of dicts", "dicts", BIG, "beam_dicts", 50),
    *_growth(WIDE, "50 M in 100,000 partitions"),
    *_growth(LONG, "50 M in 100 partitions"),
)

# A smoke run: it shows that everything runs and agrees; its figures mean nothing, so it has no goals.
SMALL_CONTESTS = (
    Contest(
        "small",
        "20,000 ratings, 200 partitions",
        _entries(SMALL, OURS, "connectorx_duckdb", "pyspark", "pyspark_tuned", "beam_dicts"),
    ),
)
