"""`beamrec release promote` and `rollback`: which release is active."""

import argparse
from typing import Any

from beamrec.io.pgvector_guards import Guards
from beamrec.pipelines.console import Console

__all__ = ["add_promote_arguments", "add_rollback_arguments", "run"]


def add_promote_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release promote`."""
    add, standard = parser.add_argument, Guards()
    add("release", metavar="RELEASE", help="id of the release")
    add("--reason", default="promote", help="why; kept in the audit table")
    add("--metric", default=standard.metric, help="offline metric that must not be much worse")
    add(
        "--max-drop",
        type=float,
        default=standard.max_drop,
        help="how much worse it may be than the active release's [fraction of it]",
    )
    add(
        "--min-coverage",
        type=float,
        default=standard.min_coverage,
        help="least share of the active release's items that it must have [fraction]",
    )
    add("--allow-dimension-change", action="store_true", help="let vectors of another length become active")
    add("--force", action="store_true", help="promote whatever the guards say; the audit table keeps it")


def add_rollback_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release rollback`."""
    parser.add_argument("--reason", default="rollback", help="why; kept in the audit table")


def run(values: argparse.Namespace, store_uri: str, console: Console) -> dict[str, Any]:
    """Moves the pointer."""
    from beamrec.io.pgvector import ReleaseStore

    store = ReleaseStore(store_uri)
    if values.action == "promote":
        moved = store.promote(values.release, values.reason, _guards(values))
    else:
        moved = store.rollback(values.reason)
    for guard in moved.forced:
        console.print(f"overruled: {guard}")
    console.print(f"release {moved.active.id} is active")
    return {
        "release": moved.active.id,
        "from": moved.before,
        "forced": list(moved.forced),
        "metrics": store.show(moved.active.id)["manifest"]["metrics"],
    }


def _guards(values: argparse.Namespace) -> Guards:
    return Guards(
        metric=values.metric,
        max_drop=values.max_drop,
        min_coverage=values.min_coverage,
        allow_dimension_change=values.allow_dimension_change,
        force=values.force,
    )
