"""Options of the model and its training; no TensorFlow, so that a command line reads them at once."""

import dataclasses
from typing import Literal

from beamrec.schemas.errors import UsageError

__all__ = ["TowerOptions", "TrainingOptions"]

_LEAST_BATCH, _LEAST_STEPS = 128, 40


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
    identity_dropout: float = 0.2
    category_dropout: float = 0.2
    normalize: bool = True


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How the model is trained.

    Attributes:
      epochs: at most so many passes over the ratings.
      patience: epochs without a better loss on the validation ratings after which training stops; 0 trains
        all epochs, on the validation ratings too.
      validation: share of the training ratings, at most 200,000, that early stopping looks at.
      batch_size: ratings a step, at most: fewer where an epoch would have under 40 steps.
      candidates: rows of a batch whose products are the softmax's candidates, at most.
      learning_rate, embedding_rate: of AdamW for the layers, and of Adagrad for the embeddings; both rise
        in the first part of an epoch and then fall with a cosine.
      weight_decay: of both, decoupled from the gradient.
      rating_weight, softmax_weight: weights of the two losses; 0 leaves one out.
      temperature: scores are divided by it in the softmax (a cosine is too narrow for logits); the one to
        begin with, as it is learnt.
      holdout: share of the ratings that only the metrics see.
      split: which: `interactions` by a hash, or `time` for the latest.
      evaluation_users: at most so many are asked for recommendations in the evaluation.
      seed: same data and seed, same metrics.
    """

    tower: TowerOptions = dataclasses.field(default_factory=TowerOptions)
    epochs: int = 20
    patience: int = 3
    validation: float = 0.05
    batch_size: int = 2048
    candidates: int = 1024
    learning_rate: float = 0.005
    embedding_rate: float = 0.05
    weight_decay: float = 0.01
    rating_weight: float = 1.0
    softmax_weight: float = 1.0
    temperature: float = 0.2
    holdout: float = 0.1
    split: Literal["interactions", "time"] = "interactions"
    evaluation_users: int = 5_000
    seed: int = 42

    def __post_init__(self) -> None:
        if self.tower.dim < 1 or self.epochs < 1 or self.batch_size < 2 or self.candidates < 1:
            raise UsageError("training: dim, epochs and candidates must be at least 1, batch_size at least 2")
        if not 0 < self.holdout < 1:
            raise UsageError(f"training: holdout must lie between 0 and 1, got {self.holdout}")
        if not 0 < self.validation < 1:
            raise UsageError(f"training: validation must lie between 0 and 1, got {self.validation}")
        if self.patience < 0 or self.evaluation_users < 1:
            raise UsageError("training: patience must not be negative, nor evaluation_users under 1")
        if min(self.rating_weight, self.softmax_weight) < 0 or self.rating_weight + self.softmax_weight == 0:
            raise UsageError("training: loss weights must not be negative, nor both 0")
        if self.temperature <= 0 or self.learning_rate <= 0 or self.embedding_rate <= 0:
            raise UsageError("training: temperature and learning rates must be above 0")

    @property
    def validation_share(self) -> float:
        """Share of the training ratings that is kept for early stopping: none without it."""
        return self.validation if self.patience else 0.0

    def steps(self, rows: int) -> tuple[int, int]:
        """Batch size, and steps of an epoch, for so many training ratings (at least 2)."""
        size = min(self.batch_size, rows, max(_LEAST_BATCH, rows // _LEAST_STEPS))
        return size, rows // size
