"""What the sink of an output folder must not change, whichever pipeline it ends.

`beamrec stream` checks all its settings before it starts (`io.ledger.Settings`). A pipeline of one's own has
none of them, and its sink would break identity just the same: with another number of shards an event that is
visible in one shard would be new to another.
"""

import dataclasses
import json

from beamrec.io.entries import list_shards
from beamrec.io.ledger import is_output, stored_settings
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError, UsageError

__all__ = ["SinkSettings", "fix_sink"]

_PATH = "_ledger/sink.json"


@dataclasses.dataclass(frozen=True)
class SinkSettings:
    """What the files of an output folder have in common.

    Attributes:
      shards: number of output shards.
      format: of the recommendations' files.
      columns: of Parquet files, see `schemas.records.columns_text`; "" of lines.
    """

    shards: int
    format: str
    columns: str = ""


def fix_sink(store: Store, sink: SinkSettings) -> None:
    """Stores what the sink of an output folder was begun with, or checks it; any number may do so at once.

    A folder that an older version has begun takes it from the settings of its stream, else from whoever comes
    first.

    Raises:
      UsageError: a value differs.
      BeamrecError: what is stored is damaged.
    """
    if is_output(store):
        settings = stored_settings(store)
        columns = sink.columns if settings.columns is None else settings.columns
        _compare(SinkSettings(settings.shards, settings.format, columns), sink)
    if not store.exists(_PATH):
        highest = max(list_shards(store), default=-1)
        if highest >= sink.shards:
            raise _refused(f"shards = more than {highest}", sink.shards)
    if not store.create(_PATH, json.dumps(dataclasses.asdict(sink)).encode()):
        _compare(_stored(store), sink)


def _stored(store: Store) -> SinkSettings:
    try:
        return SinkSettings(**json.loads(store.read(_PATH)))
    except (ValueError, TypeError) as error:
        raise BeamrecError(f"{_PATH} of the output folder is damaged ({error}); restore it") from error


def _compare(old: SinkSettings, new: SinkSettings) -> None:
    for field in dataclasses.fields(SinkSettings):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now:
            raise _refused(f"{field.name} = {before!r}", now)


def _refused(before: str, now: object) -> UsageError:
    return UsageError(
        f"the sink of this output folder was begun with {before} and cannot go on with {now!r}: its "
        "events would be written again, or its files not fit together; use the old value or another output"
    )
