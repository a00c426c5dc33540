"""The ledger of one output folder: settings that must not change, progress, and the account.

The fates live in the shard logs, what was read in the source log; here they are put together.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from beamrec.io.books import Books, SourceState
from beamrec.io.entries import entry_folder, list_shards, read_entries, unpublished
from beamrec.io.gaps import count_gaps
from beamrec.io.numbered import numbers
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError, UsageError
from beamrec.schemas.events import Fate
from beamrec.schemas.paths import RECOMMENDATIONS
from beamrec.schemas.records import changed_columns
from beamrec.schemas.replays import replaced_fate
from beamrec.schemas.summary import StageSummary

__all__ = [
    "Account",
    "Progress",
    "Settings",
    "Tally",
    "account",
    "check_settings",
    "drain_requested",
    "fix_settings",
    "is_output",
    "missing_segments",
    "put_settings",
    "request_drain",
    "stored_settings",
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
      format: of the recommendations' files.
      explain: whether the columns of Parquet files hold reasons; lines of JSON may with or without.
      output_shape: which record is written. None, as older folders have it: not known, so the first job
        that gives it says.
      columns: of Parquet files, as `schemas.records.columns_text` has them; "" for lines of JSON, None as
        above.
    """

    shards: int
    input: str
    dedupe_key: str | None
    shop: str
    event_mapping: str = ""
    format: str = "jsonl"
    explain: bool = False
    output_shape: str | None = None
    columns: str | None = None

    def adopt(self, new: "Settings") -> "Settings":
        """These settings, with what they do not know yet taken from those of a job."""
        unknown = [name for name in ("output_shape", "columns") if getattr(self, name) is None]
        return dataclasses.replace(self, **{name: getattr(new, name) for name in unknown})


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
    stored = stored_settings(store)
    check_settings(stored, settings)
    if stored.adopt(settings) != stored:
        put_settings(store, stored.adopt(settings))


def check_settings(stored: Settings, settings: Settings) -> None:
    """Whether a job may go on with a folder; what one of both does not know fits.

    Raises:
      UsageError: a value differs.
    """
    before, now = stored.adopt(settings), settings.adopt(stored)
    for field in dataclasses.fields(Settings):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new:
            begun = f"begun with {field.name} = {old!r} and cannot go on with {new!r}"
            if field.name == "columns" and old and new:
                begun = f"begun with other columns of its Parquet files ({changed_columns(old, new)})"
            raise UsageError(
                f"this output folder was {begun}: "
                "what is there and what comes would not fit together; use the old value or another --output"
            )


def stored_settings(store: Store) -> Settings:
    """The settings that an output folder was begun with, or that a replay has mended.

    Raises:
      UsageError: it is no output folder of a stream.
      BeamrecError: they are damaged.
    """
    try:
        return Settings(**json.loads(store.read(_SETTINGS)))
    except FileNotFoundError:
        raise UsageError(
            f"{store.uri} is no output folder of `stream`: {_SETTINGS} is missing. (Dead letters of `batch` "
            "are mended in the source: run `batch` again.)"
        ) from None
    except (ValueError, TypeError) as error:
        raise BeamrecError(f"{_SETTINGS} of the output folder is damaged ({error}); restore it") from error


def is_output(store: Store) -> bool:
    """Whether it is an output folder of a stream."""
    return store.exists(_SETTINGS)


def put_settings(store: Store, settings: Settings) -> None:
    """Replaces the settings of an output folder; by who holds its lease and knows that they fit."""
    store.put(_SETTINGS, json.dumps(dataclasses.asdict(settings)).encode(), durable=True)


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
        progress = {}
        for source, state in _read(store).sources.items():
            if state.fated:
                resume, tiled = state.tiled()
                progress[source] = cls(resume, frozenset(state.position[tiled:].tolist()))
        return progress


@dataclasses.dataclass(frozen=True)
class Account:
    """In against fates of an output folder since it was begun.

    Attributes:
      counts: totals over all runs; `seconds` is 0.
      faults: gaps and overlaps, in words; empty if every record that was read has exactly one fate.
      replays: records whose dead letter (or expiry) was replayed and got another fate for it, by
        `replaced/given`. They count once as input, and in `counts` by the fate that they have now.
      waiting: records that were chosen for a replay which has not come to them: they keep their fate.
    """

    counts: StageSummary
    faults: tuple[str, ...]
    replays: Mapping[str, int] = dataclasses.field(default_factory=dict)
    waiting: int = 0

    @property
    def reconciled(self) -> bool:
        """No gap, no overlap, and the sums agree."""
        return not self.faults and self.counts.reconciled

    @property
    def replayed(self) -> int:
        """How many fates a replay has replaced."""
        return sum(self.replays.values())


def account(store: Store) -> Account:
    """Adds up an output folder: *in* from the source log, fates from the shard logs, gaps from both."""
    books = _read(store)
    faults = [f"{path} was never published" for path in unpublished(store)] + books.check()
    for source, state in sorted(books.sources.items()):
        faults += ([] if _is_replay(source) else _gaps(source, state)) + _overlaps(source, state)
    waiting = sum(_waiting(state) for source, state in books.sources.items() if _is_replay(source))
    return Account(_summary(books), tuple(faults), dict(books.replays), waiting)


def _read(store: Store) -> Books:
    books = Books(store)
    books.update()
    return books


def _summary(books: Books) -> StageSummary:
    return StageSummary(
        records_in=books.records,
        out=books.final(Fate.VISIBLE),
        dead_letters=books.final(Fate.DEAD_LETTER),
        duplicates=books.final(Fate.DUPLICATE),
        expired=books.final(Fate.EXPIRED),
    )


class Tally:
    """The counts of an output folder while a job runs; each `update` reads only what is new.

    It finds no gaps and overlaps: `account` does, when the job is at rest. Since it has read everything, it
    also writes the snapshots of the account, by which the next start and the workers need not.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._books = store, Books(store)

    def gaps(self) -> int:
        """Where records were lost upstream, how often: no part of the counts."""
        return count_gaps(self._store)

    def update(self) -> StageSummary:
        """The counts now, over all runs; `seconds` is 0."""
        self._books.update()
        self._books.save_if_due()
        return _summary(self._books)


def missing_segments(store: Store) -> list[str]:
    """Paths of committed segments that are not there (removed by hand or by a retention rule).

    Knows those of the entries that are still kept.
    """
    return [
        segment.path
        for shard in list_shards(store)
        for entry in read_entries(store, shard, next(iter(numbers(store, entry_folder(shard), ".arrow")), 0))
        for segment in entry.segments
        if not store.exists(segment.path)
    ]


def _is_replay(source: str) -> bool:
    return replaced_fate(source) is not None


def _waiting(state: SourceState) -> int:
    """Positions of a replay, which follow each other by one, that have no fate from it."""
    end = state.parts[-1].position if state.parts else 0
    return end - (state.resume or 0) - len(state.position)


def _bounds(state: SourceState) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where what comes next begins, and where what has a fate ends: alike if the source is tiled."""
    end = state.parts[-1].position if state.parts else 0
    begin = state.resume if state.resume is not None else state.begin or 0
    return np.append(state.after, end), np.insert(state.position, 0, begin)


def _gaps(source: str, state: SourceState) -> list[str]:
    starts, ends = _bounds(state)
    found = np.flatnonzero(starts > ends)[:3]
    return [f"{source}: no fate for ({ends[gap]}, {starts[gap]}]" for gap in found]


def _overlaps(source: str, state: SourceState) -> list[str]:
    starts, ends = _bounds(state)
    found = np.flatnonzero(starts < ends)[:3]
    return [f"{source}: more than one fate for ({starts[at]}, {ends[at]}]" for at in found]
