"""Publishing that a kill cannot leave half done: staged files, one intent, then idempotent moves.

A run stages everything below `OUTPUT/_staging/RUN/`, under the paths that it will have below OUTPUT.
Writing `intent.json` there is the commit: before it, a killed run leaves only staged files, which the
next command removes; after it, the next command finishes the moves. New files have content-addressed
names, so they never replace what a reader has open; files that are no longer listed go last.
"""

import dataclasses
import fcntl
import json
import os
import shutil
from pathlib import Path
from types import TracebackType

from beamrec.io.manifest import MANIFEST, TRAINING_FOLDER, LetterFile, Manifest, read_manifest
from beamrec.io.store import open_store
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["OutputLock", "publish", "recover", "staging_folder"]

_STAGING = "_staging"
_INTENT = "intent.json"


class OutputLock:
    """Keeps a second batch run off an output folder while in the `with` block; recovers it on entry.

    The lock is the kernel's and ends with the process, however that ends.

    Raises:
      UsageError: on entry, if another process holds it.
      UnavailableError: on entry, if the folder cannot be made or written to.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._descriptor = -1

    def __enter__(self) -> "OutputLock":
        root = open_store(self._output).root
        try:
            (root / _STAGING).mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(root, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise UsageError(f"--output {root}: another batch run writes there; wait for its end") from None
        except OSError as error:
            self._close()
            raise UnavailableError(f"--output {root}: {error.strerror}; expected a writable folder") from None
        try:
            recover(self._output)
            (root / _STAGING).mkdir(exist_ok=True)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A failed run that is not killed tidies up after itself.
        try:
            recover(self._output)
        finally:
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def staging_folder(output: str, run: str) -> Path:
    """Where a run puts its files until they are published."""
    return open_store(output).root / _STAGING / run


def publish(output: str, manifest: Manifest) -> Manifest:
    """Makes a run's staged files the folder's content; changes nothing if the content is the same already.

    Returns:
      The manifest that stands there now: the previous one if nothing changed.
    """
    root = open_store(output).root
    staging = staging_folder(output, manifest.run)
    previous = read_manifest(output)
    if previous is not None:
        manifest = _keep_known_letters(manifest, previous)
        if manifest.same_data(previous) and all((root / path).exists() for path in previous.paths):
            # A runner may call a DoFn again after it succeeded.
            shutil.rmtree(staging, ignore_errors=True)
            return previous
    remove = sorted((previous.paths if previous else set()) - manifest.paths)
    intent = {"manifest": manifest.to_json().decode(), "remove": remove}
    _write_durably(staging / _INTENT, json.dumps(intent).encode())
    _roll_forward(root, staging)
    return manifest


def recover(output: str) -> None:
    """Finishes or undoes what a killed run left; the caller holds the `OutputLock`."""
    root = open_store(output).root
    staging = root / _STAGING
    if not staging.is_dir():
        return
    for run in sorted(staging.iterdir()):
        if (run / _INTENT).exists():
            _roll_forward(root, run)
        else:
            shutil.rmtree(run)
    staging.rmdir()


def _keep_known_letters(manifest: Manifest, previous: Manifest) -> Manifest:
    """Letters that stand there already keep their file, and with it the time they were first seen."""
    known = {letter.content: letter for letter in previous.dead_letters}
    letters: list[LetterFile] = [known.get(letter.content, letter) for letter in manifest.dead_letters]
    return dataclasses.replace(manifest, dead_letters=tuple(letters))


def _roll_forward(root: Path, staging: Path) -> None:
    """Every step may have been done before; doing it again changes nothing."""
    intent = json.loads((staging / _INTENT).read_bytes())
    manifest = Manifest.from_json(intent["manifest"].encode(), str(staging / _INTENT))
    for path in sorted(manifest.paths):
        _move(staging / path, root / path)
    _write_durably(staging / MANIFEST, manifest.to_json())
    os.replace(staging / MANIFEST, root / MANIFEST)
    for path in intent["remove"]:
        (root / path).unlink(missing_ok=True)
    _remove_strays(root / TRAINING_FOLDER, {root / file.path for file in manifest.files})
    _remove_empty_folders(root, intent["remove"])
    # The intent goes last: until then a killed recovery starts over.
    for child in staging.iterdir():
        if child.name != _INTENT:
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    shutil.rmtree(staging)


def _move(staged: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staged, target)


def _remove_strays(folder: Path, listed: set[Path]) -> None:
    """Removes parts that no manifest lists, such as those of an earlier version of beamrec."""
    for path in folder.glob("*/part-*.parquet"):
        if path not in listed:
            path.unlink()
    for partition in folder.iterdir() if folder.is_dir() else ():
        if partition.is_dir() and not any(partition.iterdir()):
            partition.rmdir()


def _remove_empty_folders(root: Path, removed: list[str]) -> None:
    for path in removed:
        folder = (root / path).parent
        while folder != root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
