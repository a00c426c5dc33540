"""A kill at any step leaves old or new data, and the next command makes it whole: here and on S3."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.httpsession import URLLib3Session

from beamrec.io import publish as module
from beamrec.io.manifest import (
    MANIFEST,
    TRAINING_FOLDER,
    DataFile,
    ExtraFile,
    LetterFile,
    Manifest,
    read_manifest,
)
from beamrec.io.publish import OutputLock, publish, recover, resume, staging_folder
from beamrec.io.store import Store, open_store
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError

OLD = {"1": b"one", "2": b"two", "3": b"three"}
NEW = {"1": b"one", "2": b"TWO", "4": b"four"}


def stage(
    uri: str,
    run: str,
    parts: dict[str, bytes],
    letters: bytes = b"",
    time: str = "t0",
    but: frozenset[str] = frozenset(),
) -> Manifest:
    """Stages parts by partition value (`but` some), and one file of dead letters; returns the manifest."""
    store, folder = open_store(uri), staging_folder(run)
    files, dead = [], []
    for partition, data in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        path = f"{TRAINING_FOLDER}/k={partition}/part-{digest[:16]}.parquet"
        if partition not in but:
            store.put(f"{folder}/{path}", data)
        files.append(DataFile(path, f"k={partition}", 1, len(data), digest))
    if letters:
        content = hashlib.sha256(letters).hexdigest()
        path = f"errors/validate/hour={time}/part-{content[:16]}.jsonl"
        data = letters + time.encode() + b"\n"
        store.put(f"{folder}/{path}", data)
        digest = hashlib.sha256(data).hexdigest()
        dead.append(LetterFile(path, 1, len(data), digest, content, {"null_key": 1}, "ratings"))
    total = len(files) + len(dead)
    return Manifest(
        run=run,
        system="sqlite",
        snapshot="one",
        taken_at=time,
        counts={"ratings": total},
        records_in=total,
        partition_columns=("k",),
        types={"k": "int32"},
        options={},
        files=tuple(files),
        dead_letters=tuple(dead),
        mode="incremental",
    )


def visible(uri: str) -> dict[str, bytes]:
    """Every object of an output but the lease's two, by path."""
    store = open_store(uri)
    return {path: store.read(path) for path in store.sizes("") if not path.startswith("_lease/")}


def by_plain_reader(uri: str) -> set[bytes]:
    """What a reader that knows nothing of the manifest finds."""
    store = open_store(uri)
    return {store.read(path) for path in store.sizes(TRAINING_FOLDER) if path.endswith(".parquet")}


def by_manifest(uri: str) -> set[bytes]:
    """What a reader that honours the manifest finds; every listed file must be there, whole."""
    manifest, store = read_manifest(uri), open_store(uri)
    assert manifest is not None
    found = {}
    for file in manifest.files:
        found[file.path] = store.read(file.path)
        assert hashlib.sha256(found[file.path]).hexdigest() == file.sha256
    return set(found.values())


def published(uri: str) -> Manifest:
    """The manifest that stands."""
    manifest = read_manifest(uri)
    assert manifest is not None
    return manifest


@pytest.fixture(params=["local", "s3", "gcs"])
def empty(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """An output with nothing in it."""
    if request.param == "local":
        return str(tmp_path / "lake")
    found = request.getfixturevalue(request.param)
    return str(getattr(found, "uri", found))


@pytest.fixture
def output(empty: str) -> str:
    """An output with OLD published in it."""
    publish(empty, stage(empty, "old", OLD, b"bad row"))
    return empty


def test_publishing_replaces_the_previous_data_and_leaves_nothing_else(output: str) -> None:
    publish(output, stage(output, "new", NEW))
    recover(output)
    assert by_plain_reader(output) == by_manifest(output) == {b"one", b"TWO", b"four"}
    store = open_store(output)
    assert store.names("") == [MANIFEST, TRAINING_FOLDER]
    assert store.names(TRAINING_FOLDER) == ["k=1", "k=2", "k=4"]


def test_the_manifest_says_how_many_partitions_changed(output: str) -> None:
    assert published(output).changes == {"added": 3, "rewritten": 0, "unchanged": 0, "removed": 0}
    publish(output, stage(output, "new", NEW))
    assert published(output).changes == {"added": 1, "rewritten": 1, "unchanged": 1, "removed": 1}


def test_publishing_the_same_again_changes_nothing_not_even_the_time_letters_were_first_seen(
    output: str,
) -> None:
    recover(output)
    before = visible(output)
    stands = publish(output, stage(output, "again", OLD, b"bad row", time="t1"))
    recover(output)
    assert stands.run == "old"
    assert visible(output) == before


def test_what_stands_in_place_need_not_be_staged(output: str) -> None:
    before = open_store(output).age_seconds(published(output).files[0].path)
    publish(output, stage(output, "new", NEW, b"bad row", but=frozenset("1")))
    assert by_plain_reader(output) == by_manifest(output) == set(NEW.values())
    assert open_store(output).age_seconds(published(output).files[0].path) >= before
    stands = publish(output, stage(output, "again", NEW, b"bad row", but=frozenset(NEW)))
    assert stands.run == "new"


def test_a_file_that_is_neither_staged_nor_in_place_publishes_nothing(output: str) -> None:
    before = visible(output)
    with pytest.raises(
        BadDataError, match=r"k=4/part-.*: the manifest says 4 bytes, found none; .*overwrite"
    ):
        publish(output, stage(output, "new", NEW, but=frozenset("4")))
    recover(output)
    assert visible(output) == before


def test_a_staged_file_that_was_cut_publishes_nothing(output: str) -> None:
    manifest, before = stage(output, "new", NEW), visible(output)
    open_store(output).put(f"{staging_folder('new')}/{manifest.files[2].path}", b"fou")
    with pytest.raises(BadDataError, match="4 bytes were staged, found 3; nothing was published"):
        publish(output, manifest)
    recover(output)
    assert visible(output) == {path: data for path, data in before.items() if "_staging" not in path}


def test_a_file_that_someone_removed_comes_back(output: str) -> None:
    open_store(output).discard(published(output).files[0].path)
    publish(output, stage(output, "again", OLD, b"bad row"))
    assert by_manifest(output) == {b"one", b"two", b"three"}


def test_letters_that_someone_removed_come_back(output: str) -> None:
    open_store(output).discard(published(output).dead_letters[0].path)
    publish(output, stage(output, "again", OLD, b"bad row", time="t1"))
    assert [path for path in visible(output) if path.startswith("errors")] == [
        published(output).dead_letters[0].path
    ]


def test_letters_of_mended_rows_go_and_known_ones_keep_their_file(output: str) -> None:
    publish(output, stage(output, "new", NEW, b"bad row", time="t1"))
    assert ["hour=t0" in path for path in visible(output) if path.startswith("errors")] == [True]
    publish(output, stage(output, "mended", NEW))
    assert not [path for path in visible(output) if path.startswith("errors")]


def test_extra_files_come_and_go_with_the_data_and_are_no_reason_to_publish(output: str) -> None:
    def with_report(run: str, parts: dict[str, bytes], text: bytes, name: str = "_report.json") -> Manifest:
        manifest = stage(output, run, parts, b"bad row")
        open_store(output).put(f"{staging_folder(run)}/{name}", text)
        extra = ExtraFile(name, len(text), hashlib.sha256(text).hexdigest())
        return Manifest(**{**vars(manifest), "extras": (extra,)})

    def reports() -> dict[str, bytes]:
        return {path: data for path, data in visible(output).items() if "report" in path}

    publish(output, with_report("new", NEW, b"report"))
    publish(output, with_report("same", NEW, b"another"))
    assert reports() == {"_report.json": b"report"}
    publish(output, with_report("older", OLD, b"report 3"))
    assert reports() == {"_report.json": b"report 3"}
    publish(output, with_report("newer", OLD, b"page", "_report.html"))
    assert reports() == {"_report.html": b"page"}


def test_staged_files_without_an_intent_are_undone(output: str) -> None:
    before = visible(output)
    stage(output, "killed", NEW)
    recover(output)
    assert visible(output) == before


def test_a_file_that_the_manifest_does_not_list_is_not_published(output: str) -> None:
    manifest = stage(output, "new", NEW)
    for name in ("k=2/part-00000000000000ff.parquet", "k=7/part-00000000000000ff.parquet"):
        open_store(output).put(f"{staging_folder('new')}/{TRAINING_FOLDER}/{name}", b"of a slow twin")
    publish(output, manifest)
    assert by_plain_reader(output) == set(NEW.values())


def test_parts_that_no_manifest_lists_go_and_foreign_files_stay(output: str) -> None:
    store = open_store(output)
    strays = [
        "k=9/part-0000000000000000.parquet",
        "a=1/b=2/part-00000000000000ff.tfrecord.gz",
        "part-0123456789abcdef.tfrecord",
    ]
    foreign = ["k=1/notes.txt", "k=1/part-00000-1b2c-c000.snappy.parquet"]
    store.put_all((f"{TRAINING_FOLDER}/{name}", name.encode()) for name in (*strays, *foreign))
    publish(output, stage(output, "new", NEW))
    standing = set(store.sizes(TRAINING_FOLDER))
    assert standing == {f.path for f in published(output).files} | {f"{TRAINING_FOLDER}/{n}" for n in foreign}
    assert store.names(TRAINING_FOLDER) == ["k=1", "k=2", "k=4"]


@pytest.mark.parametrize("folders", ["", "country=FR/year=2003/"])
def test_any_depth_of_folders_and_any_format(empty: str, folders: str) -> None:
    def staged(run: str, data: bytes) -> Manifest:
        path = f"{TRAINING_FOLDER}/{folders}part-{hashlib.sha256(data).hexdigest()[:16]}.tfrecord.gz"
        open_store(empty).put(f"{staging_folder(run)}/{path}", data)
        file = DataFile(path, folders.rstrip("/"), 1, len(data), hashlib.sha256(data).hexdigest())
        return Manifest(**{**vars(stage(empty, run, {})), "files": (file,), "file_format": "tfrecord"})

    for number in range(2):
        publish(empty, staged(f"run{number}", b"%d" % number))
        assert set(visible(empty)) == published(empty).paths | {MANIFEST}
    assert published(empty).changes == {"added": 0, "rewritten": 1, "unchanged": 0, "removed": 0}


def test_a_busy_server_changes_nothing_of_that(s3: Any) -> None:
    many = {str(number): b"%d" % number for number in range(60)}
    with s3.faults():
        for run, parts in (("one", many), ("two", {**many, **NEW}), ("three", NEW)):
            with OutputLock(s3.uri, run):
                publish(s3.uri, stage(s3.uri, run, parts, b"bad row"))
            assert by_plain_reader(s3.uri) == by_manifest(s3.uri) == set(parts.values())
            assert set(visible(s3.uri)) == published(s3.uri).paths | {MANIFEST}


def test_readers_see_one_whole_data_set_while_runs_publish(empty: str) -> None:
    """Old files may go while a reader is at them: then there is a new manifest, and it starts over."""
    contents = [{str(n): b"%d %d" % (run, n) for n in range(12)} for run in range(6)]
    publish(empty, stage(empty, "run", contents[0]))
    done, torn, seen = threading.Event(), [], set()

    def read() -> None:
        while not done.is_set():
            before = published(empty)
            try:
                data = by_manifest(empty)
            except FileNotFoundError:
                if published(empty).run == before.run:
                    torn.append(before.run)
                continue
            seen.add(frozenset(data))

    reader = threading.Thread(target=read)
    reader.start()
    for number, parts in enumerate(contents[1:]):
        publish(empty, stage(empty, f"run{number}", parts))
    done.set()
    reader.join()
    assert not torn
    assert seen
    assert seen <= {frozenset(parts.values()) for parts in contents}


def _dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    """The function, but its process ends by SIGKILL before call number `left[0]`, counted over all such."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*args, **kwargs)

    return call


def _publish_and_die(uri: str, after: int) -> None:
    """Publishes NEW, and dies before the system call that changes a file, or the request, number `after`."""
    manifest = stage(uri, "new", NEW, b"other row", time="t2")
    left = [after]
    for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
        setattr(os, name, _dying(getattr(os, name), left))
    URLLib3Session.send = _dying(URLLib3Session.send, left)
    publish(uri, manifest)
    os._exit(0)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_kill_before_any_change_leaves_old_or_new_and_recovers(
    where: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    """The process dies by SIGKILL before its n-th file operation, for every n, or every third request."""
    s3 = request.getfixturevalue("s3") if where == "s3" else None
    old, new = set(OLD.values()), set(NEW.values())
    seen, step, code = set(), 0, -1
    while code != 0:
        uri = s3.uri_of(str(step)) if s3 else str(tmp_path / str(step))
        publish(uri, stage(uri, "old", OLD, b"bad row"))
        child = multiprocessing.get_context("fork").Process(target=_publish_and_die, args=(uri, step))
        child.start()
        child.join()
        code = child.exitcode if child.exitcode is not None else -1
        assert code in (0, -signal.SIGKILL)
        assert by_manifest(uri) in (old, new), f"step {step}: half a data set"
        seen.add(by_manifest(uri) == new)
        recover(uri)
        assert by_plain_reader(uri) == by_manifest(uri), f"step {step}: plain readers differ"
        assert by_manifest(uri) in (old, new)
        assert set(visible(uri)) == published(uri).paths | {MANIFEST}, f"step {step}: orphans"
        step += 3 if s3 else 1
    assert seen == {False, True}
    assert step > 12


def test_a_kill_of_the_recovery_is_recovered_too(output: str) -> None:
    def recover_and_die(after: int) -> None:
        left = [after]
        for name in ("replace", "rename", "unlink", "rmdir"):
            setattr(os, name, _dying(getattr(os, name), left))
        URLLib3Session.send = _dying(URLLib3Session.send, left)
        recover(output)
        os._exit(0)

    store, manifest = open_store(output), stage(output, "new", NEW)
    store.put(f"{staging_folder('new')}/{MANIFEST}", manifest.to_json())
    remove = sorted(published(output).paths - manifest.paths)
    intent = {"format": 2, "move": sorted(manifest.paths), "remove": remove}
    store.put(f"{staging_folder('new')}/intent.json", json.dumps(intent).encode())
    for step in range(4):
        child = multiprocessing.get_context("fork").Process(target=recover_and_die, args=(step,))
        child.start()
        child.join()
    recover(output)
    assert by_plain_reader(output) == by_manifest(output) == set(NEW.values())
    assert set(visible(output)) == published(output).paths | {MANIFEST}


def test_a_runner_may_call_again_what_has_succeeded_or_died_on_the_way(output: str) -> None:
    manifest = stage(output, "new", NEW)
    assert publish(output, manifest).run == publish(output, manifest).run == "new"
    assert by_plain_reader(output) == set(NEW.values())


def test_what_a_run_has_published_is_told_again_and_nothing_else(output: str) -> None:
    assert resume(output, "new") is None
    manifest = publish(output, stage(output, "new", NEW))
    assert resume(output, "new") == manifest
    assert resume(output, "old") is None


def test_a_run_that_lost_its_lock_publishes_nothing(s3: Any) -> None:
    """Another took the folder over while this one was silent, and may be at work there, or have been."""
    store, taken = (
        open_store(s3.uri),
        b'{"run": "other", "host": "elsewhere", "pid": 1, "process_start": null}',
    )
    with OutputLock(s3.uri, "mine"):
        before = visible(s3.uri)
        manifest = stage(s3.uri, "mine", NEW)
        store.put("_lease/00000007.json", taken)
        with pytest.raises(UnavailableError, match=r"run other took .*nothing was published"):
            publish(s3.uri, manifest)
        store.put("_lease/00000007.released", b"")
        with pytest.raises(UnavailableError, match="run other took"):
            publish(s3.uri, manifest)
    assert visible(s3.uri) == before


def test_pages_of_refused_runs_go_with_the_next_publication(output: str) -> None:
    store = open_store(output)
    store.put("errors/drift/refused.html", b"page")
    publish(output, stage(output, "again", OLD, b"bad row", time="t1"))
    assert store.names("errors/drift") == []
    store.put("errors/drift/refused.html", b"page")
    publish(output, stage(output, "new", NEW))
    recover(output)
    assert set(visible(output)) == published(output).paths | {MANIFEST}


def test_a_second_run_on_the_folder_is_refused_and_the_lock_ends_with_the_block(empty: str) -> None:
    with OutputLock(empty), pytest.raises(UsageError, match=r"writes there|is writing"), OutputLock(empty):
        pass
    with OutputLock(empty):
        pass
    assert not visible(empty)


def test_the_lock_recovers_what_a_killed_run_left_and_tidies_up(output: str) -> None:
    before = visible(output)
    stage(output, "killed", NEW)
    with OutputLock(output):
        assert visible(output) == before
        stage(output, "failed", NEW)
    assert visible(output) == before


def test_an_output_that_is_a_file_is_unavailable(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UnavailableError, match="expected a writable folder"),
        OutputLock(str(tmp_path / "file")),
    ):
        pass


def test_an_intent_of_another_version_is_not_touched(tmp_path: Any) -> None:
    store = open_store(str(tmp_path))
    store.put("_staging/run/intent.json", b'{"format": 9}')
    with pytest.raises(UsageError, match=r"another version of beamrec was killed"):
        recover(str(tmp_path))
    assert store.exists("_staging/run/intent.json")


def test_the_intent_is_written_only_when_everything_is_staged(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = stage(output, "new", NEW)
    staged: dict[str, Any] = {}

    def look(store: Store, staging: str, run: str) -> bytes:
        staged["intent"] = json.loads(store.read(f"{staging}/intent.json"))
        staged["files"] = {path[len(staging) + 1 :] for path in store.sizes(staging) if "parquet" in path}
        return b""

    monkeypatch.setattr(module, "_roll_forward", look)
    publish(output, manifest)
    assert staged["files"] == {file.path for file in manifest.files} == set(staged["intent"]["move"])
    assert len(staged["intent"]["remove"]) == 3  # partitions 2 and 3, and the dead letters
