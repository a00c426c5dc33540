"""The record of an evaluation: strict both ways, and a verdict that is true in every direction."""

import json
from typing import Any

import pytest

from beamrec.schemas.errors import UsageError
from beamrec.schemas.evaluation import Counts, Estimate, Evaluation, EvaluationOptions, SplitOptions


def _evaluation(differences: dict[str, tuple[float, float]], **changes: Any) -> Evaluation:
    """Model and baselines at 0.3, with intervals of the model's lead over each; `mean` is of the RMSE."""
    systems = {"model": {"recall@10": Estimate(0.31, 0.28, 0.34), "rmse": Estimate(1.2, 1.1, 1.3)}}
    leads: dict[str, dict[str, Estimate]] = {}
    for system, (low, high) in differences.items():
        metric = "rmse" if system == "mean" else "recall@10"
        systems[system] = {metric: Estimate(0.33, 0.30, 0.36)}
        leads[system] = {metric: Estimate((low + high) / 2, low, high)}
    values = {
        "systems": systems,
        "differences": leads,
        "counts": Counts(100, 50, 900, 100, 80, 70, sampled_from=1_000),
        "options": EvaluationOptions(ks=(10,)),
        "split": SplitOptions(),
    }
    return Evaluation(**(values | changes))


BEATS, TIES, LOSES = (0.01, 0.05), (-0.02, 0.03), (-0.06, -0.01)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        (
            {"popularity": LOSES, "random": TIES},
            "the model beats nobody: recall@10 {mine} against popularity {its}, random {its}",
        ),
        (
            {"popularity": TIES, "item_knn": LOSES, "als": BEATS, "random": BEATS},
            (
                "the model beats ALS and random, but not popularity or item-kNN: "
                "recall@10 {mine} against popularity {its}, item-kNN {its}"
            ),
        ),
        (
            {"popularity": BEATS, "item_knn": BEATS, "random": BEATS},
            (
                "the model beats popularity, item-kNN and random: "
                "recall@10 {mine} against popularity {its}, item-kNN {its}, random {its}"
            ),
        ),
    ],
)
def test_the_verdict_follows_the_paired_differences(
    differences: dict[str, tuple[float, float]], verdict: str
) -> None:
    figures = {"mine": "0.310 [0.280, 0.340]", "its": "0.330 [0.300, 0.360]"}
    assert _evaluation(differences).verdict() == verdict.format(**figures)


@pytest.mark.parametrize(("lead", "word"), [(BEATS, "worse"), (TIES, "no better"), (LOSES, "better")])
def test_a_lower_error_is_better(lead: tuple[float, float], word: str) -> None:
    verdict = _evaluation({"popularity": BEATS, "mean": lead}).verdict()
    assert verdict.endswith(
        f"; as predictions of ratings it is {word} than the mean rating "
        "(RMSE 1.200 [1.100, 1.300] against 0.330 [0.300, 0.360])"
    )


def test_the_oracle_is_no_rival() -> None:
    assert (
        _evaluation({"popularity": BEATS, "oracle": LOSES})
        .verdict()
        .startswith("the model beats popularity:")
    )


def test_the_headline_has_the_names_of_a_manifest() -> None:
    found = _evaluation({"popularity": BEATS, "mean": LOSES, "item_knn": BEATS, "random": BEATS}).headline()
    assert found == {
        "recall_at_10": 0.31,
        "rmse": 1.2,
        "recall_at_10_popularity": 0.33,
        "recall_at_10_item_knn": 0.33,
        "recall_at_10_random": 0.33,
        "rmse_of_the_mean": 0.33,
        "held_out": 100.0,
        "evaluated_customers": 70.0,
    }


def test_json_is_read_as_it_was_written() -> None:
    evaluation = _evaluation({"popularity": BEATS, "mean": LOSES})
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert Evaluation.from_json(evaluation.to_json()).to_json() == evaluation.to_json()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format_version",), 2, "format_version 1"),
        (("surprise",), 1, "unexpected keyword argument 'surprise'"),
        (("counts", "more"), 1, "unexpected keyword argument 'more'"),
        (("counts", "items"), -1, "items: expected an integer of at least 0"),
        (("counts", "items"), 1.5, "items: expected an integer"),
        (("systems", "model", "recall@10", "low"), 0.9, "upside down"),
        (("systems", "model", "recall@10", "low"), "0", "expected a finite number"),
        (("systems", "svd"), {}, "unknown system 'svd'"),
        (("systems",), {}, "the model is missing"),
        (
            ("systems", "model", "accuracy@10"),
            {"value": 1, "low": 1, "high": 1},
            "unknown metric 'accuracy@10'",
        ),
        (("systems",), [], "has no attribute"),
        (("options", "ks"), [10, 5], "ascending"),
        (("options", "ks"), [], "ascending"),
        (("options", "resamples"), 1, "resamples: expected"),
        (("split", "by"), "user", "by interactions or by time"),
    ],
)
def test_anything_else_is_refused(path: tuple[str, ...], value: Any, message: str) -> None:
    values = json.loads(_evaluation({"popularity": BEATS}).to_json())
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        Evaluation.from_json(json.dumps(values))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format_version": 1}', b"\xff", b"NaN"])
def test_what_is_no_evaluation_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^evaluation: "):
        Evaluation.from_json(data)


@pytest.mark.parametrize(
    "wrong",
    [{"ks": (10, 5)}, {"ks": (0,)}, {"customers": 0}, {"rating_span": 0}, {"resamples": 5}, {"seed": -1}],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EvaluationOptions(**wrong)
