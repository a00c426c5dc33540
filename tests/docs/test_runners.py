"""docs/runners.md claims nothing that no test backs."""

import re
from pathlib import Path

from beamrec.runners.preset import PRESETS, find_preset

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "runners.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    table = TEXT.split(f"\n## {heading}\n", 1)[1]
    lines = [line for line in table.split("\n## ", 1)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_cell_of_what_holds_where_names_a_test_that_is_there() -> None:
    found = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    cells = [cell for _, *by_runner in rows("What holds where") for cell in by_runner if cell]
    assert cells
    for cell in cells:
        named = re.findall(r"`(test_\w+\.py)`", cell)
        assert named, cell
        assert set(named) <= found, cell


def test_every_preset_has_a_column_and_every_option_of_the_page_is_one_of_the_code() -> None:
    find_preset("direct")
    head = next(line for line in TEXT.splitlines() if line.startswith("| guarantee |"))
    assert {cell.strip() for cell in head.strip("|").split("|")[1:]} == set(PRESETS)
    sources = "".join((ROOT / "runners" / f"{name}.py").read_text() for name in ("dataflow", "flink"))
    tables = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `--")]
    options = [option for cell in tables for option in re.findall(r"--\w+=?[\w-]*", cell)]
    assert options
    for option in options:
        name = option.split("=", 1)[0] if option.endswith("-") or "job_name" in option else option
        assert name in sources, option
