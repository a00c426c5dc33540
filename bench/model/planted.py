"""How much of a planted structure the model finds: `.venv/bin/python bench/model/planted.py`.

Makes a shop, runs `beamrec batch` and `beamrec train` on it as a user would, each a process whose time and
peak memory are taken, and then asks the generator's oracle on the same split and the same customers.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from beamrec.io.manifest import open_training
from beamrec.model.evaluation import ModelVectors, evaluate
from beamrec.model.release import read_release
from beamrec.model.split import hash_keys, held_out
from beamrec.pipelines.evaluation_table import evaluation_table
from beamrec.pipelines.generate_shop import ShopSize, generate_shop, oracle
from beamrec.schemas.evaluation import Evaluation
from beamrec.schemas.shop import CLASSICMODELS as SHOP

_ROOT = Path(__file__).resolve().parents[2]
_GOALS = {"popularity": 2.0, "oracle": 0.7}
"""Least ratio of the model's recall@10 to another's."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one process, start-up included: wall-clock time and the most that was resident."""

    seconds: float
    peak_mib: float


def main() -> None:
    """Runs the bench; exits with 1 if a goal was missed, with 2 if something went wrong."""
    values = _arguments()
    size = ShopSize(values.customers, values.products, values.ratings, seed=values.seed)
    work = values.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = _shop(work, size)
    lake, home = work / f"lake-{size.ratings}", work / "home"
    batch, _ = _beamrec(home, "batch", "--source", source, "--output", str(lake))
    options = [*values.train, "--seed", str(values.seed)]
    train, result = _beamrec(home, "train", "--data", str(lake), *options)
    release = Path(result["paths"]["release"])
    evaluation = evaluate_with_oracle(release, lake, size)
    report = _report(size, batch, train, evaluation, options)
    print(evaluation_table(evaluation), report["verdict"], json.dumps(report, indent=1), sep="\n\n")
    if values.results:
        values.results.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(goal["reached"] for goal in report["goals"].values()) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--customers", type=int, default=20_000)
    add("--products", type=int, default=2_000)
    add("--ratings", type=int, default=1_000_000)
    add("--seed", type=int, default=42)
    add("--work", type=Path, default=_ROOT / ".beamrec" / "bench" / "planted", help="kept, and used again")
    add("--results", type=Path, help="JSON file for the figures")
    add("train", nargs="*", help="options for `beamrec train`, after --")
    return parser.parse_args()


def _shop(work: Path, size: ShopSize) -> str:
    """A shop of this size, made unless it stands there already."""
    path = work / f"shop-{size.customers}-{size.products}-{size.ratings}-{size.seed}.db"
    if not path.exists():
        partial = path.with_suffix(".partial")
        generate_shop(f"sqlite:///{partial}", size, overwrite=True)
        partial.rename(path)
    return f"sqlite:///{path}"


def _beamrec(home: Path, *arguments: str) -> tuple[Cost, dict[str, Any]]:
    command = [str(Path(sys.executable).with_name("beamrec")), *arguments, "--home", str(home), "--json"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        print(f"{' '.join(command)} ended with {process.returncode}", file=sys.stderr)
        sys.exit(2)
    return Cost(round(seconds, 1), round(usage.ru_maxrss / 1024)), json.loads(output.splitlines()[-1])


def evaluate_with_oracle(release: Path, lake: Path, size: ShopSize) -> Evaluation:
    """The release's own evaluation again, from its vectors, with the oracle beside the others.

    Raises:
      SystemExit: popularity comes out otherwise than the release says: it is not the same split.
    """
    recorded = Evaluation.from_json((release / "evaluation.json").read_bytes())
    contents = read_release(release)
    keys, ratings = _ratings(lake)
    users, items = (pc.unique(column).sort() for column in keys)
    held = held_out(hash_keys(keys[0]), hash_keys(keys[1]), recorded.split)
    rows = pc.index_in(keys[0], users).to_numpy(), pc.index_in(keys[1], items).to_numpy()
    sides = [
        sp.csr_matrix((ratings[side], (rows[0][side], rows[1][side])), shape=(len(users), len(items)))
        for side in (~held, held)
    ]
    model = ModelVectors(
        _ordered(contents.user_vectors, contents.user_ids, users),
        _ordered(contents.item_vectors, contents.item_ids, items),
    )
    truth = oracle(size)
    evaluation = evaluate(
        *sides, model, recorded.split, recorded.options, lambda block: truth.scores(users.take(block), items)
    )
    for system in ("popularity", "random"):
        mine, theirs = (e.systems[system]["recall@10"] for e in (evaluation, recorded))
        if mine != theirs:
            print(f"not the release's own split: {system} has {mine} here, {theirs} there", file=sys.stderr)
            sys.exit(2)
    return evaluation


def _ratings(lake: Path) -> tuple[tuple[pa.Array, pa.Array], np.ndarray]:
    """Keys of customers and products as text, as `train` orders them, and ratings 0…1, of every row."""
    scale = SHOP.ratings
    columns = [SHOP.partition_column, SHOP.products.key, scale.rating]
    table = open_training(str(lake)).to_table(columns=columns).combine_chunks()
    customer, product, rating = (column.combine_chunks() for column in table.columns)
    scaled = (rating.to_numpy() - scale.min_rating) / (scale.max_rating - scale.min_rating)
    return (pc.cast(customer, pa.string()), pc.cast(product, pa.string())), scaled.astype(np.float32)


def _ordered(vectors: np.ndarray, ids: tuple[str, ...], keys: pa.Array) -> np.ndarray:
    """Vectors [keys, dim] in the order of the keys."""
    return vectors[pc.index_in(keys, pa.array(ids)).to_numpy()]


def _report(
    size: ShopSize, batch: Cost, train: Cost, evaluation: Evaluation, options: list[str]
) -> dict[str, Any]:
    recall = {
        name: metrics["recall@10"].value
        for name, metrics in evaluation.systems.items()
        if "recall@10" in metrics
    }
    ratios = {other: recall["model"] / recall[other] for other in _GOALS}
    return {
        "shop": dataclasses.asdict(size),
        "cores": os.cpu_count(),
        "options": options,
        "batch": dataclasses.asdict(batch),
        "train": dataclasses.asdict(train),
        "recall_at_10": {name: round(value, 4) for name, value in recall.items()},
        "goals": {
            f"model / {other}": {
                "ratio": round(ratio, 3), "goal": _GOALS[other], "reached": ratio >= _GOALS[other],
            }
            for other, ratio in ratios.items()
        },
        "verdict": evaluation.verdict(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
