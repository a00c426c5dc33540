"""Whether a job may go on from a runner's savepoint, as far as the ledger tells."""

from collections.abc import Sequence

# Its flags are known to Beam's options once it is imported.
import beamrec.runners.flink_options  # noqa: F401
from beamrec.io.begun import last_splits
from beamrec.io.store import Store
from beamrec.runners.remote import beam_options
from beamrec.schemas.errors import UsageError

__all__ = ["check_resume"]

_REMEDY = "or leave --savepoint_path out: the job then begins with what the ledger says, and loses nothing"


def check_resume(store: Store, splits: int, beam_args: Sequence[str]) -> None:
    """Refuses a savepoint that is of another output folder, or of a job with other readers.

    The readers are part of a savepoint, with the folder that they read the ledger of: a runner would find no
    state for readers that are new, and some that nobody owns for those that are gone.

    Raises:
      UsageError: with the remedy.
    """
    if not beam_options(beam_args).get("savepoint_path"):
        return
    before = last_splits(store)
    if before is None:
        raise UsageError(
            f"--savepoint_path: no job has written to {store.uri} yet, so the savepoint is of another; "
            f"give that output, {_REMEDY}"
        )
    if before != splits:
        raise UsageError(
            f"--splits: the savepoint is of a job with {before} readers, got {splits}; give "
            f"--splits={before}, {_REMEDY}"
        )
