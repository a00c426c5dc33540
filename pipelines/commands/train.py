"""`beamrec train`: training files to a new release."""

import argparse
from collections.abc import Sequence
from typing import Any

from beamrec.pipelines.arguments import VerbParser
from beamrec.pipelines.console import Console
from beamrec.pipelines.environment import default

__all__ = ["HELP", "parser", "run"]

HELP = "trains the two-tower model and writes a release"


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
    add("--epochs", type=int, default=training.epochs, help="passes over the ratings")
    add("--batch-size", type=int, default=training.batch_size, help="ratings a step")
    add("--learning-rate", type=float, default=training.learning_rate, help="of AdamW")
    add("--rating-weight", type=float, default=training.rating_weight, help="of the rating regression loss")
    add("--softmax-weight", type=float, default=training.softmax_weight, help="of the in-batch softmax loss")
    add("--holdout", type=float, default=training.holdout, help="share of the ratings kept for the metrics")
    return verb


def run(argv: Sequence[str], console: Console) -> dict[str, Any]:
    """Trains, and returns the release with its metrics."""
    from beamrec.io.store import with_beam_options
    from beamrec.model.options import TowerOptions, TrainingOptions
    from beamrec.pipelines.train_release import TrainConfig, train_release
    from beamrec.schemas.shop import load_shop

    values = parser().parse_args(list(argv))
    options = TrainingOptions(
        tower=TowerOptions(dim=values.dim, normalize=values.normalize),
        epochs=values.epochs,
        batch_size=values.batch_size,
        learning_rate=values.learning_rate,
        rating_weight=values.rating_weight,
        softmax_weight=values.softmax_weight,
        holdout=values.holdout,
        seed=values.seed,
    )
    releases = values.releases or str(console.home / "releases")
    data = with_beam_options(values.data, [], "--data") if values.data else values.data
    config = TrainConfig(data, releases, load_shop(values.shop), options)
    trained = train_release(config, console.progress)
    metrics = trained.manifest.metrics
    console.print(
        f"release {trained.manifest.id} from {trained.ratings:,} ratings: RMSE {metrics['rmse']:.3f} "
        f"(mean rating: {metrics['rmse_of_the_mean']:.3f}), recall@10 {metrics['recall_at_10']:.3f} "
        f"(popularity: {metrics['recall_at_10_popularity']:.3f}): {trained.folder}"
    )
    return {
        "release": trained.manifest.id,
        "metrics": dict(metrics),
        "in": trained.ratings,
        "out": trained.manifest.items + trained.manifest.users,
        "paths": {"release": str(trained.folder)},
    }
