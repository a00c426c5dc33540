"""The main job end to end on the embedded default: shop, training files, model, release, stream."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from beamrec.io.pgvector import ReleaseStore
from beamrec.io.postgres import default_uri
from beamrec.pipelines.batch_options import BatchConfig
from beamrec.pipelines.batch_training import run_batch
from beamrec.pipelines.commands.release import load_release
from beamrec.pipelines.console import Console
from beamrec.pipelines.generate_events import Dirt, EventGenerator, read_catalogue, write_events
from beamrec.pipelines.generate_shop import ShopSize, generate_shop
from beamrec.pipelines.stream_options import StreamConfig
from beamrec.pipelines.streaming_recommend import run_stream
from beamrec.pipelines.train_release import TrainConfig, TrainedRelease, train_release
from beamrec.runners.prism import find_prism
from beamrec.schemas.errors import UnavailableError
from beamrec.schemas.shop import CLASSICMODELS
from beamrec.schemas.summary import StageSummary

__all__ = ["DemoConfig", "run_demo"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What the demo runs on.

    Attributes:
      folder: new folder for everything that it writes.
      size: of the generated shop.
      events: how many events are streamed.
      seed: of shop, events and model.
    """

    folder: Path
    run: str
    size: ShopSize
    events: int = 2000
    seed: int = 42


def run_demo(config: DemoConfig, console: Console) -> dict[str, Any]:
    """Runs all stages; returns the `--json` object.

    Raises:
      BeamrecError: a stage failed or an account does not add up.
    """
    folder, store = config.folder, ReleaseStore(default_uri(console.home))
    source = f"sqlite:///{folder}/shop.db"
    console.status("1/5 making a shop …")
    generate_shop(source, config.size)
    console.status("2/5 batch: ratings → training files …")
    batch = run_batch(BatchConfig(source, str(folder / "lake"), CLASSICMODELS, config.run))
    trained, train_seconds = _timed(lambda: _train(folder, console))
    console.status("4/5 release: loading and promoting …")
    _, release_seconds = _timed(lambda: _release(store, trained))
    console.status("5/5 stream: events → recommendations …")
    runner = _streaming_runner(console)
    _write_events(source, config)
    stream = run_stream(_stream_config(config, store.uri), runner, [], console)
    manifest = trained.manifest
    stages = {
        "batch": batch.counts,
        "train": StageSummary(batch.counts.out, trained.ratings, seconds=train_seconds),
        "release": StageSummary(manifest.items, _active_items(store), seconds=release_seconds),
        "stream": stream.counts,
    }
    return {
        "stages": _as_dicts(stages, manifest.id, dict(manifest.metrics), batch.manifest.partitions),
        "reconciled": all(stage.reconciled for stage in stages.values()),
        "runner": runner,
        "paths": {
            "lake": str(folder / "lake"),
            "release": str(trained.folder),
            "recommendations": f"{stream.output}/recommendations",
            "errors": f"{stream.output}/errors",
        },
        "example": _example(Path(stream.output)),
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began


def _train(folder: Path, console: Console) -> TrainedRelease:
    config = TrainConfig(str(folder / "lake"), str(folder / "releases"))
    return train_release(config, lambda text: console.progress(f"3/5 train: {text} …"))


def _release(store: ReleaseStore, trained: TrainedRelease) -> None:
    load_release(trained.folder, store)
    store.promote(trained.manifest.id, "demo")


def _active_items(store: ReleaseStore) -> int:
    """Items that a look-up in the store now finds, counted there."""
    active = store.active()
    return len(store.catalogue(active.id).ids) if active else 0


def _streaming_runner(console: Console) -> str:
    try:
        find_prism(say=console.status)
    except UnavailableError as error:
        console.status(f"{error}\n→ streaming on the direct runner instead: output comes at the end only")
        return "direct"
    return "prism"


def _write_events(source: str, config: DemoConfig) -> None:
    catalogue = read_catalogue(source, CLASSICMODELS)
    generator = EventGenerator(CLASSICMODELS, catalogue, config.seed, Dirt())
    write_events(generator, config.folder / "events", config.events)


def _stream_config(config: DemoConfig, vector_db: str) -> StreamConfig:
    return StreamConfig(
        input=str(config.folder / "events"),
        output=str(config.folder / "out"),
        vector_db=vector_db,
        shop=CLASSICMODELS,
        run=config.run,
        stop_when_idle=1.0,
    )


def _as_dicts(
    stages: dict[str, StageSummary], release: str, metrics: dict[str, float], partitions: int
) -> dict[str, Any]:
    dicts: dict[str, Any] = {name: stage.to_dict() for name, stage in stages.items()}
    dicts["batch"]["partitions"] = partitions
    for name in ("train", "release"):
        dicts[name] |= {"release": release, "metrics": metrics}
    return dicts


def _example(output: Path) -> dict[str, Any] | None:
    """One recommendation whose customer the release knows and whose cart is not empty, if there is one."""
    found = None
    for path in sorted((output / "recommendations").rglob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            record: dict[str, Any] = json.loads(line)
            found = found or record
            if record["served_by"] == "known_customer" and record["similar_items"]:
                return record
    return found
