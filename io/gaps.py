"""Records that a source lost before anybody read them: retention was faster than the job.

They were never counted in, so the account is whole without them, and nobody can say for sure how many there
were. Each such gap is therefore kept once in the output folder, whichever reader finds it, however often.
"""

import dataclasses
import hashlib
import json
import logging
import uuid

from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError
from beamrec.transforms import metrics

__all__ = ["Gap", "count_gaps", "note_gap", "read_gaps"]

_FOLDER = "_ledger/gaps"
_FINDER = "found_by"
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
    """Keeps a gap and says it in the log; False if another has kept it before.

    Counted by the metrics `gaps` and, as far as known, `lost_records`, by who keeps it. The log has it from
    everybody who finds it: one that kept it and was killed has perhaps said nothing.
    """
    key = json.dumps([gap.source, gap.after, gap.since_us])
    path = f"{_FOLDER}/{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    data = json.dumps(dataclasses.asdict(gap) | {_FINDER: uuid.uuid4().hex}).encode()
    # The name may be taken by ourselves: by a `create` that came through while its answer was lost.
    is_new = store.create(path, data) or store.read(path) == data
    _LOGGER.warning("%s: records are missing after position %d: %s", gap.source, gap.after, gap.reason)
    if is_new:
        metrics.count("gaps", 1)
        metrics.count("lost_records", gap.at_most or 0)
    return is_new


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
            values = json.loads(store.read(path))
            values.pop(_FINDER, None)
            found.append(Gap(**values))
        except (ValueError, TypeError, AttributeError) as error:
            raise BeamrecError(f"{path} is damaged ({error}); restore it") from error
    return sorted(found, key=lambda gap: (gap.source, gap.after, gap.since_us))
