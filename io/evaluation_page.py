"""An offline evaluation as one HTML page that needs nothing beside it."""

from collections.abc import Mapping

from beamrec.io.report_charts import Range, escape, number, percent, ranges
from beamrec.io.report_columns import table
from beamrec.io.report_style import STYLE
from beamrec.schemas.evaluation import MODEL, SYSTEM_NAMES, Evaluation

__all__ = ["render_evaluation"]

_METRICS = {
    "recall": (
        "Recall",
        "share of the liked, held-out products that are in the list, of as many as it holds",
    ),
    "ndcg": ("nDCG", "the same, but a hit further down counts less"),
    "map": ("MAP", "mean average precision: hits early in the list, without misses before them"),
    "coverage": ("Coverage", "share of the catalogue that is recommended to somebody"),
}


def render_evaluation(
    evaluation: Evaluation,
    title: str = "Offline evaluation",
    training: Mapping[str, object] | None = None,
) -> str:
    """A page for whoever decides on a release: the verdict first, then every figure with its interval.

    Args:
      training: the options of the training, by name, if they are to be shown.

    Returns:
      HTML that is also well-formed XML.
    """
    parts = [
        _header(evaluation, title),
        _tiles(evaluation),
        *(_metric(evaluation, metric) for metric in _METRICS),
        _errors(evaluation),
        _differences(evaluation),
        _method(evaluation),
        _training(training or {}),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _header(evaluation: Evaluation, title: str) -> str:
    verdict = evaluation.verdict()
    rests = f"Who beats whom is said by recall@{evaluation.options.headline_k} alone; all figures are below."
    return (
        f"<header><h1>{escape(title)}</h1><p>{escape(verdict[0].upper() + verdict[1:])}.</p>"
        f'<p class="muted">{rests if evaluation.counts.with_likes else ""}</p></header>'
    )


def _tiles(evaluation: Evaluation) -> str:
    counts, split = evaluation.counts, evaluation.split
    how = "the latest by time" if split.by == "time" else f"by customer and product, seed {split.seed}"
    tiles = [
        ("Held out", number(counts.held_out), f"ratings, {how}"),
        ("Trained on", number(counts.training), "ratings"),
        (
            "Evaluated",
            number(counts.with_likes),
            f"customers of {number(counts.customers)}: those with a liked rating held out",
        ),
        ("Catalogue", number(counts.items), "products"),
    ]
    shown = "".join(
        f'<li class="tile"><span>{name}</span><strong>{value}</strong><small>{escape(note)}</small></li>'
        for name, value, note in tiles
    )
    return f'<ul class="tiles">{shown}</ul>'


def _metric(evaluation: Evaluation, metric: str) -> str:
    name, note = _METRICS[metric]
    k = evaluation.options.headline_k
    lines = _lines(evaluation, f"{metric}@{k}")
    if not lines:
        return ""
    systems = [s for s in SYSTEM_NAMES if f"{metric}@{k}" in evaluation.systems.get(s, {})]
    body = [
        [_name(system), *(str(evaluation.systems[system][f"{metric}@{k_}"]) for k_ in evaluation.options.ks)]
        for system in systems
    ]
    picture = ranges(f"{name}@{k} of each system", f"with 95 % intervals; {note}", lines)
    figures = table(["", *(f"{name}@{k_}" for k_ in evaluation.options.ks)], body)
    return _card(f"{name}@{k}", f"{note[0].upper()}{note[1:]}.", _above(picture, figures))


def _lines(evaluation: Evaluation, metric: str) -> list[Range]:
    """Of the systems that have the metric; the model stands out."""
    found = [
        (s, evaluation.systems[s][metric]) for s in SYSTEM_NAMES if metric in evaluation.systems.get(s, {})
    ]
    return [
        Range(_name(s), e.value, e.low, e.high, str(e), "one" if s == MODEL else "muted") for s, e in found
    ]


def _name(system: str) -> str:
    return SYSTEM_NAMES[system].removeprefix("the ")


def _errors(evaluation: Evaluation) -> str:
    lines = _lines(evaluation, "rmse")
    if not lines:
        return ""
    note = "root mean square error of predicted ratings, in the shop's own units; lower is better"
    picture = ranges("RMSE", note, lines)
    body = [
        [_name(system), str(evaluation.systems[system]["rmse"])]
        for system in SYSTEM_NAMES
        if "rmse" in evaluation.systems.get(system, {})
    ]
    return _card("RMSE", f"{note[0].upper()}{note[1:]}.", _above(picture, table(["", "RMSE"], body)))


def _differences(evaluation: Evaluation) -> str:
    """What the verdict rests on."""
    k = evaluation.options.headline_k
    metrics = [*(f"{m}@{k}" for m in ("recall", "ndcg", "map")), "rmse"]
    body = [
        [_name(system), *(str(found[m]) if m in found else "" for m in metrics)]
        for system in SYSTEM_NAMES
        if (found := evaluation.differences.get(system))
    ]
    note = (
        "The model's figure less the other's, over the same customers. An interval that holds 0 means that "
        "the two cannot be told apart here."
    )
    return _card("The model less the others", note, table(["", *metrics], body)) if body else ""


def _method(evaluation: Evaluation) -> str:
    options, split = evaluation.options, evaluation.split
    sampled = f"{number(options.resamples)} bootstrap samples of the customers"
    counts = evaluation.counts
    points = (
        f"{percent(split.holdout)} of the ratings were to be held out.",
        *_sample_of(counts.customers, counts.sampled_from),
        "Nobody is recommended what he rated in training.",
        "A held-out rating above the middle of the scale is one that a recommendation should find.",
        f"{number(counts.with_likes)} of {number(counts.evaluated)} customers with held-out ratings have it.",
        "Recall may come from knowing which products a customer rates at all; the RMSE tells how high.",
        f"Intervals: 95 %, of {sampled}; those of coverage by the jackknife.",
        f"At most {number(options.customers)} customers are evaluated, drawn by seed {options.seed}.",
    )
    body = "".join(f"<li>{escape(point)}</li>" for point in points)
    return _card("How it was measured", "", f"<ul>{body}</ul>")


def _training(options: Mapping[str, object]) -> str:
    rows = [[name.replace("_", " "), str(value)] for name, value in options.items()]
    return _card("How it was trained", "", table(["option", "value"], rows)) if rows else ""


def _sample_of(customers: int, everybody: int | None) -> tuple[str, ...]:
    if everybody is None:
        return ()
    said = (
        f"The model was trained on all {number(everybody)} customers. It is measured on a sample of "
        f"{number(customers)} of them, on whose ratings alone its rivals were fitted, in memory."
    )
    return (said,)


def _above(picture: str, figures: str = "") -> str:
    """A picture over its table, whose intervals need the whole width."""
    return f'<figure class="narrow">{picture}</figure>{figures}'


def _card(title: str, note: str, body: str) -> str:
    return (
        f'<section class="card"><h2>{escape(title)}</h2><p class="muted">{escape(note)}</p>{body}</section>'
    )
