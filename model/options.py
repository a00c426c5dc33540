"""Options of the model and its training; no TensorFlow, so that a command line reads them at once."""

import dataclasses
import math
from typing import Literal

from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import MAX_DIM

__all__ = ["TowerOptions", "TrainingOptions"]

_LEAST_BATCH, _LEAST_STEPS = 128, 40
_MAX_SEED = 2_000_000_000  # each layer adds its own number to it, in TensorFlow's int32


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

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise UsageError(
                f"training: dim must lie between 1 and {MAX_DIM}, the most that a release's index takes; got "
                f"{self.dim}"
            )
        if min(self.feature_dim, self.hidden) < 1:
            raise UsageError("training: feature_dim and hidden must be at least 1")
        for name in ("identity_dropout", "category_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"training: {name} must be at least 0 and below 1, got {getattr(self, name)}"
                )


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
        if self.epochs < 1 or self.batch_size < 2 or self.candidates < 1:
            raise UsageError("training: epochs and candidates must be at least 1, batch_size at least 2")
        for name in ("holdout", "validation"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"training: {name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.patience < 0 or self.evaluation_users < 1:
            raise UsageError("training: patience must not be negative, nor evaluation_users under 1")
        if not 0 <= self.seed <= _MAX_SEED:
            raise UsageError(f"training: seed must lie between 0 and {_MAX_SEED:,}, got {self.seed}")
        self._check_rates()

    def _check_rates(self) -> None:
        for name in ("temperature", "learning_rate", "embedding_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"training: {name} must be finite and above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "rating_weight", "softmax_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(
                    f"training: {name} must be finite and not negative, got {getattr(self, name)}"
                )
        if not self.rating_weight and not self.softmax_weight:
            raise UsageError("training: rating_weight and softmax_weight must not both be 0")

    @property
    def validation_share(self) -> float:
        """Share of the training ratings that is kept for early stopping: none without it."""
        return self.validation if self.patience else 0.0

    def steps(self, rows: int) -> tuple[int, int]:
        """Batch size, and steps of an epoch, for so many training ratings (at least 2)."""
        size = min(self.batch_size, rows, max(_LEAST_BATCH, rows // _LEAST_STEPS))
        return size, rows // size
