"""The work folder of a training: one process at a time, kept after a kill, cleaned away otherwise."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beamrec.pipelines.training_folder import training_folder, writing
from beamrec.schemas.errors import BadDataError, UnavailableError, UsageError


def _hold(root: Path, name: str) -> "subprocess.Popen[str]":
    """Another process at work in a folder, which has left a file there."""
    code = (
        "import sys, pathlib\n"
        "from beamrec.pipelines.training_folder import training_folder\n"
        "with training_folder(pathlib.Path(sys.argv[1]), sys.argv[2]) as folder:\n"
        "    (folder / 'left').write_text('x'); print('in', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_the_folder_is_gone_after_the_end_and_after_an_error_that_would_come_again(tmp_path: Path) -> None:
    root = tmp_path / "training"
    with training_folder(root, "a") as folder:
        (folder / "x").write_text("x")
    assert not root.exists()
    with pytest.raises(FileNotFoundError), training_folder(root, "a") as folder:
        (folder / "x").rename(folder / "y")
    for wrong in (UsageError("too few ratings"), BadDataError("they were replaced"), ValueError("NaN")):
        with pytest.raises(type(wrong)), training_folder(root, "a"):
            raise wrong
        assert not (root / "a").exists()


@pytest.mark.parametrize(
    "passing", [UnavailableError("no room"), OSError(errno.ENOSPC, "full"), MemoryError(), OSError("a store")]
)
def test_an_error_that_may_pass_keeps_the_folder(passing: Exception, tmp_path: Path) -> None:
    def fail() -> None:
        with training_folder(tmp_path, "a") as folder:
            (folder / "x").write_text("x")
            raise passing

    with pytest.raises((UnavailableError, type(passing))):
        fail()
    with training_folder(tmp_path, "a") as folder:
        assert (folder / "x").read_text() == "x"


def test_one_who_holds_the_lock_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "a.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        leaving = threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN))
        leaving.start()
        with training_folder(tmp_path, "a") as folder:
            assert folder.is_dir()
        leaving.join()


def test_two_processes_do_not_share_a_folder_and_a_killed_one_leaves_it(tmp_path: Path) -> None:
    with _hold(tmp_path, "a") as other:
        with pytest.raises(UsageError, match="another training"), training_folder(tmp_path, "a"):
            pytest.fail("both are in")
        with training_folder(tmp_path, "b") as folder:
            assert folder.is_dir()
        other.kill()
    with training_folder(tmp_path, "a") as folder:
        assert (folder / "left").read_text() == "x"


def test_an_interrupt_keeps_the_folder(tmp_path: Path) -> None:
    def interrupted() -> None:
        with training_folder(tmp_path, "a") as folder:
            (folder / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a" / "x").exists()


def test_folders_that_were_left_for_long_are_removed_but_none_that_is_at_work(tmp_path: Path) -> None:
    with _hold(tmp_path, "working") as other:
        for name in ("old", "new"):
            (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "mine.txt").write_text("not a folder")
        for name in ("old", "working"):
            for path in (*(tmp_path / name).iterdir(), tmp_path / name):
                os.utime(path, (time.time() - 90_000,) * 2)
        with training_folder(tmp_path, "a"):
            names = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
        assert names == {"a", "new", "working", "mine.txt"}
        other.kill()


def test_a_full_or_locked_disk_is_explained(disk: Callable[[str], Path]) -> None:
    folder = disk("size=64k")
    with (
        pytest.raises(UnavailableError, match="No space left on device; make room there"),
        training_folder(folder, "a") as work,
        writing(work),
    ):
        (work / "x").write_bytes(b"x" * 100_000)
    assert (folder / "a").exists()
    disk("ro")
    with pytest.raises(UnavailableError, match="Read-only file system"), training_folder(folder, "b"):
        pytest.fail("it is read-only")
