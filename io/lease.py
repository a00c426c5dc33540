"""One job at a time on an output folder. It guards against a mistake; correctness never rests on it."""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from types import TracebackType

from beamrec.io.processes import process_start
from beamrec.io.store import Store
from beamrec.schemas.errors import UnavailableError, UsageError

__all__ = ["Lease", "lease_holder", "lease_is_held"]

_LEASE = "_ledger/lease"
_BEAT_SECONDS = 5.0
_EXPIRY_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class _Holder:
    run: str
    host: str
    pid: int
    process_start: str | None


def lease_holder(store: Store, folder: str) -> str | None:
    """The run that a folder was leased to last, whether it still holds it or not; None if there was none."""
    held = [name for name in store.names(folder) if name.endswith(".json")]
    return _read_holder(store, f"{folder}/{held[-1]}").run if held else None


def lease_is_held(store: Store, folder: str = _LEASE) -> bool:
    """Whether somebody holds a folder's lease, by its beats alone: 30 s after the last one nobody does."""
    names = store.names(folder)
    held = [name for name in names if name.endswith(".json")]
    if not held or f"{held[-1][:8]}.released" in names:
        return False
    return _silent_seconds(store, folder, held[-1][:8], names) <= _EXPIRY_SECONDS


class Lease:
    """Holds `<folder>/<number>` while in the `with` block, renewed every five seconds.

    Numbers only grow, so that a holder who was thought dead cannot free another's lease; what was left of
    those before is removed. A lease ends when it is released, when its process is gone (seen at once on the
    same machine), or 30 s after its last beat.

    Raises:
      UsageError: on entry, if another job holds the folder.
    """

    def __init__(self, store: Store, run: str, folder: str = _LEASE) -> None:
        self._folder = folder
        self._store = store
        self._me = _Holder(run, socket.gethostname(), os.getpid(), process_start(os.getpid()))
        self._number = -1
        self._stopped = threading.Event()
        self._beat = 0

    def __enter__(self) -> "Lease":
        number = self._free_number()
        data = json.dumps(dataclasses.asdict(self._me)).encode()
        if not self._store.create(self._path(number, "json"), data):
            raise UsageError("another job took this output folder a moment ago; one job at a time can write")
        self._number = number
        self._clear(number)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        # Where the store is away, the lease ends by itself.
        with contextlib.suppress(UnavailableError):
            self._store.create(self._path(self._number, "released"), b"")
            self._store.discard(self._path(self._number, f"beat{self._beat}"))

    def _path(self, number: int, what: str) -> str:
        return f"{self._folder}/{number:08d}.{what}"

    def _clear(self, number: int) -> None:
        """Removes older leases; raises UsageError if there is a newer one, seen by who came later."""
        names = self._store.names(self._folder)
        if any(int(name[:8]) > number for name in names):
            self._store.discard(self._path(number, "json"))
            raise UsageError("another job took this output folder a moment ago; one job at a time can write")
        for name in names:
            if int(name[:8]) < number:
                self._store.discard(f"{self._folder}/{name}")

    def _free_number(self) -> int:
        names = self._store.names(self._folder)
        held = [name for name in names if name.endswith(".json")]
        if not held:
            return 0
        number = int(held[-1][:8])
        if f"{number:08d}.released" in names:
            return number + 1
        holder = _read_holder(self._store, f"{self._folder}/{held[-1]}")
        if holder.host == socket.gethostname():
            if process_start(holder.pid) != holder.process_start:
                return number + 1
        elif _silent_seconds(self._store, self._folder, f"{number:08d}", names) > _EXPIRY_SECONDS:
            return number + 1
        raise UsageError(
            f"run {holder.run} (process {holder.pid} on {holder.host}) is writing to this output folder; "
            "stop it first (Ctrl-C drains it), or give this job another --output"
        )

    def _renew(self) -> None:
        # Beats are new objects too, so that a store without overwrite will do; the one before goes.
        while not self._stopped.wait(_BEAT_SECONDS):
            previous, self._beat = self._beat, self._beat + 1
            # A full disk must not end the renewal: it may have room again.
            with contextlib.suppress(UnavailableError):
                self._store.create(self._path(self._number, f"beat{self._beat}"), str(time.time()).encode())
                self._store.discard(self._path(self._number, f"beat{previous}"))


def _silent_seconds(store: Store, folder: str, number: str, names: list[str]) -> float:
    """How long ago the lease of that number was renewed."""
    ages = []
    for name in names:
        # A holder that lives takes its last beat away when it has made the next one.
        with contextlib.suppress(FileNotFoundError):
            if name.startswith(f"{number}."):
                ages.append(store.age_seconds(f"{folder}/{name}"))
    return min(ages, default=0.0)


def _read_holder(store: Store, path: str) -> _Holder:
    """Who wrote a lease; if it cannot be read, somebody elsewhere, of whom only the age counts."""
    try:
        return _Holder(**json.loads(store.read(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return _Holder("?", "?", 0, None)
