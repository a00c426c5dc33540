"""Full, read-only and forbidden disks are told with the folder and what to do; an import tells them so."""

import io
import os
from pathlib import Path

import pytest

from beamrec.pipelines.commands import release
from beamrec.pipelines.console import Console
from beamrec.pipelines.disk_errors import explaining_disk
from beamrec.pipelines.release_gc import _remove
from beamrec.schemas.errors import UnavailableError


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_told_with_the_folder_that_the_error_does_not_name(tmp_path: Path) -> None:
    with (
        pytest.raises(
            UnavailableError, match=rf"{tmp_path}: cannot be written: No space left.*make room there"
        ),
        explaining_disk(tmp_path, "written"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_an_error_that_is_none_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), explaining_disk(tmp_path, "written"):
        (tmp_path / "gone").read_bytes()


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="this system has no /sys")
def test_an_import_into_a_place_that_takes_no_files_names_it(tmp_path: Path) -> None:
    source = tmp_path / "embeddings"
    source.mkdir()
    for name, key in (("item_embeddings.csv", "S10_1"), ("user_embeddings.csv", "103")):
        (source / name).write_text(f'id,embedding\n{key},"[1.0,0.0]"\n')
    console = Console(tmp_path, err=io.StringIO(), out=io.StringIO())
    argv = ["import", str(tmp_path), "--releases", "/sys/kernel/beamrec"]
    with pytest.raises(
        UnavailableError, match=r"/sys/kernel/beamrec: cannot be written: .*run the command again"
    ):
        release.run(argv, console)


def test_a_removal_that_was_killed_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    (tmp_path / ".staging-gone-x").mkdir()
    (tmp_path / ".staging-gone-x" / "left").touch()
    for _ in range(2):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "manifest.json").touch()
        _remove(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [".staging-gone-x"]
