"""`release load` refuses 65 broken releases before TensorFlow is imported or the database is asked."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _beside(name: str) -> Any:
    """A module of this folder: in importlib mode no import finds it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


changes, hostile = _beside("hostile_changes"), _beside("hostile_releases")

# Each line of standard input is a folder; each line of output is what became of it.
_LOADER = """
import json, sys
from beamrec.pipelines.cli import main
for line in sys.stdin:
    code = main(["release", "load", json.loads(line), *sys.argv[1:], "--json"])
    print(json.dumps([code, "tensorflow" in sys.modules]), flush=True)
"""


class Database:
    """A port that nobody answers on, and how often it was called."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.calls = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            client.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """(kind, name) → what `release load` said; under "untouched" that of the release as it was made."""
    root = tmp_path_factory.mktemp("hostile")
    made = changes.make_release(root / "made")
    places = {}
    for number, case in enumerate(hostile.CASES):
        places[case.kind, case.name] = root / str(number) / made.name
        shutil.copytree(made, places[case.kind, case.name])
        case.change(places[case.kind, case.name])
    database = Database()
    try:
        found = _load(list(places.values()), root / "home", database)
        calls = database.calls
        untouched = _load([made], root / "home", database)
        yield {
            **dict(zip(places, found, strict=True)),
            "calls": calls,
            "untouched": untouched[0],
            "calls of untouched": database.calls - calls,
        }
    finally:
        database.close()


def _load(places: list[Path], home: Path, database: Database) -> list[dict[str, Any]]:
    store = f"postgresql://nobody@127.0.0.1:{database.port}/none"
    done = subprocess.run(
        [sys.executable, "-c", _LOADER, f"--vector-db={store}", f"--home={home}"],
        input="".join(json.dumps(str(place)) + "\n" for place in places),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(places), done.stderr[-3000:]
    return [
        {**answer, "code": code, "tensorflow": tensorflow}
        for answer, (code, tensorflow) in zip(lines[::2], lines[1::2], strict=True)
    ]


@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_each_is_refused_with_a_message_that_says_where(case: Any, outcomes: dict[Any, Any]) -> None:
    outcome = outcomes[case.kind, case.name]
    assert outcome["code"] == 3, outcome
    assert re.search(case.message, outcome["error"]), outcome["error"]
    assert not outcome["tensorflow"]


def test_the_database_is_asked_for_none_of_them_and_for_the_untouched_one(outcomes: dict[Any, Any]) -> None:
    assert outcomes["calls"] == 0
    assert outcomes["untouched"]["code"] == 4, outcomes["untouched"]
    assert outcomes["calls of untouched"] > 0


def test_there_are_forty_and_three_of_each_class() -> None:
    kinds = Counter(case.kind for case in hostile.CASES)
    assert sum(kinds.values()) >= 40
    assert len(kinds) == 10
    assert min(kinds.values()) >= 3
    assert len({(case.kind, case.name) for case in hostile.CASES}) == len(hostile.CASES)
