"""`beamrec train`: training files to a new release."""

import argparse
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default

__all__ = ["HELP", "parser", "run"]

HELP = "trains the two-tower model and writes a release; after a kill, goes on where it was"

_LIVE_SECONDS, _LOGGED_SECONDS = 0.5, 30.0


def parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    from beamrec.model.options import TowerOptions, TrainingOptions

    tower, training = TowerOptions(), TrainingOptions()
    verb = VerbParser(prog="beamrec train", description=HELP)
    add = verb.add_argument
    add("--data", default=default("data"), help="what `batch --output` was given [URI]")
    add("--releases", default=default("releases"), help="folder of releases; HOME/releases [URI]")
    add("--shop", default=default("shop"), help="shop TOML; classicmodels if not given [file]")
    add("--seed", type=int, default=default("seed"), help="same data and seed, same metrics")
    add("--dim", type=int, default=tower.dim, help="length of the vectors")
    add("--normalize", action=argparse.BooleanOptionalAction, default=tower.normalize, help="unit length")
    add("--epochs", type=int, default=training.epochs, help="passes over the ratings, at most")
    add("--patience", type=int, default=training.patience, help=_PATIENCE)
    add("--validation", type=float, default=training.validation, help="share of the ratings for --patience")
    add("--batch-size", type=int, default=training.batch_size, help="ratings a step, at most")
    add(
        "--candidates", type=int, default=training.candidates, help="rows of a batch to choose among, at most"
    )
    add("--learning-rate", type=float, default=training.learning_rate, help="of AdamW, for the layers")
    add("--embedding-rate", type=float, default=training.embedding_rate, help="of Adagrad, for embeddings")
    add("--rating-weight", type=float, default=training.rating_weight, help="of the rating regression loss")
    add("--softmax-weight", type=float, default=training.softmax_weight, help="of the in-batch softmax loss")
    add("--holdout", type=float, default=training.holdout, help="share of the ratings kept for the metrics")
    add("--split", choices=("interactions", "time"), default=training.split, help=_SPLIT)
    add("--evaluation-users", type=int, default=training.evaluation_users, help=_EVALUATION_USERS)
    return verb


_PATIENCE = "epochs without a better validation loss after which training stops; 0: train all epochs"
_SPLIT = "which ratings are held out: a share by hash, or the latest (needs ratings.time in the shop's TOML)"
_EVALUATION_USERS = "customers that the model and its rivals are compared on, at most"


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Trains, and returns the release with its metrics."""
    from beamrec.io.release_folders import check_releases, publish
    from beamrec.io.store import with_beam_options
    from beamrec.pipelines.evaluation_table import evaluation_table
    from beamrec.pipelines.train_release import TrainConfig, train_release
    from beamrec.schemas.shop import load_shop

    values = parser().parse_args(list(argv))
    releases = values.releases or str(console.home / "releases")
    data = with_beam_options(values.data, [], "--data") if values.data else values.data
    shop, work = load_shop(values.shop), str(console.home / "training")
    remote = check_releases(releases)
    made = str(console.home / "releases") if remote else releases
    config = TrainConfig(data, made, shop, _options(values), work)
    every = _LIVE_SECONDS if console.terminal.isatty() else _LOGGED_SECONDS
    trained = train_release(config, console.progress, every)
    console.print(evaluation_table(trained.evaluation))
    console.print(trained.evaluation.verdict())
    place = publish(trained.folder, releases) if remote else str(trained.folder)
    console.print(f"release {trained.manifest.id} from {trained.ratings:,} ratings: {place}")
    return {
        "release": trained.manifest.id,
        "metrics": dict(trained.manifest.metrics),
        "verdict": trained.evaluation.verdict(),
        "in": trained.ratings,
        "out": trained.manifest.items + trained.manifest.users,
        "paths": {"release": place},
    }


def _options(values: argparse.Namespace) -> Any:
    import dataclasses

    from beamrec.model.options import TowerOptions, TrainingOptions

    given = vars(values)
    tower = TowerOptions(dim=values.dim, normalize=values.normalize)
    fields = {f.name for f in dataclasses.fields(TrainingOptions)} & given.keys()
    return TrainingOptions(tower=tower, **{name: given[name] for name in fields})
