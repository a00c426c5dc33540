"""An evaluation as a table on a terminal."""

from beamrec.schemas.evaluation import SYSTEM_NAMES, Evaluation

__all__ = ["evaluation_table"]

_METRICS = ("recall", "ndcg", "map", "coverage")


def evaluation_table(evaluation: Evaluation) -> str:
    """One line a system: its figures at the headline's k and its RMSE, with 95 % intervals."""
    k = evaluation.options.headline_k
    metrics = [*(f"{name}@{k}" for name in _METRICS), "rmse"]
    rows = [["", *metrics]]
    for system, name in SYSTEM_NAMES.items():
        if system in evaluation.systems:
            found = evaluation.systems[system]
            rows.append([name, *(str(found[metric]) if metric in found else "" for metric in metrics)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: list[str], widths: list[int]) -> str:
    first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([first, *others]).rstrip()
