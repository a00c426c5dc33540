"""Where the partitions of a topic are read from: the ledger's places, and the start of those that have none.

The start is resolved once, for all partitions of the topic in one entry of the ledger, by the reader that
comes first. A partition that is not in it was added later, and is read from its beginning.
"""

import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from confluent_kafka.admin import AdminClient, OffsetSpec

from beamrec.io.gaps import Gap, note_gap
from beamrec.io.kafka_client import Address
from beamrec.io.kafka_partition import Partition, Place, place_of
from beamrec.io.kafka_requests import Question, another_topic, ask_offsets
from beamrec.io.source_log import Part, SourceLog
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError, UsageError

__all__ = ["Places", "check_bounds", "partition_of", "source_of"]


def source_of(topic: str, partition: int) -> str:
    """A partition's name in the ledger."""
    return f"kafka:{topic}/{partition}"


def partition_of(source: str, topic: str) -> int | None:
    """The partition of a topic that has this name in the ledger; None if it is something else."""
    begin = source_of(topic, 0)[:-1]
    number = source.removeprefix(begin)
    return int(number) if source.startswith(begin) and number.isdecimal() else None


def check_bounds(address: Address) -> None:
    """Checks `start`, `end` and `lost` of a URI; raises UsageError."""
    _spec(address, "start", ("horizon", "latest"))
    _spec(address, "end", ("latest",))
    if address.get("lost", "error") not in ("error", "skip"):
        raise UsageError(f"{address.option}: lost: expected error or skip, got {address.get('lost')!r}")


def _spec(address: Address, name: str, words: tuple[str, ...]) -> OffsetSpec | None:
    """The place that `start` or `end` names, as the broker is asked for it."""
    text = address.get(name)
    if not text or text in words:
        return {"horizon": OffsetSpec.earliest(), "latest": OffsetSpec.latest()}.get(text)
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        time_ = None
    if time_ is None or time_.tzinfo is None or time_ > datetime.now(UTC):
        expected = ", ".join((*words, "a time that has passed such as 2026-11-22T12:00:00Z"))
        raise UsageError(f"{address.option}: {name}: expected {expected}, got {text!r}")
    return OffsetSpec.for_timestamp(int(time_.timestamp() * 1000))


class Places:
    """Finds the places of partitions without waiting for the broker.

    Attributes:
      owed: partitions of this reader with sealed records that had no fate yet when it began.

    Args:
      store: the output folder.
      log: of it; what it holds of this topic is read here.
      see_sealed: gets what was found in the log later: by this reader's own partitions, and by `remember`.
      owns: whether this reader reads a partition.
      resume: the position of a source up to which everything has a fate.
    """

    def __init__(
        self,
        address: Address,
        admin: AdminClient,
        store: Store,
        log: SourceLog,
        see_sealed: Callable[[Collection[Part]], None],
        owns: Callable[[int], bool],
        resume: Callable[[str], int],
    ) -> None:
        self._address, self._admin, self._store, self._log = address, admin, store, log
        self._see_sealed, self._resume = see_sealed, resume
        self._ledger: dict[int, list[Part]] = {}
        self._question: Question | None = None
        self._specs = {"first": OffsetSpec.earliest(), "last": OffsetSpec.latest()}
        for name, words in (("start", ("horizon", "latest")), ("end", ("latest",))):
            spec = _spec(address, name, words)
            if spec is not None:
                self._specs[name] = spec
        self.remember(log.read())
        self.owed = frozenset(
            number
            for number, parts in self._ledger.items()
            if owns(number) and parts[-1].position > resume(parts[-1].source)
        )

    def knows(self, number: int) -> bool:
        """Whether the ledger had the partition when this reader began, or it has had a start since."""
        return number in self._ledger

    def find(
        self,
        wanted: Collection[int],
        known: Collection[int],
        topic_id: str,
        adrift: Mapping[int, Partition],
    ) -> dict[int, Partition]:
        """The wanted partitions from the place that they are read from; {} while the answer is on its way.

        Args:
          known: all partitions of the topic.
          topic_id: of the topic, as the cluster says.
          adrift: partitions that were read and whose place the broker no longer has.

        Raises:
          BeamrecError: the ledger's places are of another topic, or the records there are gone.
        """
        if self._question is None:
            asked = tuple(wanted) if self._ledger else tuple(known)
            self._question = Question(
                self._address.where,
                lambda: ask_offsets(self._admin, self._address.topic, asked, self._specs),
            )
        answer = self._question.answer()
        if answer is None:
            return {}
        self._question = None
        offsets: dict[int, dict[str, int]] = {}
        for (name, number), found in answer.items():
            offsets.setdefault(number, {})[name] = found.offset
        self._seal_starts(offsets, topic_id)
        partitions = {n: adrift.get(n) or self._from_ledger(n, topic_id) for n in wanted if n in offsets}
        for number, partition in partitions.items():
            partition.restart()
            if "end" in offsets[number]:
                partition.limit = _or_last("end", offsets[number])
            self._check(partition, offsets[number])
        return partitions

    def _check(self, partition: Partition, offsets: Mapping[str, int]) -> None:
        """Compares where a partition is to be read with what the broker still has."""
        first, last = offsets["first"], offsets["last"]
        if last < partition.base:
            raise BeamrecError(
                f"{partition.source} ends at offset {last} although it was read up to {partition.base}: its "
                "log was cut (an unclean election of its leader?); start a new output folder"
            )
        if first > partition.base:
            self._skip_lost(partition, first)

    def _skip_lost(self, partition: Partition, first: int) -> None:
        lost = f"{partition.source}: the records at offsets {partition.base} to {first - 1} are gone"
        if partition.owed:
            raise BeamrecError(
                f"{lost} (retention), and some of them were counted and have no fate: they cannot be read "
                "again; raise the topic's retention, and start a new output folder"
            )
        if self._address.get("lost", "error") == "error":
            raise BeamrecError(
                f"{lost} before they were read (retention): add lost=skip to the URI to go on with what is "
                "there, and raise the topic's retention"
            )
        last = self._log.last(partition.source)
        since_us, reason = last.arrival_us if last else 0, f"{lost} (retention)"
        gap = Gap(partition.source, partition.sealed_to, since_us, reason, first - partition.base)
        note_gap(self._store, gap)
        place = Place(partition.topic_id, first)
        end = partition.sealed_to
        part = Part(partition.source, end, end, 0, time.time_ns() // 1000, str(place))
        found = self._log.seal_on([part])
        for held in found:
            if held.source == part.source:
                partition.add_sealed(held)
        self._see_sealed([held for held in found if held.source != part.source])
        partition.restart()

    def _from_ledger(self, number: int, topic_id: str) -> Partition:
        parts = self._ledger[number]
        partition = Partition.resume(parts, self._resume(parts[-1].source))
        if topic_id and partition.topic_id and partition.topic_id != topic_id:
            raise another_topic(self._address.where)
        return partition

    def _seal_starts(self, offsets: Mapping[int, Mapping[str, int]], topic_id: str) -> None:
        """Fixes where partitions begin that the ledger does not have yet."""
        now_us, first_start = time.time_ns() // 1000, not self._ledger
        starts = []
        for number, found in offsets.items():
            if number not in self._ledger:
                # All that was ever in a partition that was added came after the start, unless that is a time;
                # what of it has expired was lost.
                added = not first_start and self._address.get("start") in ("", "horizon", "latest")
                offset = 0 if added else _or_last("start", found)
                source = source_of(self._address.topic, number)
                starts.append(Part(source, 0, 0, 0, now_us, str(Place(topic_id, offset))))
        if starts:
            self._see_sealed(self._log.seal_on(starts))

    def remember(self, parts: Collection[Part]) -> None:
        """Keeps of each partition the parts that are not wholly fated, and at least the last."""
        for part in parts:
            number = partition_of(part.source, self._address.topic)
            if number is not None:
                kept = self._ledger.setdefault(number, [])
                kept[:] = [p for p in kept if p.position > self._resume(p.source)]
                place_of(part)
                kept.append(part)


def _or_last(name: str, offsets: Mapping[str, int]) -> int:
    """A place found by time; where nothing is that new it is the end. Without such a place the beginning."""
    offset = offsets.get(name, offsets["first"])
    return offset if offset >= 0 else offsets["last"]
