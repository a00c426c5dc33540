"""The examples of docs/, run as a reader of them would."""

import runpy
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from beamrec.io.events import SourceOptions
from beamrec.io.ledger import account, drain_requested, request_drain
from beamrec.io.store import open_store

DOCS = Path(__file__).resolve().parents[2] / "docs"
ARCHIVE = DOCS / "examples" / "archive_stream.py"


def archive(uri: str, output: Path) -> None:
    """Runs the example to the end that the URI names."""
    command = [sys.executable, str(ARCHIVE), uri, str(output), "--runner=FnApiRunner"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def check(output: Path, sent: list[bytes]) -> None:
    """Each record is a line of one file."""
    lines = [line for path in (output / "clicks").rglob("*.jsonl") for line in path.open("rb")]
    assert sorted(lines) == sorted(line + b"\n" for line in sent)
    assert account(open_store(str(output))).reconciled


def clicks(first: int, last: int) -> list[bytes]:
    return [b'{"click": %d}' % number for number in range(first, last)]


def test_a_kinesis_stream_is_archived_and_a_second_run_adds_what_is_new(kinesis: Any, tmp_path: Path) -> None:
    for first, last in ((0, 600), (600, 900)):
        kinesis.put(*clicks(first, last))
        end = datetime.now(UTC) + timedelta(seconds=1)
        archive(kinesis.uri(end=end.isoformat()), tmp_path / "out")
    check(tmp_path / "out", clicks(0, 900))


def test_a_kafka_topic_is_archived_and_a_second_run_adds_what_is_new(kafka: Any, tmp_path: Path) -> None:
    topic = kafka.create_topic(2)
    for first, last in ((0, 600), (600, 900)):
        kafka.send(topic, clicks(first, last), partition=first % 2)
        archive(kafka.uri(topic, end="latest"), tmp_path / "out")
    check(tmp_path / "out", clicks(0, 900))


def test_a_drained_archive_goes_on_at_its_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to drain is kept for ever: a run of the same name would end before it has read anything."""
    module = runpy.run_path(str(ARCHIVE))
    names: list[str] = []

    def open_sources(uri: str, options: SourceOptions) -> Any:
        names.append(options.run)
        raise EOFError

    module["main"].__globals__["open_sources"] = open_sources
    store = open_store(str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(ARCHIVE), "kafka://localhost:1/clicks", str(tmp_path)])
    for _ in range(2):
        with pytest.raises(EOFError):
            module["main"]()
        assert not drain_requested(store, names[-1])
        request_drain(store, names[-1])
    assert len(set(names)) == 2


def test_the_documents_show_the_example_that_is_run() -> None:
    code = ARCHIVE.read_text().partition('"""\n\n')[2]
    assert code.strip() in (DOCS / "streaming.md").read_text()
