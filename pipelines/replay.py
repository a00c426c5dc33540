"""`beamrec replay`: dead letters after a fix, or a past interval with another release."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines import replay_errors, replay_interval
from beamrec.pipelines.arguments import parse_pipeline
from beamrec.pipelines.console import Console
from beamrec.pipelines.replay_errors import ErrorsReplay, Replayed
from beamrec.pipelines.replay_interval import Rescored
from beamrec.pipelines.replay_options import ReplayOptions, which_replay
from beamrec.schemas.events import Fate

__all__ = ["main", "run"]


def run(argv: Sequence[str], console: Console | None = None) -> dict[str, Any]:
    """`beamrec replay`: parses, runs, and returns the `--json` object."""
    console = console or Console()
    values, beam_args = parse_pipeline("replay", ReplayOptions, argv)
    if which_replay(values, argv) == "interval":
        interval = replay_interval.parse(values, beam_args, console)
        done = replay_interval.replay_interval(interval, values.runner, beam_args, console)
        return _told_difference(done, interval.stream.items, console)
    replay = replay_errors.parse(values, beam_args, console)
    if values.dry_run:
        return _told_before(replay, console)
    return _told(replay_errors.replay_errors(replay, values.runner, beam_args, console), console)


def _told_before(replay: ErrorsReplay, console: Console) -> dict[str, Any]:
    would = replay_errors.dry_run(replay)
    for row in would:
        bad = ", ".join(f"{count:,} {name}" for name, count in sorted(row["bad"].items()))
        console.print(
            f"{row['letters']:,} {row['stage']}/{row['error_type']}: {row['good']:,} would be good"
            + (f", still bad: {bad}" if bad else "")
        )
    letters, good = (sum(row[name] for row in would) for name in ("letters", "good"))
    console.print(f"{letters:,} dead letters, {good:,} would be good (or duplicates); nothing was changed")
    return {"dry_run": True, "letters": letters, "good": good, "would": would}


def _told(done: Replayed, console: Console) -> dict[str, Any]:
    counts = {str(fate): done.fates.get(fate, 0) for fate in (Fate.VISIBLE, Fate.DEAD_LETTER, Fate.DUPLICATE)}
    if done.mended:
        console.print(f"the output folder takes {', '.join(done.mended)} of the shop from now on")
    console.print(
        f"{done.letters:,} dead letters replayed: {counts['visible']:,} visible, "
        f"{counts['dead_letter']:,} dead again, {counts['duplicate']:,} duplicates: {done.output}"
    )
    if done.account.waiting:
        console.print(f"{done.account.waiting:,} are left; the next replay goes on with them")
    return {
        **done.account.counts.to_dict(),
        "replayed": {
            "letters": done.letters,
            "visible": counts["visible"],
            "dead_letters": counts["dead_letter"],
            "duplicates": counts["duplicate"],
            "left": done.account.waiting,
            "ever": done.account.replayed,
        },
        "mended": list(done.mended),
        "reconciled": done.account.reconciled,
        "paths": {
            "recommendations": f"{done.output}/recommendations",
            "errors": f"{done.output}/errors",
        },
    }


def _told_difference(done: Rescored, items: int, console: Console) -> dict[str, Any]:
    counts = done.account.counts
    console.print(f"{counts.records_in:,} events read: {counts.out:,} recommended: {done.output}")
    for gap in done.gaps:
        console.print(f"records lost upstream: {gap.source} after position {gap.after}: {gap.reason}")
    found = done.difference.to_dict() if done.difference else None
    if found:
        console.print(
            f"{found['events']:,} events in both: {found['changed']:,} lists changed; overlap@{items} "
            f"{found[f'overlap@{items}']:.3f}, rank correlation {found['rank_correlation']:.3f}; "
            f"{found['only_old']:,} only before, {found['only_new']:,} only now"
        )
        for path, sums in found["by_served_by"].items():
            console.print(
                f"  {path}: {sums['changed']:,} of {sums['events']:,} changed, overlap@{items} "
                f"{sums[f'overlap@{items}']:.3f}, rank correlation {sums['rank_correlation']:.3f}"
            )
        for example in found["examples"]:
            old, new = (" ".join(example[side]["recommended_items"]) for side in ("old", "new"))
            console.print(f"  {example['event_id']}: {old or 'nothing'} -> {new or 'nothing'}")
    return {
        **counts.to_dict(),
        "reconciled": True,
        "difference": found,
        "gaps": [dataclasses.asdict(gap) for gap in done.gaps],
        "paths": {
            "recommendations": f"{done.output}/recommendations",
            "errors": f"{done.output}/errors",
        },
    }


def main() -> None:
    """`python -m beamrec.pipelines.replay`."""
    import sys

    from beamrec.pipelines.cli import entry

    entry(["replay", *sys.argv[1:]])


if __name__ == "__main__":
    # By its own path: classes of `__main__` would not be found on a worker.
    from beamrec.pipelines.replay import main as _main

    _main()
