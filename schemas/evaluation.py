"""Offline evaluation: what was measured, on what split, how surely, and what may be said of it."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from beamrec.schemas.errors import UsageError

__all__ = [
    "MODEL",
    "ORACLE",
    "SYSTEM_NAMES",
    "Counts",
    "Estimate",
    "Evaluation",
    "EvaluationOptions",
    "SplitOptions",
]

MODEL, ORACLE = "model", "oracle"
SYSTEM_NAMES = {
    MODEL: "the model",
    "popularity": "popularity",
    "item_knn": "item-kNN",
    "als": "ALS",
    "random": "random",
    "mean": "the mean rating",
    ORACLE: "the oracle",
}
"""Systems by name, in the order in which they are shown, and how each reads."""

_FORMAT_VERSION = 1
_METRIC = re.compile(r"rmse|(recall|ndcg|map|coverage)@[1-9][0-9]{0,5}")


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Which ratings only the metrics see.

    Attributes:
      holdout: share of the ratings held out, between 0 and 1.
      by: `interactions` (each rating by a hash of seed, customer and product) or `time` (the latest).
      seed: of the hash.
    """

    holdout: float = 0.1
    by: Literal["interactions", "time"] = "interactions"
    seed: int = 42

    def __post_init__(self) -> None:
        if not _is_number(self.holdout) or not 0 < self.holdout < 1:
            raise UsageError(f"evaluation: holdout must lie between 0 and 1, got {self.holdout!r}")
        if self.by not in ("interactions", "time"):
            raise UsageError(f"evaluation: expected a split by interactions or by time, got {self.by!r}")
        _check_integer(self.seed, "seed", 0)


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How much is measured.

    Attributes:
      ks: lengths of the recommendation lists, ascending.
      customers: at most so many are evaluated, a seeded sample: memory and time are bounded by it.
      resamples: bootstrap samples behind every 95 % interval.
      rating_span: width of the shop's rating scale; errors are given in its units.
      seed: of the sample, of the bootstrap, of ALS and of the random recommendations.
    """

    ks: tuple[int, ...] = (5, 10, 20)
    customers: int = 5_000
    resamples: int = 1_000
    rating_span: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        if not isinstance(self.ks, tuple) or not self.ks or list(self.ks) != sorted(set(self.ks)):
            raise UsageError(f"evaluation: expected ascending lengths of lists, got {self.ks!r}")
        for k in self.ks:
            _check_integer(k, "ks", 1)
        _check_integer(self.customers, "customers", 1)
        _check_integer(self.resamples, "resamples", 20)
        _check_integer(self.seed, "seed", 0)
        if not _is_number(self.rating_span) or self.rating_span <= 0:
            raise UsageError(f"evaluation: rating_span must be above 0, got {self.rating_span!r}")

    @property
    def headline_k(self) -> int:
        """The length that is spoken of: 10 if it was measured, else the one in the middle."""
        return 10 if 10 in self.ks else self.ks[len(self.ks) // 2]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _is_number(value):
                raise ValueError(f"evaluation: {field.name}: expected a finite number, got {value!r}")
        if self.low > self.high:
            raise ValueError(f"evaluation: the interval [{self.low}, {self.high}] is upside down")

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was there to measure on.

    Attributes:
      customers, items: of the ratings given.
      training, held_out: ratings on either side of the split.
      evaluated: customers of the sample, each with a held-out rating.
      with_likes: those of them with a held-out rating above the middle of the scale, which is what a
        recommendation should find.
      sampled_from: customers of the data, if those of the ratings given are a sample of them.
    """

    customers: int
    items: int
    training: int
    held_out: int
    evaluated: int
    with_likes: int
    sampled_from: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None or field.default is dataclasses.MISSING:
                _check_integer(getattr(self, field.name), field.name, 0)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Systems side by side on one split.

    Attributes:
      systems: system → metric → estimate; metrics are `recall@k`, `ndcg@k`, `map@k`, `coverage@k` and
        `rmse`, each where the system has it; `oracle` knows how the data was made, and is no rival.
      differences: system → metric → the model's figure less the system's, over the same customers.
    """

    systems: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    counts: Counts
    options: EvaluationOptions
    split: SplitOptions

    def __post_init__(self) -> None:
        for name in ("systems", "differences"):
            unknown = sorted(set(getattr(self, name)) - set(SYSTEM_NAMES))
            if unknown:
                raise ValueError(f"evaluation: {name}: unknown system {unknown[0]!r}")
            for metric in (m for metrics in getattr(self, name).values() for m in metrics):
                if not _METRIC.fullmatch(metric):
                    raise ValueError(f"evaluation: {name}: unknown metric {metric!r}")
        if MODEL not in self.systems:
            raise ValueError("evaluation: systems: the model is missing")

    def headline(self) -> dict[str, float]:
        """The figures of a release's manifest, by flat names such as `recall_at_10_popularity`."""
        flat: dict[str, float] = {}
        for system, metrics in self.systems.items():
            for metric, estimate in metrics.items():
                name, _, k = metric.partition("@")
                if not k or int(k) == self.options.headline_k:
                    flat[_flat_name(name, k, system)] = estimate.value
        return flat | {
            "held_out": float(self.counts.held_out),
            "evaluated_customers": float(self.counts.with_likes),
        }

    def verdict(self) -> str:
        """One honest sentence: whom the model beats, by intervals of the paired differences."""
        if not self.counts.with_likes:
            return "nothing can be said of the model: no rating above the middle of the scale was held out"
        metric = f"recall@{self.options.headline_k}"
        compared = [s for s in SYSTEM_NAMES if s != ORACLE and metric in self.differences.get(s, {})]
        beaten = [s for s in compared if self.differences[s][metric].low > 0]
        others = [s for s in compared if s not in beaten]
        figure = f"{metric} {self.systems[MODEL][metric]}"
        against = ", ".join(f"{SYSTEM_NAMES[s]} {self.systems[s][metric]}" for s in others or beaten)
        return f"{_claim(beaten, others)}: {figure} against {against}{self._on_ratings()}"

    def _on_ratings(self) -> str:
        difference = self.differences.get("mean", {}).get("rmse")
        if difference is None:
            return ""
        mine, mean = self.systems[MODEL]["rmse"], self.systems["mean"]["rmse"]
        how = (
            "better than" if difference.high < 0 else "worse than" if difference.low > 0 else "no better than"
        )
        return f"; as predictions of ratings it is {how} the mean rating (RMSE {mine} against {mean})"

    def to_json(self) -> bytes:
        """The bytes of `evaluation.json`: sorted keys, so that equal evaluations have equal checksums."""
        values = {"format_version": _FORMAT_VERSION} | dataclasses.asdict(self)
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"

    @classmethod
    def from_json(cls, data: bytes | str) -> "Evaluation":
        """Reads what `to_json` wrote.

        Raises:
          ValueError: it is not JSON, or does not describe an evaluation.
        """
        try:
            values = json.loads(data)
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"evaluation: not valid JSON: {error}") from None
        if not isinstance(values, dict) or values.pop("format_version", None) != _FORMAT_VERSION:
            raise ValueError(f"evaluation: expected an object of format_version {_FORMAT_VERSION}")
        try:
            return cls(
                systems=_estimates(values.pop("systems")),
                differences=_estimates(values.pop("differences")),
                counts=Counts(**values.pop("counts")),
                options=_options(values.pop("options")),
                split=SplitOptions(**values.pop("split")),
                **values,
            )
        except KeyError as error:
            raise ValueError(f"evaluation: the key {error} is missing") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"evaluation: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_integer(value: Any, where: str, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise UsageError(f"evaluation: {where}: expected an integer of at least {minimum}, got {value!r}")


def _flat_name(metric: str, k: str, system: str) -> str:
    if system == "mean":
        return f"{metric}_of_the_mean"
    return metric + (f"_at_{k}" if k else "") + ("" if system == MODEL else f"_{system}")


def _claim(beaten: list[str], others: list[str]) -> str:
    if not beaten:
        return "the model beats nobody"
    claim = f"the model beats {_listed(beaten, 'and')}"
    return f"{claim}, but not {_listed(others, 'or')}" if others else claim


def _listed(systems: list[str], word: str) -> str:
    names = [SYSTEM_NAMES[s] for s in systems]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _estimates(values: Any) -> dict[str, dict[str, Estimate]]:
    return {
        system: {metric: Estimate(**estimate) for metric, estimate in metrics.items()}
        for system, metrics in values.items()
    }


def _options(values: Any) -> EvaluationOptions:
    return EvaluationOptions(**{**values, "ks": tuple(values["ks"])})
