"""How fast training is streamed, and in how much memory: `.venv/bin/python bench/model/run.py`.

Makes shops, runs `beamrec batch` on them, sets streamed training beside the same model fed from an array,
and measures the peak memory of whole `beamrec train` processes on shops of growing size.
"""

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beamrec.model.handler import quiet_tensorflow
from beamrec.model.options import TrainingOptions
from beamrec.model.preprocessing import FeatureSpec
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.pipelines.training_data import TrainingFiles, analyze, prepare
from beamrec.schemas.shop import CLASSICMODELS as SHOP

_HERE = Path(__file__).resolve().parent
_BEGIN, _END = "<!-- model results: begin -->", "<!-- model results: end -->"
_GOAL = 0.8
"""Least share of the in-memory array's examples per second."""


def main() -> None:
    """Runs the bench; exits with 1 if the goal was missed."""
    values = _arguments()
    values.work.mkdir(parents=True, exist_ok=True)
    sizes = [ShopSize(values.customers, values.products, ratings, 0) for ratings in sorted(values.ratings)]
    lakes = [_lake(values.work, size) for size in sizes]
    found: dict[str, Any] = {"machine": _machine(), "speed": _speed(lakes[0], values.work, values.rounds)}
    # Where a size was made in this process its memory stays high: the trainings are processes of their own.
    found["memory"] = [
        {"ratings": size.ratings} | _train(lake, values.work) for size, lake in zip(sizes, lakes, strict=True)
    ]
    values.results.parent.mkdir(parents=True, exist_ok=True)
    values.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = _markdown(found)
    print(table)
    if values.readme:
        _write_between(values.readme, table)
    sys.exit(0 if found["speed"]["ratio"] >= _GOAL else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--customers", type=int, default=20_000)
    add("--products", type=int, default=2_000)
    add("--ratings", type=int, nargs="+", default=[1_000_000, 10_000_000], help="speed is of the first")
    add("--rounds", type=int, default=5)
    add("--work", type=Path, default=_HERE.parents[1] / ".beamrec" / "bench" / "model", help="kept")
    add("--results", type=Path, default=_HERE.parent / "results" / "model.json", help="JSON file")
    add("--readme", type=Path, help="Markdown file whose table is replaced")
    return parser.parse_args()


def _lake(work: Path, size: ShopSize) -> Path:
    """Training files of a shop of this size, made unless they stand there already."""
    lake = work / f"lake-{size.customers}-{size.products}-{size.ratings}"
    if not (lake / "_manifest.json").exists():
        shop = work / f"shop-{size.ratings}.db"
        print(f"making {size.ratings:,} ratings …", flush=True)
        generate_shop(f"sqlite:///{shop}", size, overwrite=True)
        _beamrec(work, "batch", "--source", f"sqlite:///{shop}", "--output", str(lake))
        shop.unlink()
    return lake


def _beamrec(work: Path, *arguments: str) -> dict[str, Any]:
    """Wall-clock seconds and peak resident MiB of one command, start-up included."""
    command = [str(Path(sys.executable).with_name("beamrec")), *arguments, "--home", str(work / "home")]
    began = time.perf_counter()
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE) as process:  # noqa: S603
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {output.decode()}")
    return {"seconds": round(time.perf_counter() - began, 1), "peak_mib": round(usage.ru_maxrss / 1024)}


def _train(lake: Path, work: Path) -> dict[str, Any]:
    """One epoch is enough for the peak: the others read the same."""
    print(f"training on {lake.name} …", flush=True)
    return _beamrec(work, "train", "--data", str(lake), "--epochs", "1")


def _speed(lake: Path, work: Path, rounds: int) -> dict[str, Any]:
    quiet_tensorflow()
    from feeding import compare

    options, spec, folder = TrainingOptions(), FeatureSpec.from_shop(SHOP), work / f"examples-{os.getpid()}"
    folder.mkdir()
    began = time.perf_counter()
    examples = prepare(TrainingFiles(str(lake), SHOP), SHOP, options, folder)
    prepared = time.perf_counter() - began
    analyze(examples, spec, folder / "scalers")
    found = compare(examples, spec, folder / "scalers", options, rounds)
    shutil.rmtree(folder)
    return found | {"prepare_seconds": round(prepared, 1)}


def _machine() -> dict[str, Any]:
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy", "pyarrow")},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _markdown(found: dict[str, Any]) -> str:
    speed, machine = found["speed"], found["machine"]
    rounds = speed["examples_per_second"]
    reached = "reached" if speed["ratio"] >= _GOAL else "missed"
    rows = [
        ["training", "median examples/s", "least – most"],
        ["---", "---:", "---:"],
        *(
            [name, f"{speed['medians'][name]:,}", f"{min(values):,} – {max(values):,}"]
            for name, values in rounds.items()
        ),
        [f"streamed / in memory (goal ≥ {_GOAL})", f"{speed['ratio']:.2f}", reached],
    ]
    memory = [
        ["`beamrec train --epochs 1`, start to end", "seconds", "peak MiB"],
        ["---", "---:", "---:"],
        *(
            [f"{m['ratings']:,} ratings", f"{m['seconds']:.0f}", f"{m['peak_mib']:,}"]
            for m in found["memory"]
        ),
    ]
    tables = ["".join(f"| {' | '.join(row)} |\n" for row in table) for table in (rows, memory)]
    note = (
        f"Batches of {speed['batch_size']:,}, {speed['examples']:,} training examples, "
        f"{machine['cores']} cores, TensorFlow {machine['versions']['tensorflow']}, {machine['at']}."
    )
    return "\n".join([*tables, note])


def _write_between(readme: Path, table: str) -> None:
    before, _, rest = readme.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    readme.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
