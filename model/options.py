"""Options of the model and its training; no TensorFlow, so that a command line reads them at once."""

import dataclasses

from beamrec.schemas.errors import UsageError

__all__ = ["TowerOptions", "TrainingOptions"]


@dataclasses.dataclass(frozen=True)
class TowerOptions:
    """Shape of a tower.

    Attributes:
      dim: length of its vectors.
      feature_dim: length of each category's and text's embedding.
      hidden: width of the hidden layer.
      identity_dropout, category_dropout: share of training rows whose value is replaced by UNSEEN.
      normalize: scale every vector to length one.
    """

    dim: int = 32
    feature_dim: int = 8
    hidden: int = 64
    identity_dropout: float = 0.5
    category_dropout: float = 0.2
    normalize: bool = True


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How the model is trained.

    Attributes:
      epochs, batch_size, learning_rate, weight_decay: of AdamW.
      rating_weight, softmax_weight: weights of the two losses; 0 leaves one out.
      temperature: scores are divided by it in the softmax (a cosine is too narrow for logits).
      holdout: share of the ratings that only the metrics see.
      seed: same data and seed, same metrics.
    """

    tower: TowerOptions = dataclasses.field(default_factory=TowerOptions)
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    rating_weight: float = 3.0
    softmax_weight: float = 1.0
    temperature: float = 0.3
    holdout: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        if self.tower.dim < 1 or self.epochs < 1 or self.batch_size < 2:
            raise UsageError("training: dim and epochs must be at least 1, batch_size at least 2")
        if not 0 < self.holdout < 1:
            raise UsageError(f"training: holdout must lie between 0 and 1, got {self.holdout}")
        if min(self.rating_weight, self.softmax_weight) < 0 or self.rating_weight + self.softmax_weight == 0:
            raise UsageError("training: loss weights must not be negative, nor both 0")
