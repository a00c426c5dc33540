"""Guards of a promote: what a release must not be, compared with the one that it replaces."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import psycopg2
from psycopg2 import sql

from beamrec.io.pgvector_schema import partition_name
from beamrec.schemas.errors import UsageError

__all__ = ["Guards", "Violation", "violations"]

_LESS_IS_BETTER = ("rmse",)


@dataclasses.dataclass(frozen=True)
class Guards:
    """Bounds of a promote.

    Attributes:
      metric: offline metric that must not be much worse; a release without it is not held to it, but where
        neither has it, it is a mistake (the default is none: imported releases have no metrics).
      max_drop: how much worse it may be, as a fraction of the active release's.
      min_coverage: least share of the active release's items that the new one must have.
      allow_dimension_change: let vectors of another length become active.
      force: promote whatever the guards say; the audit table keeps what they said.
    """

    metric: str = "recall_at_10"
    max_drop: float = 0.1
    min_coverage: float = 0.9
    allow_dimension_change: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("max_drop", "min_coverage"):
            if not 0 <= getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag}: expected a fraction from 0 to 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Violation:
    """A guard that says no: its name, and a sentence with what was expected and what came."""

    guard: str
    says: str


def violations(
    cursor: psycopg2.extensions.cursor, active: str, candidate: str, guards: Guards
) -> list[Violation]:
    """What speaks against replacing one loaded release by another; empty if nothing does.

    Args:
      active, candidate: ids of loaded releases.
    """
    cursor.execute("SELECT id, manifest FROM beamrec.releases WHERE id = ANY(%s)", [[active, candidate]])
    manifests = dict(cursor.fetchall())
    old, new = manifests[active], manifests[candidate]
    found = [
        *_same_shop(old, new),
        *_same_dimension(old, new, guards),
        *_metric(old["metrics"], new["metrics"], guards),
    ]
    coverage = _coverage(cursor, active, candidate)
    if coverage < guards.min_coverage:
        found.append(
            Violation(
                "coverage",
                f"it has {coverage:.1%} of the active release's items, expected at least "
                f"{guards.min_coverage:.1%} (--min-coverage)",
            )
        )
    return found


def _same_shop(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Violation]:
    return [
        Violation(name, f"its {name} is {new[name]!r}, that of the active release {old[name]!r}")
        for name in ("shop", "user_key_type", "item_key_type")
        if old[name] != new[name]
    ]


def _same_dimension(old: Mapping[str, Any], new: Mapping[str, Any], guards: Guards) -> list[Violation]:
    if old["dim"] == new["dim"] or guards.allow_dimension_change:
        return []
    says = f"its vectors have {new['dim']} numbers, those of the active release {old['dim']}"
    return [Violation("dimension", f"{says} (--allow-dimension-change)")]


def _metric(old: Mapping[str, float], new: Mapping[str, float], guards: Guards) -> list[Violation]:
    name = guards.metric
    if name not in old and name not in new and name != Guards.metric:
        known = ", ".join(sorted(old.keys() | new.keys())) or "no metrics at all"
        return [
            Violation("metric", f"neither it nor the active release has a metric {name!r}: they have {known}")
        ]
    if name not in old or name not in new:
        return []
    sign = -1 if name.startswith(_LESS_IS_BETTER) else 1
    bound = old[name] - sign * guards.max_drop * abs(old[name])
    if sign * new[name] >= sign * bound:
        return []
    return [
        Violation(
            "metric",
            f"its {name} is {new[name]:.4g}, that of the active release {old[name]:.4g}; expected "
            f"{'at least' if sign > 0 else 'at most'} {bound:.4g} (--max-drop {guards.max_drop:g})",
        )
    ]


def _coverage(cursor: psycopg2.extensions.cursor, active: str, candidate: str) -> float:
    """Share of the active release's items that the candidate has too."""
    old, new = (sql.Identifier(partition_name("item_embeddings", i)) for i in (active, candidate))
    cursor.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM beamrec.{0} JOIN beamrec.{1} USING (id)), "
            "(SELECT count(*) FROM beamrec.{0})"
        ).format(old, new)
    )
    common, of = cursor.fetchone()
    return float(common / of) if of else 1.0
