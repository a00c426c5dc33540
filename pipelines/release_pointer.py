"""`beamrec release promote` and `rollback`: which release is active."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from beamrec.io.pgvector_guards import Guards
from beamrec.pipelines.console import Console

if TYPE_CHECKING:
    from beamrec.io.pgvector import Moved, ReleaseStore

__all__ = ["add_promote_arguments", "add_rollback_arguments", "run"]


def add_promote_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `release promote`."""
    add, standard = parser.add_argument, Guards()
    add("release", metavar="RELEASE", help="id of the release")
    add("--reason", default="promote", help="why; kept in the audit table")
    add(
        "--metric",
        default=standard.metric,
        help="offline metric that must not be much worse; where a release lacks it, only a note says so",
    )
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
    notes = list(_notes(store, moved, values.metric)) if values.action == "promote" else []
    for guard in moved.forced:
        console.print(f"overruled: {guard}")
    for note in notes:
        console.print(f"note: {note}")
    console.print(f"release {moved.active.id} is active")
    return {
        "release": moved.active.id,
        "from": moved.before,
        "forced": list(moved.forced),
        "notes": notes,
        "metrics": _manifest(store, moved.active.id)["metrics"],
    }


def _notes(store: "ReleaseStore", moved: "Moved", metric: str) -> Iterator[str]:
    """What a promote could not compare."""
    if moved.before is None or moved.before == moved.active.id:
        return
    for release_id in (moved.active.id, moved.before):
        manifest = _manifest(store, release_id)
        metrics = manifest["metrics"]
        if metric not in metrics:
            has = f"has the metrics {', '.join(sorted(metrics))}" if metrics else "has no metrics"
            made = " (an import)" if manifest["origin"] == "import" else ""
            yield (
                f"{metric} was not compared: release {release_id} {has}{made}; look at what it recommends, "
                "`beamrec release rollback` goes back"
            )


def _manifest(store: "ReleaseStore", release_id: str) -> dict[str, Any]:
    manifest: dict[str, Any] = store.show(release_id)["manifest"]
    return manifest


def _guards(values: argparse.Namespace) -> Guards:
    return Guards(
        metric=values.metric,
        max_drop=values.max_drop,
        min_coverage=values.min_coverage,
        allow_dimension_change=values.allow_dimension_change,
        force=values.force,
    )
