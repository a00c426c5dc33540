"""Snapshots of the account for a job whose launcher is not there: a worker writes them.

`beamrec stream` writes them while it waits for its job. A job on a cluster outlives its launcher, and a
pipeline of one's own may never have had one; without snapshots no entry of the ledger would ever go, and each
start would read them all.
"""

import contextlib
import logging
import threading
import weakref

from beamrec.io.lease import Lease, lease_is_held
from beamrec.io.ledger import Tally
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError, UsageError

__all__ = ["Bookkeeper", "keep_books"]

_FOLDER = "_ledger/bookkeeper"
_LOOK_SECONDS = 30.0
_LOGGER = logging.getLogger(__name__)


class Bookkeeper:
    """Keeps the account of an output folder as long as nobody else does.

    A second one would do no harm, but read all entries again; so one worker at a time has a lease to do it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._duty = contextlib.ExitStack()
        self._tally: Tally | None = None

    def look(self) -> bool:
        """Reads what is new and writes what is due, if nobody else does.

        Returns:
          Whether the books are kept here.

        Raises:
          BeamrecError: the store is away, or the ledger is damaged.
        """
        if lease_is_held(self._store):
            self.close()
            return False
        if self._tally is None:
            try:
                self._duty.enter_context(Lease(self._store, "bookkeeper", _FOLDER))
            except UsageError:
                return False
            self._tally = Tally(self._store)
        self._tally.update()
        return True

    def close(self) -> None:
        """Leaves the books to others."""
        self._duty.close()
        self._tally = None


def keep_books(store: Store, owner: object, look_seconds: float = _LOOK_SECONDS) -> None:
    """A `Bookkeeper` in the background, for as long as `owner` lives."""
    stopped = threading.Event()
    weakref.finalize(owner, stopped.set)
    arguments = (Bookkeeper(store), stopped, look_seconds)
    threading.Thread(target=_tend, args=arguments, name="bookkeeper", daemon=True).start()


def _tend(keeper: Bookkeeper, stopped: threading.Event, look_seconds: float) -> None:
    while not stopped.wait(look_seconds):
        try:
            keeper.look()
        except BeamrecError as error:
            # What is wrong ends the job where it matters; here it only delays a snapshot.
            _LOGGER.warning("no snapshot of the account was written: %s", error)
    keeper.close()
