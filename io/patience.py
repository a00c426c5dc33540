"""Waiting out a store that is away, for those who do one thing after another and cannot go on without it."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from beamrec.io.store import Store
from beamrec.io.store_waits import WAITS
from beamrec.schemas.errors import UnavailableError

__all__ = ["patient", "patiently"]

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 10.0
# What a reader asks of the store that holds its ledger; each may be repeated.
_WAITING = frozenset({"create", "discard", "exists", "names", "read"})
_LOGGER = logging.getLogger(__name__)
Answer = TypeVar("Answer")


def patiently(action: Callable[[], Answer], patience_seconds: float) -> Answer:
    """Repeats an action while its store is away, with a growing pause of 10 s at most.

    Raises:
      UnavailableError: it is away for longer than that.
    """
    began, wait = time.monotonic(), _FIRST_WAIT_SECONDS
    while True:
        try:
            return action()
        except UnavailableError as error:
            if time.monotonic() - began > patience_seconds:
                raise
            _LOGGER.warning("the output cannot be reached, trying again in %.1f s: %s", wait, error)
            time.sleep(wait)
            WAITS.add("output", wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


class _Patient:
    """See `patient`."""

    def __init__(self, store: Store, patience_seconds: float) -> None:
        self._store, self._patience_seconds = store, patience_seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in _WAITING:
            return found

        @functools.wraps(found)
        def call(*arguments: Any) -> Any:
            return patiently(lambda: found(*arguments), self._patience_seconds)

        return call


def patient(store: Store, patience_seconds: float) -> Store:
    """The same store, whose operations on single objects wait while it is away.

    A `create` that failed may have come through, and answers then that the name is taken: whoever calls it
    must read what is there, as the logs of the ledger do.
    """
    return cast(Store, _Patient(store, patience_seconds))
