"""A kill at any step leaves old or new data, and the next command makes it whole."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from beamrec.io import publish as module
from beamrec.io.manifest import MANIFEST, TRAINING_FOLDER, DataFile, LetterFile, Manifest, read_manifest
from beamrec.io.publish import OutputLock, publish, recover, staging_folder
from beamrec.io.store import Store
from beamrec.schemas.errors import UnavailableError, UsageError


def stage(
    output: Path, run: str, parts: dict[str, bytes], letters: bytes = b"", time: str = "t0"
) -> Manifest:
    """Stages parts by partition value, and one file of dead letters; returns the manifest to publish."""
    folder = output / staging_folder(run)
    files, dead = [], []
    for partition, data in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        path = f"{TRAINING_FOLDER}/k={partition}/part-{digest[:16]}.parquet"
        _put(folder / path, data)
        files.append(DataFile(path, f"k={partition}", 1, len(data), digest))
    if letters:
        content = hashlib.sha256(letters).hexdigest()
        path = f"errors/validate/hour={time}/part-{content[:16]}.jsonl"
        data = letters + time.encode() + b"\n"
        _put(folder / path, data)
        digest = hashlib.sha256(data).hexdigest()
        dead.append(LetterFile(path, 1, len(data), digest, content, {"null_key": 1}, "ratings"))
    total = len(files) + len(dead)
    return Manifest(
        run,
        "sqlite",
        "one",
        time,
        {"ratings": total},
        total,
        ("k",),
        {"k": "int32"},
        {},
        tuple(files),
        tuple(dead),
    )


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def visible(output: Path) -> dict[str, bytes]:
    """Every file below the output folder, by relative path."""
    return {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}


def by_plain_reader(output: Path) -> set[bytes]:
    """What a reader that knows nothing of the manifest finds."""
    return {path.read_bytes() for path in (output / TRAINING_FOLDER).glob("**/*.parquet")}


def by_manifest(output: Path) -> set[bytes]:
    """What a reader that honours the manifest finds; every listed file must be there, whole."""
    manifest = read_manifest(str(output))
    assert manifest is not None
    found = {}
    for file in manifest.files:
        found[file.path] = (output / file.path).read_bytes()
        assert hashlib.sha256(found[file.path]).hexdigest() == file.sha256
    return set(found.values())


OLD = {"1": b"one", "2": b"two", "3": b"three"}
NEW = {"1": b"one", "2": b"TWO", "4": b"four"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder with OLD published in it."""
    publish(str(tmp_path), stage(tmp_path, "old", OLD, b"bad row"))
    return tmp_path


def test_publishing_replaces_the_previous_data_and_leaves_nothing_else(output: Path) -> None:
    publish(str(output), stage(output, "new", NEW))
    recover(str(output))
    assert by_plain_reader(output) == by_manifest(output) == {b"one", b"TWO", b"four"}
    assert sorted(p.name for p in output.iterdir()) == [MANIFEST, TRAINING_FOLDER]
    assert sorted(p.name for p in (output / TRAINING_FOLDER).iterdir()) == ["k=1", "k=2", "k=4"]


def test_publishing_the_same_again_changes_nothing_not_even_the_time_letters_were_first_seen(
    output: Path,
) -> None:
    recover(str(output))
    before = visible(output)
    stands = publish(str(output), stage(output, "again", OLD, b"bad row", time="t1"))
    recover(str(output))
    assert stands.run == "old"
    assert visible(output) == before


def test_a_file_that_someone_removed_comes_back(output: Path) -> None:
    manifest = read_manifest(str(output))
    assert manifest is not None
    (output / manifest.files[0].path).unlink()
    publish(str(output), stage(output, "again", OLD, b"bad row"))
    assert by_manifest(output) == {b"one", b"two", b"three"}


def test_letters_of_mended_rows_go_and_known_ones_keep_their_file(output: Path) -> None:
    publish(str(output), stage(output, "new", NEW, b"bad row", time="t1"))
    assert [p for p in visible(output) if p.startswith("errors")] == [
        p for p in visible(output) if "hour=t0" in p
    ]
    publish(str(output), stage(output, "mended", NEW))
    assert not [p for p in visible(output) if p.startswith("errors")]


def test_staged_files_without_an_intent_are_undone(output: Path) -> None:
    before = by_manifest(output)
    stage(output, "killed", NEW)
    recover(str(output))
    assert by_plain_reader(output) == by_manifest(output) == before
    assert not (output / "_staging").exists()


def test_parts_that_no_manifest_lists_go_and_foreign_files_stay(output: Path) -> None:
    stray = output / TRAINING_FOLDER / "k=9" / "part-0000.parquet"
    foreign = output / TRAINING_FOLDER / "k=1" / "notes.txt"
    _put(stray, b"stray")
    _put(foreign, b"mine")
    publish(str(output), stage(output, "new", NEW))
    assert not stray.parent.exists()
    assert foreign.read_bytes() == b"mine"


def _publish_and_die(output: Path, after: int) -> None:
    """Publishes NEW, and kills its own process before the system call number `after` that changes a file."""
    left = [after]

    def dying(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    publish(str(output), stage(output, "new", NEW, b"other row", time="t2"))
    os._exit(0)


def test_a_kill_before_any_change_of_a_file_leaves_old_or_new_and_recovers(tmp_path: Path) -> None:
    """Every single step is tried: the process dies by SIGKILL before its n-th file operation."""
    old, new = set(OLD.values()), set(NEW.values())
    seen, step, code = set(), 0, -1
    while code != 0:
        output = tmp_path / str(step)
        publish(str(output), stage(output, "old", OLD, b"bad row"))
        child = multiprocessing.get_context("fork").Process(target=_publish_and_die, args=(output, step))
        child.start()
        child.join()
        code = child.exitcode if child.exitcode is not None else -1
        assert by_manifest(output) in (old, new), f"step {step}: half a data set"
        seen.add(by_manifest(output) == new)
        recover(str(output))
        assert by_plain_reader(output) == by_manifest(output), f"step {step}: plain readers differ"
        assert by_manifest(output) in (old, new)
        manifest = read_manifest(str(output))
        assert manifest is not None
        assert set(visible(output)) == manifest.paths | {MANIFEST}, f"step {step}: orphans"
        step += 1
    assert seen == {False, True}
    assert step > 12


def test_a_second_run_on_the_folder_is_refused_and_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    with (
        OutputLock(str(tmp_path)),
        pytest.raises(UsageError, match="another batch run"),
        OutputLock(str(tmp_path)),
    ):
        pass
    with OutputLock(str(tmp_path)):
        pass


def test_the_lock_recovers_what_a_killed_run_left_and_tidies_up(output: Path) -> None:
    stage(output, "killed", NEW)
    with OutputLock(str(output)):
        assert not (output / staging_folder("killed")).exists()
        stage(output, "failed", NEW)
    assert not (output / "_staging").exists()


def test_an_output_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UnavailableError, match="expected a writable folder"),
        OutputLock(str(tmp_path / "file")),
    ):
        pass


def test_the_intent_is_written_only_when_everything_is_staged(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = stage(output, "new", NEW)
    staged: dict[str, Any] = {}

    def look(store: Store, staging: str) -> None:
        folder = output / staging
        staged["intent"] = json.loads((folder / "intent.json").read_bytes())
        staged["files"] = {str(p.relative_to(folder)) for p in folder.rglob("*.parquet")}

    monkeypatch.setattr(module, "_roll_forward", look)
    publish(str(output), manifest)
    assert staged["files"] == {file.path for file in manifest.files}
    assert len(staged["intent"]["remove"]) == 3  # partitions 2 and 3, and the dead letters
