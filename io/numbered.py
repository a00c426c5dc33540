"""Folders of write-once objects that are numbered from 0 on: the logs of the ledger."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError

__all__ = ["check_whole", "damaged", "numbers", "read_on"]

_NUMBER = re.compile(r"(\d{12})(\..+)")
_READS_AT_ONCE = 16


def numbers(store: Store, folder: str, suffix: str) -> list[int]:
    """Numbers of the objects in a folder, ascending; what has another kind of name is not ours."""
    matches = (_NUMBER.fullmatch(name) for name in store.names(folder))
    return [int(match[1]) for match in matches if match and match[2] == suffix]


def check_whole(found: Sequence[int], first: int, folder: str) -> None:
    """Whether the numbers from `first` on follow each other, the first of them being `first`.

    Raises:
      BeamrecError: one is missing; what comes after it would never be read.
    """
    needed = [number for number in found if number >= first]
    if needed and needed[-1] - first + 1 != len(needed):
        raise BeamrecError(
            f"{folder} has {len(needed)} entries from {first} on although its last is {needed[-1]}: one is "
            "missing; restore the _ledger folder from a backup, or start a new output folder"
        )


def read_on(store: Store, path: Callable[[int], str], first: int) -> Iterator[tuple[str, bytes]]:
    """Path and content of each object from number `first` on, up to the first that is not there.

    Asks for one, and for more at a time while there are more: a start on an object store would otherwise
    wait for hundreds of answers one after another, and a look for one new entry would ask in vain.
    """
    number, ahead = first, 1
    with ThreadPoolExecutor(_READS_AT_ONCE, "ledger") as pool:
        while True:
            paths = [path(number + i) for i in range(ahead)]
            found = pool.map(lambda p: _read(store, p), paths) if ahead > 1 else [_read(store, paths[0])]
            for name, data in zip(paths, found, strict=True):
                if data is None:
                    return
                yield name, data
            number, ahead = number + ahead, min(2 * ahead, _READS_AT_ONCE)


def damaged(path: str, error: Exception) -> BeamrecError:
    """The error for an object of the ledger that is not what it should be."""
    return BeamrecError(
        f"the ledger entry {path} is damaged ({error}): restore the _ledger folder together with the output "
        "from a backup, or start a new output folder"
    )


def _read(store: Store, path: str) -> bytes | None:
    try:
        return store.read(path)
    except FileNotFoundError:
        return None
