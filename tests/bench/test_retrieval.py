"""The retrieval bench judges right: recall is counted, medians are divided, killed runs go on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RETRIEVAL = Path(__file__).resolve().parents[2] / "bench" / "retrieval"


def ask(code: str) -> Any:
    """What a piece of code over the bench's modules prints; a script finds its siblings by its folder."""
    script = f"import sys; sys.path.insert(0, {str(RETRIEVAL)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def record(system: str, number: int, rate: float) -> dict[str, Any]:
    figures = {"queries_per_second": rate, "p50_ms": 1.0, "p99_ms": 2.0, "recall": 0.995}
    key = {"contest": "search", "kind": "clustered", "items": 10_000, "dim": 32, "queries": 500}
    return {**key, "system": system, "round": number, **figures}


def test_goals_divide_medians_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    lines = [record("beamrec_exact_100", n, rate) for n, rate in enumerate([90.0, 100.0, 500.0])]
    lines += [record("pgvector", n, rate) for n, rate in enumerate([50.0, 40.0, 10.0])]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"contest": "sea')
    found = ask(
        "import json; from pathlib import Path; from results import Results; from report import _goals\n"
        f"print(json.dumps(_goals(Results(Path({str(path)!r})))))"
    )
    assert found[1][1:] == ["≥ 2", "2.50", "1.80 – 50.00", "reached"]
    assert path.read_text().endswith("}\n")


def test_the_report_is_written_between_the_marks_of_the_readme(tmp_path: Path) -> None:
    path, readme = tmp_path / "r.jsonl", tmp_path / "README.md"
    path.write_text("".join(json.dumps(record(s, 0, 5.0)) + "\n" for s in ("beamrec_exact_100", "pgvector")))
    readme.write_text("before\n<!-- retrieval: begin -->\nold\n<!-- retrieval: end -->\nafter\n")
    ask(
        "import json; from pathlib import Path\n"
        "from results import Results; from report import write_report\n"
        f"p = Path({str(path)!r}); write_report(Results(p), p.with_suffix('.html'), Path({str(readme)!r}))\n"
        "print(json.dumps(1))"
    )
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "missed" in text
    assert path.with_suffix(".html").read_text().count("<svg") == 1


def test_recall_counts_equal_scores_and_not_an_id_twice() -> None:
    found = ask(
        "import json, numpy as np; from run import _Judge; from vectors import Catalogue\n"
        "items = np.eye(16, dtype=np.float32); users = np.ones((201, 16), np.float32)\n"
        "judge = _Judge(Catalogue(items, users), [str(n) for n in range(16)])\n"
        "one = judge.queries\n"
        "found = [[str(n) for n in range(6, 16)]], [['1'] * 10]\n"
        "print(json.dumps([judge.recall(one, ids) for ids in found]))"
    )
    assert found == [1.0, 0.1]


def test_vectors_are_seeded_and_of_length_one_and_clustered_ones_have_clusters() -> None:
    found = ask(
        "import json, numpy as np; from vectors import make_catalogue\n"
        "a, b = (make_catalogue(2000, 50, 32, 'clustered') for _ in range(2))\n"
        "u = make_catalogue(2000, 50, 32, 'uniform')\n"
        "near = lambda c: float(np.sort(c.users @ c.items.T, axis=1)[:, -10].mean())\n"
        "error = float(np.abs(np.linalg.norm(a.items, axis=1) - 1).max())\n"
        "print(json.dumps([bool((a.items == b.items).all()), error, near(a), near(u)]))"
    )
    same, error, clustered, uniform = found
    assert same
    assert error < 1e-5
    assert clustered > uniform + 0.1
