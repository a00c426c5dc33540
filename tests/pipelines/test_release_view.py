"""What `release` tells people: of a release, of its history, and of what it could not do."""

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beamrec.io import embedded
from beamrec.io.pgvector import ReleaseStore
from beamrec.model.release import read_release
from beamrec.pipelines.commands import release
from beamrec.pipelines.console import Console
from beamrec.schemas.errors import UsageError
from beamrec.schemas.serving import SearchSetting

ITEMS = {"S10_1678": [0.5, 0.5], "S10_1949": [3.0, 4.0], "S10_2016": [-1.0, 0.25]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose embedded server is stopped at the end, and a folder to import in it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "course" / "embeddings").mkdir(parents=True)
    (folder / "course" / "notes.pkl").write_bytes(b"\x80")
    rows = "".join(f'{key},"{json.dumps(vector)}"\n' for key, vector in ITEMS.items())
    (folder / "course" / "embeddings" / "item_embeddings.csv").write_text("id,embedding\n" + rows)
    yield folder
    embedded.stop_server(folder / "pg")


def say(home: Path, *argv: str) -> tuple[dict[str, Any], str]:
    """What an action returns, and what it prints, with single blanks."""
    out = io.StringIO()
    found = release.run(list(argv), Console(home, out=out, err=io.StringIO()))
    json.dumps(found)  # what --json prints
    return found, " ".join(out.getvalue().split())


@pytest.fixture(scope="module")
def imported(home: Path) -> str:
    """A release without metrics, loaded."""
    release_id: str = say(home, "import", str(home / "course"))[0]["release"]
    say(home, "load", release_id)
    return release_id


@pytest.fixture(scope="module")
def measured(home: Path, imported: str) -> str:
    """A loaded release with metrics."""
    contents = read_release(home / "releases" / imported)
    manifest = dataclasses.replace(
        contents.manifest, id="20260101T0000-00000001", metrics={"recall_at_10": 0.4}, origin="train"
    )
    store = ReleaseStore(f"embedded:{home}/pg")
    store.load(dataclasses.replace(contents, manifest=manifest, checksum="1" * 64))
    store.close()
    return manifest.id


def test_show_tells_what_a_release_is(home: Path, imported: str) -> None:
    shown = say(home, "show", imported)[1]
    for text in (
        "origin import",
        "vectors dim 2, of any length; neighbours by <->",
        "items, customers 3, 0",
        "towers none: customers without a vector get the popular items",
        "index hnsw, m 16, ef_construction",
        "search by the size of the catalogue",
        "never opened and left out notes.pkl",
    ):
        assert text in shown


def test_a_kept_search_is_seen_in_list_and_show(home: Path, measured: str) -> None:
    store = ReleaseStore(f"embedded:{home}/pg")
    store.set_search(measured, SearchSetting("ivfflat", probes=7))
    store.close()
    assert "index hnsw search ivfflat, probes 7" in say(home, "list")[1]
    assert "search ivfflat, probes 7" in say(home, "show", measured)[1]


def test_what_a_promote_could_not_compare_is_said(home: Path, imported: str, measured: str) -> None:
    first = say(home, "promote", measured)
    assert first[0]["notes"] == []
    (note,) = say(home, "promote", imported)[0]["notes"]
    assert note.startswith(f"recall_at_10 was not compared: release {imported} has no metrics (an import)")
    (note,) = say(home, "promote", measured)[0]["notes"]
    assert f"release {imported} has no metrics" in note
    assert say(home, "promote", measured)[0]["notes"] == []
    assert "note: recall_at_10 was not compared" in say(home, "promote", imported)[1]
    assert "note:" not in say(home, "rollback")[1]


def test_the_history_of_a_dropped_release_stays(home: Path, imported: str) -> None:
    folder = home / "releases" / imported
    manifest = json.loads((folder / "manifest.json").read_text())
    gone = shutil.copytree(folder, home / "elsewhere" / "20250101T0000-00000002")
    (gone / "manifest.json").write_text(json.dumps(manifest | {"id": gone.name}))
    say(home, "load", str(gone))
    for number in range(2):  # the newest one stays
        again = shutil.copytree(gone, home / "elsewhere" / f"20250101T0000-1000000{number}")
        (again / "manifest.json").write_text(json.dumps(manifest | {"id": again.name}))
        say(home, "load", str(again))
    dropped = say(home, "gc", "--keep", "1", "--retention", "0")[0]["dropped"]
    assert gone.name in dropped
    with pytest.raises(UsageError, match=r"is not loaded.*release history"):
        say(home, "show", gone.name)
    found, shown = say(home, "history", gone.name)
    assert [entry["action"] for entry in found["history"]] == ["load", "gc"]
    assert f"load - → {gone.name}" in shown
    everything = say(home, "history")[0]["history"]
    assert {entry["to"] for entry in everything} > {gone.name, imported}
    assert say(home, "history", "--limit", "2")[0]["history"] == everything[-2:]


def test_an_unknown_history_and_a_wrong_limit_are_wrong_usage(home: Path, imported: str) -> None:
    with pytest.raises(UsageError, match="never loaded here"):
        say(home, "history", "20200101T0000-00000000")
    with pytest.raises(UsageError, match="--limit"):
        say(home, "history", "--limit", "0")


def test_a_release_loaded_from_elsewhere_says_that_its_address_is_another_now(
    home: Path, imported: str
) -> None:
    before = home / "releases" / imported
    assert "already, nothing was changed" in say(home, "load", imported)[1]
    moved = shutil.copytree(before, home / "moved" / imported)
    found, shown = say(home, "load", str(moved))
    assert f"workers fetch it from {moved} from now on, no longer from {before}" in shown
    assert found["uri"] == str(moved)
    assert f": {moved} " in say(home, "show", imported)[1]


def test_a_mistyped_id_is_told_the_ids_that_are_there(home: Path, imported: str) -> None:
    wrong = imported[:-1] + "x"
    with pytest.raises(UsageError, match=f"release {wrong}: no release of that id in .*: {imported}"):
        say(home, "load", wrong)
    with pytest.raises(UsageError, match=r"no release of that id in .*: none"):
        say(home, "load", wrong, "--releases", str(home / "nothing"))
