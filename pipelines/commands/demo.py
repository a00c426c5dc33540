"""`beamrec demo`: the main job end to end on the embedded default."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default
from beamrec.schemas.errors import BadDataError, BeamrecError
from beamrec.schemas.events import RESERVED_FIELDS

HELP = "runs the main job end to end on a generated shop, with nothing to set up"


def parser() -> argparse.ArgumentParser:
    """The options."""
    verb = VerbParser(prog="beamrec demo", description=HELP)
    add = verb.add_argument
    add("--customers", type=int, default=120, help="rows of the table")
    add("--products", type=int, default=110, help="rows of the table")
    add("--ratings", type=int, default=2500, help="valid ratings")
    add("--bad", type=int, default=12, help="ratings beyond these that break a rule")
    add("--events", type=int, default=2000, help="events that are streamed")
    add("--seed", type=int, default=default("seed"), help="the same seed makes the same shop and events")
    return verb


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs the demo, prints its summary, and returns the `--json` object."""
    values = parser().parse_args(list(argv))
    console.status("loading Apache Beam …")
    from beamrec.pipelines.demo import DemoConfig, run_demo
    from beamrec.pipelines.shop_tables import ShopSize

    run_id = console.run_id("demo")
    size = ShopSize(values.customers, values.products, values.ratings, values.bad, values.seed)
    folder = console.home / "demo" / run_id
    folder.mkdir(parents=True)
    try:
        result = run_demo(DemoConfig(folder, run_id, size, values.events, values.seed), console)
    except BadDataError as error:
        # The demo makes its own data: an account that does not add up is a fault of ours, exit 1.
        raise BeamrecError(str(error)) from error
    _print_summary(result, console)
    return (
        result if result["reconciled"] else {**result, "exit_code": 1, "error": "an account does not add up"}
    )


def _print_summary(result: dict[str, Any], console: Console) -> None:
    columns = ("in", "out", "dead_letters", "duplicates", "expired", "seconds")
    console.print(f"\n{'stage':<9}" + "".join(f"{name.replace('_', ' '):>14}" for name in columns))
    for name, stage in result["stages"].items():
        figures = [f"{stage[c]:,.1f}" if c == "seconds" else f"{stage[c]:,}" for c in columns]
        console.print(f"{name:<9}" + "".join(f"{figure:>14}" for figure in figures))
    console.print()
    for name, path in result["paths"].items():
        console.print(f"{name:<16} {path}")
    if result["example"]:
        _print_example(result["example"], console)
    stream = result["stages"]["stream"]
    verdict = "holds" if result["reconciled"] else "DOES NOT HOLD"
    console.print(
        f"\nin = out + dead letters + duplicates + expired: {stream['in']:,} = {stream['out']:,} + "
        f"{stream['dead_letters']:,} + {stream['duplicates']:,} + {stream['expired']:,} {verdict}"
    )


def _print_example(record: dict[str, Any], console: Console) -> None:
    own = {name: value for name, value in record.items() if name not in RESERVED_FIELDS}
    console.print(f"\none event\n  {json.dumps(own, ensure_ascii=False)}")
    console.print(f"and its recommendations, by {record['release']} as {record['served_by']}")
    console.print("  " + ", ".join(f"{i['id']} {i['score']:.3f}" for i in record["recommended_items"]))
    for entry in record["similar_items"]:
        items = ", ".join(f"{i['id']} {i['distance']:.3f}" for i in entry["similar_items"])
        console.print(f"  like {entry['product_code']}: {items}")
