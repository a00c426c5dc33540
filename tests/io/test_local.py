"""The store on a file system that is full, or may not be written to."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beamrec.io.local import LocalStore
from beamrec.io.manifest import Manifest, read_manifest
from beamrec.io.publish import OutputLock, publish
from beamrec.schemas.errors import UnavailableError

BYTES = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a megabyte of its own; call it with mount options to change them."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True
        )
        if done.returncode:
            pytest.skip("a file system can be mounted by root only")
        return folder

    mount(f"size={BYTES},nr_inodes=200")
    yield mount
    subprocess.run(["umount", folder], check=True)


def fill_up(file: Path) -> None:
    """Writes until there is no more room."""
    with open(file, "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b"x" * 4096):
            pass
    assert shutil.disk_usage(file.parent).free == 0


def manifest(run: str) -> Manifest:
    """A manifest without files."""
    return Manifest(run, "sqlite", "one", run, {}, 0, (), {}, {"run": run}, (), ())


def test_a_full_disk_is_told_and_what_was_published_stays(small_disk: Callable[[str], Path]) -> None:
    output = str(small_disk(f"remount,size={BYTES}") / "lake")
    with OutputLock(output):
        publish(output, manifest("old"))
    store = LocalStore(output)
    full = (
        r"--output .*/lake: cannot be written: No space left on device; expected a writable folder with room"
    )
    objects = [("_staging/run/fits", b"x" * (BYTES // 2)), ("_staging/run/does not", b"x" * BYTES)]
    with pytest.raises(UnavailableError, match=full), OutputLock(output):
        store.put_all(objects)
    assert store.names("") == ["_manifest.json"]
    stands = read_manifest(output)
    assert stands is not None
    assert stands.run == "old"


@pytest.mark.parametrize("kind", ["put", "put_durable", "put_file", "stage", "create"])
def test_nothing_incomplete_is_left_where_readers_look(small_disk: Callable[[str], Path], kind: str) -> None:
    store, data = LocalStore(small_disk(f"remount,size={BYTES}")), b"x" * (2 * BYTES)
    source = store.root.parent / "source"
    source.write_bytes(data)
    writes = {
        "put": lambda: store.put("_staging/run/x", data),
        "put_durable": lambda: store.put("x", data, durable=True),
        "put_file": lambda: store.put_file("x", source),
        "stage": lambda: store.stage(data),
        "create": lambda: store.create("x", data),
    }
    with pytest.raises(UnavailableError, match="No space left on device"):
        writes[kind]()
    assert not store.exists("x")
    assert set(store.sizes("")) <= {"_staging/run/x"}


def test_a_disk_that_fills_up_while_publishing_is_finished_by_the_next_run(
    small_disk: Callable[[str], Path],
) -> None:
    output = small_disk(f"remount,size={BYTES}") / "lake"
    with OutputLock(str(output)):
        publish(str(output), manifest("old"))
    store = LocalStore(output)
    store.put("_staging/new/_manifest.json", manifest("new").to_json(), durable=True)
    store.put("_staging/new/intent.json", b'{"format": 2, "move": [], "remove": []}', durable=True)
    ballast = output.parent / "ballast"
    fill_up(ballast)
    with pytest.raises(UnavailableError, match="No space left on device"), OutputLock(str(output)):
        pass
    stands = read_manifest(str(output))
    assert stands is not None
    assert stands.run == "old"
    ballast.unlink()
    with OutputLock(str(output)):
        pass
    stands = read_manifest(str(output))
    assert stands is not None
    assert stands.run == "new"
    assert store.names("") == ["_manifest.json"]


def test_a_read_only_output_is_told_and_stays_readable(small_disk: Callable[[str], Path]) -> None:
    output = str(small_disk(f"remount,size={BYTES}") / "lake")
    with OutputLock(output):
        publish(output, manifest("old"))
    small_disk("remount,ro")
    with (
        pytest.raises(UnavailableError, match="Read-only file system; expected a writable folder"),
        OutputLock(output),
    ):
        pass
    assert read_manifest(output) is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda store, path: store.create(path, b""),
        lambda store, path: store.publish(store.stage(b""), path),
        lambda store, path: store.discard(path),
        lambda store, path: store.exists(path),
        lambda store, path: store.names(path),
        lambda store, path: store.age_seconds(path),
        lambda store, path: store.sizes(path),
        lambda store, path: store.sizes_of([path]),
        lambda store, path: store.discard_tree(path),
        lambda store, path: store.read(path),
        lambda store, path: store.put(path, b""),
    ],
)
def test_whatever_the_system_says_is_told_as_an_error_of_the_store(
    tmp_path: Path, call: Callable[[LocalStore, str], object]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UnavailableError, match=f"{tmp_path}: cannot be .*: Too many levels"):
        call(LocalStore(tmp_path), "loop/x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_of_somebody_else_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UnavailableError, match="Permission denied"), OutputLock(str(tmp_path / "lake")):
        pass
    tmp_path.chmod(0o700)
