"""The ledger of one output folder: settings that must not change, progress, and the account.

The fates live in the shard logs, what was read in the source log; here they are put together.
"""

import collections
import dataclasses
import json

import numpy as np

from beamrec.io.shard_log import list_shards, read_entries, unpublished
from beamrec.io.source_log import Part, has_gap, read_parts
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import Fate
from beamrec.schemas.paths import RECOMMENDATIONS
from beamrec.schemas.summary import StageSummary

__all__ = [
    "Account",
    "Progress",
    "Settings",
    "Tally",
    "account",
    "drain_requested",
    "fix_settings",
    "missing_segments",
    "request_drain",
]

_SETTINGS = "_ledger/settings.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an output folder was begun with; another value would break identity or order.

    Attributes:
      shards: number of output shards; the shard of an event is a hash of its id modulo this.
      input: the source URI, since positions mean nothing in another.
      dedupe_key: payload field that stands for a missing `event_id`, if any.
      shop: name of the shop.
      event_mapping: how its events map to ids and customers.
    """

    shards: int
    input: str
    dedupe_key: str | None
    shop: str
    event_mapping: str = ""


def fix_settings(store: Store, settings: Settings) -> None:
    """Stores the settings of a new output folder, or checks them against those it was begun with.

    Raises:
      UsageError: a value differs, or there are recommendations but no ledger that accounts for them.
      BeamrecError: the stored settings are damaged.
    """
    if not store.exists(_SETTINGS) and store.names(RECOMMENDATIONS):
        raise UsageError(
            f"the output folder has {RECOMMENDATIONS}/ but no ledger ({_SETTINGS} is missing): what is there "
            "could neither be continued nor told from what comes; restore _ledger, or give another --output"
        )
    if store.create(_SETTINGS, json.dumps(dataclasses.asdict(settings)).encode()):
        return
    try:
        stored = Settings(**json.loads(store.read(_SETTINGS)))
    except (ValueError, TypeError) as error:
        raise BeamrecError(f"{_SETTINGS} of the output folder is damaged ({error}); restore it") from error
    for field in dataclasses.fields(Settings):
        old, new = getattr(stored, field.name), getattr(settings, field.name)
        if old != new:
            raise UsageError(
                f"this output folder was begun with {field.name} = {old!r} and cannot go on with {new!r}: "
                "ids and positions would no longer mean the same; use the old value or another --output"
            )


def request_drain(store: Store, run: str) -> None:
    """Asks the sources of a run to report their end; seen by every worker that reaches the folder."""
    store.create(_drain_path(run), b"")


def drain_requested(store: Store, run: str) -> bool:
    """Whether `request_drain` was called for this run."""
    return store.exists(_drain_path(run))


def _drain_path(run: str) -> str:
    return f"_ledger/drains/{run}"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where one source stands: everything up to `resume` has a fate, and so has each of `done` beyond."""

    resume: int
    done: frozenset[int]

    @classmethod
    def load(cls, store: Store) -> "dict[str, Progress]":
        """Reads the fates of all shards; sources without any fate are absent."""
        sources, progress = _read_sources(store), {}
        for source, (after, position, _) in _intervals(store).items():
            origin = sources[source][0].after if source in sources else 0
            prefix = _contiguous(after, position, origin)
            resume = int(position[prefix - 1]) if prefix else origin
            progress[source] = cls(resume, frozenset(position[prefix:].tolist()))
        return progress


@dataclasses.dataclass(frozen=True)
class Account:
    """In against fates of an output folder since it was begun.

    Attributes:
      counts: totals over all runs; `seconds` is 0.
      faults: gaps and overlaps, in words; empty if every record that was read has exactly one fate.
    """

    counts: StageSummary
    faults: tuple[str, ...]

    @property
    def reconciled(self) -> bool:
        """No gap, no overlap, and the sums agree."""
        return not self.faults and self.counts.reconciled


def account(store: Store) -> Account:
    """Adds up an output folder: *in* from the source log, fates from the shard logs, gaps from both."""
    sources, intervals = _read_sources(store), _intervals(store)
    fates: collections.Counter[str] = collections.Counter()
    records, faults = 0, [f"{path} was never published" for path in unpublished(store)]
    if has_gap(store):
        faults.append("an entry of _ledger/sources is missing")
    for source in sorted({*sources, *intervals}):
        parts = sources.get(source, [])
        records += sum(part.records for part in parts)
        after, position, kinds = intervals.get(source, _NOTHING)
        fates.update(kinds)
        begin, end = (parts[0].after, parts[-1].position) if parts else (0, 0)
        faults += _faults(source, begin, end, after, position)
    return Account(_summary(records, fates), tuple(faults))


def _summary(records: int, fates: "collections.Counter[str]") -> StageSummary:
    return StageSummary(
        records_in=records,
        out=fates[Fate.VISIBLE],
        dead_letters=fates[Fate.DEAD_LETTER],
        duplicates=fates[Fate.DUPLICATE],
        expired=fates[Fate.EXPIRED],
    )


class Tally:
    """The counts of an output folder while a job runs; each `update` reads only what is new.

    It finds no gaps and overlaps: `account` does, when the job is at rest.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records = 0
        self._parts_seen = 0
        self._entries_seen: collections.Counter[int] = collections.Counter()
        self._fates: collections.Counter[str] = collections.Counter()

    def update(self) -> StageSummary:
        """The counts now, over all runs; `seconds` is 0."""
        for parts in read_parts(self._store, self._parts_seen):
            self._parts_seen += 1
            self._records += sum(part.records for part in parts)
        for shard in list_shards(self._store):
            for entry in read_entries(self._store, shard, self._entries_seen[shard]):
                self._entries_seen[shard] += 1
                self._fates.update(entry.rows["fate"].to_pylist())
        return _summary(self._records, self._fates)


def missing_segments(store: Store) -> list[str]:
    """Paths of committed segments that are not there (removed by hand or by a retention rule)."""
    return [
        segment.path
        for shard in list_shards(store)
        for entry in read_entries(store, shard)
        for segment in entry.segments
        if not store.exists(segment.path)
    ]


_Intervals = tuple[np.ndarray, np.ndarray, list[str]]
_NOTHING: _Intervals = (np.empty(0, np.int64), np.empty(0, np.int64), [])


def _read_sources(store: Store) -> dict[str, list[Part]]:
    """The parts of each source, in order."""
    sources: dict[str, list[Part]] = {}
    for parts in read_parts(store):
        for part in parts:
            sources.setdefault(part.source, []).append(part)
    return sources


def _intervals(store: Store) -> dict[str, _Intervals]:
    """Sorted (after, position, fate) of every fated record, by source."""
    collected: dict[str, tuple[list[int], list[int], list[str]]] = {}
    for shard in list_shards(store):
        for entry in read_entries(store, shard):
            columns = (entry.rows[n].to_pylist() for n in ("source", "after", "position", "fate"))
            for source, after, position, fate in zip(*columns, strict=True):
                lists = collected.setdefault(source, ([], [], []))
                lists[0].append(after)
                lists[1].append(position)
                lists[2].append(fate)
    sorted_intervals = {}
    for source, (afters, positions, fates) in collected.items():
        order = np.argsort(np.asarray(positions, np.int64), kind="stable")
        sorted_intervals[source] = (
            np.asarray(afters, np.int64)[order],
            np.asarray(positions, np.int64)[order],
            [fates[i] for i in order],
        )
    return sorted_intervals


def _contiguous(after: np.ndarray, position: np.ndarray, origin: int) -> int:
    """How many intervals tile the source from its origin without a gap."""
    if not len(after) or after[0] != origin:
        return 0
    breaks = np.flatnonzero(after[1:] != position[:-1])
    return int(breaks[0]) + 1 if len(breaks) else len(after)


def _faults(source: str, begin: int, end: int, after: np.ndarray, position: np.ndarray) -> list[str]:
    starts = np.append(after, end)
    ends = np.insert(position, 0, begin)
    faults = []
    for gap in np.flatnonzero(starts > ends)[:3]:
        faults.append(f"{source}: no fate for ({ends[gap]}, {starts[gap]}]")
    for overlap in np.flatnonzero(starts < ends)[:3]:
        faults.append(f"{source}: more than one fate for ({starts[overlap]}, {ends[overlap]}]")
    return faults
