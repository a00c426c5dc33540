"""The evaluation's page: well-formed, on its own, the verdict first, every figure with its interval."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest

from beamrec.io.evaluation_page import render_evaluation
from beamrec.schemas.evaluation import Counts, Estimate, Evaluation, EvaluationOptions, SplitOptions

NONE = Estimate(0.0, 0.0, 0.0)


def _metrics(value: float) -> dict[str, Estimate]:
    names = [f"{m}@{k}" for m in ("recall", "ndcg", "map", "coverage") for k in (5, 10)]
    return {
        name: Estimate(value + place / 100, value - 0.01, value + 0.2) for place, name in enumerate(names)
    }


@pytest.fixture
def evaluation() -> Evaluation:
    systems = {
        "model": _metrics(0.3) | {"rmse": Estimate(1.2, 1.1, 1.3)},
        "popularity": _metrics(0.2),
        "mean": {"rmse": Estimate(1.25, 1.2, 1.3)},
    }
    differences = {
        "popularity": {"recall@10": Estimate(0.1, 0.05, 0.15)},
        "mean": {"rmse": Estimate(-0.05, -0.1, 0.01)},
    }
    counts, options = Counts(1_000, 200, 9_000, 1_234, 700, 650), EvaluationOptions(ks=(5, 10))
    return Evaluation(systems, differences, counts, options, SplitOptions(0.12, seed=7))


def _page(evaluation: Evaluation, **options: str) -> ET.Element:
    html = render_evaluation(evaluation, **options)
    assert not re.search(r"https?://|<script|<link|<img|url\(|@import", html)
    return ET.fromstring(html.removeprefix("<!DOCTYPE html>\n"))  # noqa: S314


def _text(element: ET.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def test_the_verdict_comes_first(evaluation: Evaluation) -> None:
    header = _page(evaluation, title="Release <1>").find(".//header")
    assert header is not None
    assert _text(header).startswith("Release <1> The model beats popularity: recall@10 0.310 [0.290, 0.500]")


def test_a_sample_of_the_customers_is_said(evaluation: Evaluation) -> None:
    assert "a sample of" not in _text(_page(evaluation))
    sampled = dataclasses.replace(evaluation.counts, sampled_from=54_321)
    text = _text(_page(dataclasses.replace(evaluation, counts=sampled)))
    assert "all 54,321 customers. It is measured on a sample of 1,000 of them" in text


def test_the_page_says_what_the_verdict_rests_on_and_who_was_asked(evaluation: Evaluation) -> None:
    text = _text(_page(evaluation))
    assert "Who beats whom is said by recall@10 alone" in text
    assert "650 customers of 1,000: those with a liked rating held out" in text
    assert "650 of 700 customers with held-out ratings have it" in text


def test_errors_are_a_table_too(evaluation: Evaluation) -> None:
    tables = [_text(table) for table in _page(evaluation).findall(".//table")]
    assert "RMSE model 1.200 [1.100, 1.300] mean rating 1.250 [1.200, 1.300]" in tables


def test_options_of_the_training_are_shown(evaluation: Evaluation) -> None:
    html = render_evaluation(evaluation, training={"dim": 32, "learning_rate": 0.005, "split": "time"})
    text = _text(ET.fromstring(html.removeprefix("<!DOCTYPE html>\n")))  # noqa: S314
    assert "How it was trained option value dim 32 learning rate 0.005 split time" in text


def test_every_figure_is_there_with_its_interval(evaluation: Evaluation) -> None:
    text = _text(_page(evaluation))
    for metrics in (*evaluation.systems.values(), *evaluation.differences.values()):
        for estimate in metrics.values():
            assert str(estimate) in text
    for count in ("1,234", "9,000", "650", "12.0 %", "seed 7"):
        assert count in text


def test_bars_and_whiskers_are_to_scale(evaluation: Evaluation) -> None:
    picture = _page(evaluation).findall(".//svg")[0]
    model, popularity = (float(bar.get("width", "")) for bar in picture.findall("rect"))
    assert model / popularity == pytest.approx(0.31 / 0.21, rel=0.01)
    whisker = [float(x) for x in re.findall(r"[MH]([\d.]+)", picture.findall("path")[0].get("d", ""))[:2]]
    left = float(picture.findall("rect")[0].get("x", ""))
    assert (whisker[1] - left) / model == pytest.approx(0.5 / 0.31, rel=0.01)
    assert (whisker[0] - left) / model == pytest.approx(0.29 / 0.31, rel=0.01)
    assert whisker[1] < 640


def test_an_evaluation_of_nothing_renders(evaluation: Evaluation) -> None:
    empty = Evaluation(
        {"model": {"coverage@10": NONE}},
        {},
        Counts(2, 3, 4, 0, 0, 0),
        EvaluationOptions(ks=(10,)),
        SplitOptions(),
    )
    assert "Nothing can be said of the model" in _text(_page(empty))
