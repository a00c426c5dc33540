"""The README's example of vector search is a program that runs as it stands there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from beamrec.io import embedded

README = Path(__file__).parents[1] / "README.md"


def test_the_vector_search_example_runs_as_it_is_printed(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        embedded.stop_server(tmp_path / ".beamrec" / "pg")
    assert done.returncode == 0, done.stderr[-3000:]
    written, found = map(ast.literal_eval, done.stdout.splitlines())
    assert written == 3
    assert [[entry["title"] for entry in neighbours] for neighbours in found] == [["Airships", "Sailing"]]
