"""`beamrec release report` on a real store: a table, JSON, a page, and a setting that the stream uses."""

import json
from pathlib import Path

import numpy as np
import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.pipelines.commands import release as verb
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ReleaseContents, ReleaseManifest


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """A store with a small release in it."""
    made = ReleaseStore(embedded.embedded_uri(tmp_path))
    vectors = np.random.default_rng(1).normal(size=(530, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    manifest = ReleaseManifest(
        id="measured", created_at="2026-11-22T12:00:00Z", code_version="0", shop="test", user_key_type="int",
        item_key_type="string", dim=8, items=500, users=30, files=(),
    )  # fmt: skip
    items, users = tuple(f"P{n}" for n in range(500)), tuple(map(str, range(30)))
    made.load(ReleaseContents(manifest, "/f", "0" * 64, items, vectors[:500], users, vectors[500:], items))
    yield made
    made.close()
    embedded.stop_server(tmp_path / "pg")


def test_a_report_is_shown_written_and_applied(
    store: ReleaseStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(home=tmp_path)
    with pytest.raises(UsageError, match="no release is active"):
        verb.run(["report"], console)
    store.promote("measured", "test")
    with pytest.raises(UsageError, match="--recall: expected a share"):
        verb.run(["report", "--recall", "2"], console)
    answer = verb.run(["report", "--apply", "--seconds", "0.1", "--queries", "20"], console)
    shown = capsys.readouterr().out
    assert "recommended: " in shown
    assert "ivfflat, probes 1 " in shown
    assert "probes 2" not in shown, "so few items are one list"
    page = Path(answer["paths"]["report"])
    assert page == tmp_path / "reports" / "search-measured.html"
    assert json.loads(page.with_suffix(".json").read_text()) == json.loads(json.dumps(answer["report"]))
    active = store.active()
    assert active is not None
    assert active.search is not None
    assert active.search.to_dict() == answer["recommended"]
    verb.run(["report", "--reset"], console)
    active = store.active()
    assert active is not None
    assert active.search is None
    assert [entry["action"] for entry in store.history(limit=2)] == ["set-search", "set-search"]
    with pytest.raises(UsageError, match="not allowed with"):
        verb.run(["report", "--apply", "--reset"], console)
