"""Which release a worker serves: the active one, as soon as it is known to work here.

A promoted release is prepared (fetched, verified, its tower loaded) beside the one that serves, so that no
batch waits for it; one that cannot be prepared is said and counted, and the old one goes on serving.
"""

import logging
import threading
import time
from collections.abc import Callable

from beamrec.schemas.errors import UsageError
from beamrec.schemas.releases import ActiveRelease

__all__ = ["Prepare", "ServingRelease"]

Prepare = Callable[[ActiveRelease], None]
"""Raises if the release cannot serve on this worker; cheap if it was called for it before."""

_RETRY_SECONDS = 30.0
_READY = 3  # as many as a worker keeps loaded: a rollback takes no time
_LOGGER = logging.getLogger(__name__)


class ServingRelease:
    """The release of the batches that come next; safe for threads.

    Args:
      active: the release that the pointer names.
      release: a release by its id, as it is now; raises if the store no longer has it.
      prepare: see `Prepare`; without it every release serves at once.
      retry_seconds: until a release that could not be prepared is tried again.
    """

    def __init__(
        self,
        active: Callable[[], ActiveRelease],
        release: Callable[[str], ActiveRelease],
        prepare: Prepare | None = None,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._active, self._release, self._prepare = active, release, prepare
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._ready: list[tuple[str, str]] = []
        self._serving: tuple[str, str] | None = None
        self._preparing: threading.Thread | None = None
        self._failed: tuple[tuple[str, str], float] | None = None
        self._failures = 0

    def current(self) -> ActiveRelease:
        """The active release, or the one before it until the active one is prepared.

        Raises:
          Exception: what `prepare` raises for the first release: there is none before it.
        """
        wanted = self._active()
        if self._prepare is None:
            return wanted
        with self._lock:
            if self._serving is None:
                self._prepare(wanted)
                self._add(wanted)
            if _key(wanted) in self._ready:
                return self._serve(wanted)
            self._begin(wanted)
            serving, _ = self._serving or _key(wanted)
        try:
            return self._release(serving)
        except UsageError:  # the store has it no longer: no other can serve
            self._prepare(wanted)
        with self._lock:
            return self._serve(wanted)

    def take_failures(self) -> int:
        """How many preparations failed since this was asked last."""
        with self._lock:
            failures, self._failures = self._failures, 0
            return failures

    def _begin(self, wanted: ActiveRelease) -> None:
        if self._preparing is not None and self._preparing.is_alive():
            return
        failed, since = self._failed or (None, 0.0)
        if failed == _key(wanted) and time.monotonic() - since < self._retry_seconds:
            return
        self._preparing = threading.Thread(
            target=self._try, args=(self._prepare, wanted), name=f"prepare {wanted.id}", daemon=True
        )
        self._preparing.start()

    def _try(self, prepare: Prepare, wanted: ActiveRelease) -> None:
        try:
            prepare(wanted)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the old one serves)
            with self._lock:
                self._failures += 1
                self._failed = _key(wanted), time.monotonic()
                serving = self._serving
            _LOGGER.error(  # noqa: TRY400  (an operator's matter: no traceback)
                "release %s is active but cannot serve here (%s); %s goes on serving; `beamrec release "
                "rollback` or a mended release ends this", wanted.id, error, serving and serving[0],
            )  # fmt: skip
            return
        with self._lock:
            self._add(wanted)

    def _add(self, release: ActiveRelease) -> None:
        self._ready = [*self._ready, _key(release)][-_READY:]
        self._failed = None

    def _serve(self, release: ActiveRelease) -> ActiveRelease:
        if self._serving != _key(release):
            self._serving = _key(release)
            _LOGGER.info("serving release %s", release.id)
        return release


def _key(release: ActiveRelease) -> tuple[str, str]:
    """A release that was loaded again from another folder is another one."""
    return release.id, release.checksum
