"""Records that a source lost before anybody read them: retention was faster than the job.

They were never counted in, so the account is whole without them, and nobody can say for sure how many there
were. Each such gap is therefore kept once in the output folder, whichever reader finds it, however often.
"""

import dataclasses
import hashlib
import json
import logging

from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError
from beamrec.transforms import metrics

__all__ = ["Gap", "count_gaps", "note_gap", "read_gaps"]

_FOLDER = "_ledger/gaps"
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Gap:
    """Where records are missing.

    Attributes:
      source: its name in the ledger.
      after: position of the last record that was read before the gap.
      since_us: what arrived until then was read, microseconds since the epoch; 0 if nothing is known.
      reason: what was found, in words.
      at_most: records that can be missing; None if the source cannot say.
    """

    source: str
    after: int
    since_us: int
    reason: str
    at_most: int | None = None


def note_gap(store: Store, gap: Gap) -> bool:
    """Keeps a gap and says it in the log; False if it was kept before.

    Counted by the metrics `gaps` and, as far as known, `lost_records`.
    """
    key = json.dumps([gap.source, gap.after, gap.since_us])
    path = f"{_FOLDER}/{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if not store.create(path, json.dumps(dataclasses.asdict(gap)).encode()):
        return False
    _LOGGER.warning("%s: records are missing after position %d: %s", gap.source, gap.after, gap.reason)
    metrics.count("gaps", 1)
    metrics.count("lost_records", gap.at_most or 0)
    return True


def count_gaps(store: Store) -> int:
    """How many there are."""
    return len(store.names(_FOLDER))


def read_gaps(store: Store) -> list[Gap]:
    """All gaps of an output folder, by source and position.

    Raises:
      BeamrecError: one is damaged.
    """
    found = []
    for name in store.names(_FOLDER):
        path = f"{_FOLDER}/{name}"
        try:
            found.append(Gap(**json.loads(store.read(path))))
        except (ValueError, TypeError) as error:
            raise BeamrecError(f"{path} is damaged ({error}); restore it") from error
    return sorted(found, key=lambda gap: (gap.source, gap.after, gap.since_us))
