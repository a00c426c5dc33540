"""Objects below a root, on a file system or an object store: what every output of beamrec is made of.

Two sets of operations, both on every store. The stream's ledger and segments are write-once: create an
object that must not exist yet (`os.link` here, `If-None-Match: *` there), and publish a staged object under
such a name. The batch run stages thousands of private objects, makes them durable at once, and moves them in
bulk; only its manifest is ever replaced. Nothing that a reader looks at is visible before it is complete.
"""

import contextlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

import pyarrow as pa
import pyarrow.fs

from beamrec.io.local import LocalStore
from beamrec.io.registry import backend

__all__ = ["Data", "LocalStore", "Store", "clean_staged", "open_store", "with_beam_options"]

Data: TypeAlias = "bytes | pa.Buffer"

_STAGED = "_ledger/staged"
_STALE_SECONDS = 86_400.0


class Store(Protocol):
    """Objects, named by relative paths with forward slashes.

    Every method raises UnavailableError where the store is away, full, read-only or refuses the login, and
    UsageError where its address is wrong.
    """

    @property
    def uri(self) -> str:
        """The root as a user writes it: an absolute path, or `s3://bucket/prefix`."""

    def create(self, path: str, data: bytes) -> bool:
        """Writes a new object durably; False, and no change, if the name is taken."""

    def stage(self, data: bytes) -> str:
        """Writes an object durably under a name of its own that no reader looks at; returns the name."""

    def publish(self, staged: str, path: str) -> bool:
        """Makes a staged object visible as `path`; False, and no change, if the name is taken.

        Raises:
          FileNotFoundError: the staged object is gone.
        """

    def discard(self, path: str) -> None:
        """Removes an object that nothing refers to; no error if it is gone."""

    def read(self, path: str) -> bytes:
        """The object's bytes; raises FileNotFoundError."""

    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    def names(self, folder: str) -> list[str]:
        """Names of objects and folders directly below a folder, sorted; empty if there is no such folder."""

    def age_seconds(self, path: str) -> float:
        """Seconds since the object was written, by the store's clock; raises FileNotFoundError."""

    def check(self) -> None:
        """Makes the root if it can be made, and tries soon whether it can be written to."""

    def exclusive(self, run: str) -> AbstractContextManager[None]:
        """Keeps other runs out while in the `with` block; ends with the process, however that ends.

        Raises:
          UsageError: on entry, if another run is in.
        """

    def let_in_last(self) -> str | None:
        """The run that `exclusive` let in last, even if it is out; None if there was none.

        None too where a run cannot lose its place while its process lives.
        """

    def put(self, path: str, data: Data, durable: bool = False) -> None:
        """Writes or replaces an object.

        A durable object is there whole or not at all, whatever happens. Any other is for names that nobody
        reads before `flush`: a kill may leave a part of it (`sizes` tells), which a second put replaces.
        """

    def put_all(self, objects: Iterable[tuple[str, Data]]) -> None:
        """`put` for many, as they come from the iterable; concurrent where that is faster."""

    def put_file(self, path: str, local_file: str | Path) -> None:
        """`put` of a file of any size; in parts if the store wants that."""

    def flush(self) -> None:
        """Makes everything durable that was put so far, by any process on this machine."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Path → bytes of all objects below a folder, at any depth."""

    def sizes_of(self, paths: Collection[str]) -> dict[str, int]:
        """Path → bytes of those objects that are there."""

    def move_all(self, folder: str, paths: Sequence[str]) -> None:
        """Moves each `folder/path` to `path`, replacing what is there; those already moved stay.

        Nothing but the paths may stand below `folder` in the folders that they are in.

        Raises:
          FileNotFoundError: an object is in neither place.
        """

    def discard_all(self, paths: Iterable[str]) -> None:
        """Removes objects, and the folders that are empty without them; no error if they are gone."""

    def discard_tree(self, folder: str) -> None:
        """Removes everything below a folder, unfinished uploads included; no error if it is gone."""

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """A file system for `pyarrow.dataset`, and the root's path in it."""


def open_store(uri: str, option: str = "--output") -> Store:
    """The store behind a path or URI; nothing is asked of it yet.

    Args:
      uri: a path, `file:///path`, `s3://bucket/prefix` or `gs://bucket/prefix`.
      option: the flag that it came from, for the message.

    Raises:
      UsageError: nothing is registered for the scheme, or the rest does not fit it.
    """
    store: Store = backend("files", uri, option).open_store(uri, option)
    return store


def with_beam_options(uri: str, beam_args: Sequence[str], option: str = "--output") -> str:
    """The URI with what Beam's own options and the environment say of its endpoint and region.

    A worker elsewhere has neither: what it needs to find the store travels in the URI, and nothing secret.

    Raises:
      UsageError: an option holds a credential, or the URI is not valid.
    """
    found: str = backend("files", uri, option).with_beam_options(uri, beam_args, option)
    return found


def clean_staged(store: Store) -> None:
    """Removes what killed writers left staged, once no writer can still be at work on it.

    To be called after `finish_publications`: what a committed entry refers to is no longer staged then.
    """
    for name in store.names(_STAGED):
        with contextlib.suppress(FileNotFoundError):
            if store.age_seconds(f"{_STAGED}/{name}") > _STALE_SECONDS:
                store.discard(f"{_STAGED}/{name}")
