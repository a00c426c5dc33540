"""Publishing that a kill cannot leave half done: staged files, one intent, then idempotent moves.

A run stages everything below `OUTPUT/_staging/RUN/`, under the paths that it will have below OUTPUT.
Writing `intent.json` there is the commit: before it, a killed run leaves only staged files, which the
next command removes; after it, the next command finishes the moves. New files have content-addressed
names, so they never replace what a reader has open; files that are no longer listed go last.
"""

import contextlib
import dataclasses
import logging
import re
from types import TracebackType

import orjson

from beamrec.io.manifest import (
    MANIFEST,
    TRAINING_FOLDER,
    Manifest,
    changes_between,
    check_standing,
    read_manifest,
)
from beamrec.io.store import Store, open_store
from beamrec.schemas.errors import BadDataError, BeamrecError, UnavailableError, UsageError

__all__ = ["REFUSED_FOLDER", "OutputLock", "publish", "recover", "resume", "staging_folder"]

# Reports of runs that published nothing else; they go with the next publication.
REFUSED_FOLDER = "errors/drift"

_STAGING = "_staging"
_INTENT = "intent.json"
_INTENT_FORMAT = 2
_UNNAMED = "batch"
_OURS = re.compile(r"part-[0-9a-f]{16}\.(parquet|tfrecord|tfrecord\.gz)")
_log = logging.getLogger(__name__)


class OutputLock:
    """Keeps a second batch run off an output folder while in the `with` block; recovers it on entry.

    The lock ends with the process, however that ends: at once on a file system, after 30 s on an object
    store if the process ran on another machine. There a run that was silent for longer, and lost its place
    to another, publishes nothing (`publish`), if both gave the run's id here.

    Raises:
      UsageError: on entry, if another process holds it.
      UnavailableError: on entry, if the folder cannot be made or written to.
    """

    def __init__(self, output: str, run: str = _UNNAMED) -> None:
        self._output = output
        self._run = run
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "OutputLock":
        store = open_store(self._output)
        store.check()
        with contextlib.ExitStack() as held:
            held.enter_context(store.exclusive(self._run))
            recover(self._output)
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A failed run that is not killed tidies up after itself.
        with self._held:
            try:
                store = open_store(self._output)
                if not _has_place(store, self._run):
                    # What else is there may be another run's.
                    store.discard_tree(staging_folder(self._run))
                    return
                recover(self._output)
            except BeamrecError as left:
                if error is None:
                    raise
                # What failed the run is what the user must see; the next run recovers.
                _log.warning("the output folder is not tidied up: %s", left)


def staging_folder(run: str) -> str:
    """Where a run puts its files until they are published, below the output folder."""
    return f"{_STAGING}/{run}"


def resume(output: str, run: str) -> Manifest | None:
    """What a run had begun to publish before, finished now; None if it had not come to that.

    A runner may call a step again that died on the way or had even succeeded. By then the source, and the
    output with this very run's report, are not what the step began with: so this comes first.

    Returns:
      The run's manifest, which stands there now.
    """
    store, staging = open_store(output), staging_folder(run)
    if store.exists(f"{staging}/{_INTENT}"):
        return Manifest.from_json(_roll_forward(store, staging), f"{store.uri}/{staging}/{MANIFEST}")
    standing = read_manifest(output)
    return standing if standing is not None and standing.run == run else None


def publish(output: str, manifest: Manifest) -> Manifest:
    """Makes a run's staged files the folder's content; changes nothing if the content is the same already.

    Every path of the manifest is staged, or stands in place since an earlier run. What the run has published
    before is not published again (`resume`).

    Returns:
      The manifest that stands there now: the previous one if nothing changed.

    Raises:
      BadDataError: a file is neither staged nor in place; nothing was changed.
      UnavailableError: another run has taken the output over meanwhile; nothing was changed.
    """
    done = resume(output, manifest.run)
    if done is not None:
        return done
    store, staging = open_store(output), staging_folder(manifest.run)
    previous = read_manifest(output)
    if previous is not None:
        manifest = _keep_known_letters(store, manifest, previous)
        # `overwrite` writes all the same: it mends what the size of a file does not show.
        is_incremental = manifest.mode == "incremental"
        if is_incremental and manifest.same_data(previous) and _stands(store, previous):
            store.discard_all(_below(store, REFUSED_FOLDER))
            store.discard_tree(staging)
            return previous
    manifest = dataclasses.replace(manifest, changes=changes_between(previous, manifest))
    _commit(store, staging, manifest, previous)
    _roll_forward(store, staging, manifest.run)
    return manifest


def _commit(store: Store, staging: str, manifest: Manifest, previous: Manifest | None) -> None:
    """Writes manifest and intent; apart, so that the names of 100,000 files are not held while they move."""
    move, remove = _plan(store, staging, manifest, previous)
    store.flush()
    store.put(f"{staging}/{MANIFEST}", manifest.to_json(), durable=True)
    intent = orjson.dumps({"format": _INTENT_FORMAT, "move": move, "remove": remove})
    _check_place(store, manifest.run)
    store.put(f"{staging}/{_INTENT}", intent, durable=True)


def recover(output: str) -> None:
    """Finishes or undoes what a killed run left; the caller holds the `OutputLock`."""
    store = open_store(output)
    for run in store.names(_STAGING):
        if store.exists(f"{_STAGING}/{run}/{_INTENT}"):
            _roll_forward(store, f"{_STAGING}/{run}")
        else:
            store.discard_tree(f"{_STAGING}/{run}")


def _keep_known_letters(store: Store, manifest: Manifest, previous: Manifest) -> Manifest:
    """Letters that stand there already keep their file, and with it the time they were first seen."""
    standing = store.sizes_of([letter.path for letter in previous.dead_letters])
    known = {
        (letter.table, letter.content): letter
        for letter in previous.dead_letters
        if standing.get(letter.path) == letter.bytes
    }
    letters = tuple(known.get((letter.table, letter.content), letter) for letter in manifest.dead_letters)
    # In the same hour a letter that is known and the one that is staged have one name, and other times.
    kept = {letter.path for letter in letters} & standing.keys()
    store.discard_all(f"{staging_folder(manifest.run)}/{path}" for path in kept)
    return dataclasses.replace(manifest, dead_letters=letters)


def _check_place(store: Store, run: str) -> None:
    """A run may be silent for so long that another begins, which does not stop this one by itself."""
    if not _has_place(store, run):
        raise UnavailableError(
            f"--output {store.uri}: run {store.let_in_last()} took it over while run {run} gave no sign of "
            "life for 30 s or more; nothing was published. Run the command again, when the other one is done"
        )


def _has_place(store: Store, run: str) -> bool:
    return store.let_in_last() in (None, run, _UNNAMED)


def _stands(store: Store, manifest: Manifest) -> bool:
    try:
        check_standing(store, manifest.sizes)
    except BadDataError:
        return False
    return True


def _plan(
    store: Store, staging: str, manifest: Manifest, previous: Manifest | None
) -> tuple[list[str], list[str]]:
    """What to move and what to remove, once it is sure that nothing is missing; clears the staging folder.

    Removed is what the previous manifest listed, what refused runs left to be looked at, and parts that no
    manifest lists, such as those of an earlier version of beamrec.
    """
    prefix = len(staging) + 1
    staged = {path[prefix:]: size for path, size in store.sizes(staging).items()}
    standing = store.sizes(TRAINING_FOLDER)
    sizes = manifest.sizes
    _check_staged(store, staging, staged, sizes)
    kept = {path: size for path, size in sizes.items() if path not in staged}
    check_standing(store, {path: size for path, size in kept.items() if standing.get(path) != size})
    # Of two attempts at a bundle, one may have staged what the manifest does not list.
    store.discard_all(f"{staging}/{path}" for path in staged.keys() - sizes.keys())
    remove = {path for path in standing if path not in sizes and _OURS.fullmatch(path.rpartition("/")[2])}
    remove.update(path for path in (previous.paths if previous else ()) if path not in sizes)
    remove |= _below(store, REFUSED_FOLDER) - sizes.keys()
    return sorted(path for path in staged if path in sizes), sorted(remove)


def _below(store: Store, folder: str) -> set[str]:
    return set(store.sizes(folder))


def _check_staged(store: Store, staging: str, staged: dict[str, int], sizes: dict[str, int]) -> None:
    for path, expected in sizes.items():
        if staged.get(path, expected) != expected:
            raise BadDataError(
                f"{store.uri}/{staging}/{path}: {expected} bytes were staged, found {staged[path]}; nothing "
                "was published. Run `beamrec batch` again"
            )


def _roll_forward(store: Store, staging: str, run: str | None = None) -> bytes:
    """Every step may have been done before; doing it again changes nothing. Returns the manifest's bytes.

    Args:
      run: that publishes its own intent, and must still be the one to do so; None in a recovery.
    """
    try:
        intent = orjson.loads(store.read(f"{staging}/{_INTENT}"))
        known = intent.get("format") == _INTENT_FORMAT
        data = store.read(f"{staging}/{MANIFEST}") if known else b""
    except (AttributeError, FileNotFoundError, ValueError):
        raise UsageError(
            f"{store.uri}/{staging}: expected the intent of a run that was killed while publishing, found "
            "something else; remove that folder, then run the command again"
        ) from None
    if not known:
        raise UsageError(
            f"{store.uri}/{staging}: another version of beamrec was killed while publishing this; run "
            "`beamrec batch` of that version once, to finish it"
        )
    try:
        store.move_all(staging, intent["move"])
    except FileNotFoundError as error:
        raise BadDataError(
            f"{store.uri}: a staged file went away while it was published: {error}. Run `beamrec batch "
            "--mode overwrite` into another --output, or restore this one"
        ) from None
    if run is not None:
        _check_place(store, run)
    store.put(MANIFEST, data, durable=True)
    store.discard_all(intent["remove"])
    # The intent first: it must not outlive the manifest that it needs.
    store.discard(f"{staging}/{_INTENT}")
    store.discard_tree(staging)
    return data
