"""An unbounded source of events from a Kafka topic.

    kafka://[user@]host:port,host:port/topic?start=horizon|latest|<RFC 3339>&end=&group=&lost=error|skip

Partition `p` belongs to split `p` mod splits; partitions that are added while the job runs are found within
seconds and read from their beginning. Offsets are kept in the ledger, never by a consumer group: nothing is
subscribed, balanced or committed by itself. With `group`, what has a fate is committed for monitors of lag.

The arrival time of a record is its timestamp, but never later than when it was first seen. Transactions are
read when they are committed. An outage of the brokers is waited out.
"""

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from beamrec.io.event_interval import with_bounds
from beamrec.io.events import SourceOptions
from beamrec.io.kafka_client import Address, Heard, check_topic, explain, may_pass, parse_address
from beamrec.io.kafka_group import GroupOffsets
from beamrec.io.kafka_partition import Partition, Record
from beamrec.io.kafka_places import Places, check_bounds, partition_of
from beamrec.io.kafka_requests import Question, TopicWatch, ask_offsets
from beamrec.io.ledger_source import LedgerSource
from beamrec.io.reader import LedgerReader, Row, raw_events
from beamrec.io.source_log import Part

__all__ = ["KafkaTopic", "identity", "open_interval", "open_sources"]

_PARAMETERS = frozenset({"start", "end", "group", "lost"})
_FETCH_MESSAGES = 1000  # at a time
_FETCH_BYTES = 4 << 20  # and sealed together
_FETCH_ROWS = 10_000
_QUEUE_KIB = 16 << 10  # that the client fetches ahead
_ENDS_SECONDS = 0.2
_STALE_SECONDS = 5.0  # without an answer nothing is known about the ends
_Whole = tuple[Partition, Part, int, list[Record]]


def open_sources(uri: str, options: SourceOptions) -> "list[KafkaTopic]":
    """One source a split.

    Raises:
      UsageError: the URI is malformed, or there is no such topic.
      UnavailableError: the brokers do not answer or refuse.
    """
    address = _address(uri)
    check_topic(address)
    return [KafkaTopic(address, options, index) for index in range(options.splits)]


def open_interval(uri: str, options: SourceOptions, begin: datetime, end: datetime) -> "list[KafkaTopic]":
    """See io.event_interval."""
    return open_sources(with_bounds(uri, begin, end), options)


def identity(uri: str) -> str:
    """The topic by name; that it is the same one still is known by the id in the ledger's places."""
    return f"kafka:{_address(uri).topic}"


def _address(uri: str) -> Address:
    address = parse_address(uri, "--input", _PARAMETERS)
    check_bounds(address)
    return address


@dataclasses.dataclass(frozen=True)
class KafkaTopic(LedgerSource):
    """A topic, read from where the ledger of the output says that it stands.

    Attributes:
      address: of the topic; the password is read on the worker.
      options: what the source needs to know of the job.
      split_index: this is one of `options.splits` readers.
    """

    address: Address
    options: SourceOptions
    split_index: int = 0

    def make_reader(self) -> "_Reader":
        """A reader that resumes from the ledger."""
        return _Reader(self)

    def owns(self, partition: int) -> bool:
        """Whether this split reads the partition."""
        return partition % self.options.splits == self.split_index


class _Reader(LedgerReader):
    def __init__(self, source: KafkaTopic) -> None:
        super().__init__(source.options)
        self._address, self._owns = source.address, source.owns
        self._heard = Heard(self._address.where)
        self._admin = AdminClient({**self._address.client(), "error_cb": self._heard})
        self._watch = TopicWatch(self._address, self._admin)
        self._partitions: dict[int, Partition] = {}
        self._adrift: dict[int, Partition] = {}
        self._places = Places(
            self._address, self._admin, self._store, self.log, self._see_sealed, source.owns, self._resume
        )
        self._released: set[int] = set()
        self._ends = Question(self._address.where, self._ask_ends)
        self._next_ends = 0.0
        self._consumer = Consumer(self._settings())
        self._group = self._commit_offsets() if self._address.get("group") else None

    def next_batches(self, seal_new: bool) -> Iterator[pa.RecordBatch] | None:
        """See LedgerReader."""
        self._admin.poll(0)
        self._watch.poll()
        if self._watch.topic_id is None and self._heard.refused is not None:
            # A login that never succeeded; one that fails later (a password that changes) is waited out.
            raise explain(self._address.where, self._heard.refused)
        self._place(seal_new)
        # Before anything is fetched: an end that was reached says that all before it was handed out.
        self._follow_ends()
        self._advance_watermark(seal_new)
        self._fetch()
        self._seal(seal_new)
        found = [(p, *whole) for p in self._partitions.values() for whole in p.whole_parts()]
        return self._to_batches(found) if found else None

    def busy(self, seal_new: bool) -> bool:
        """Records are on their way until the broker has said lately that there are no more."""
        if self._owed():
            return True
        if not seal_new:
            return False
        if self._watch.topic_id is None or self._unplaced(seal_new):
            return True
        stale = time.time() - self._ends.answered > _STALE_SECONDS
        return any(not p.finished and (stale or not p.at_end) for p in self._partitions.values())

    def at_end(self) -> bool:
        """Every partition was read to where a bounded read ends."""
        return self._bounded and all(p.finished for p in self._partitions.values())

    def positions(self) -> tuple[tuple[str, str], ...]:
        """The next offset of each partition."""
        return tuple((p.source, str(p.next_new)) for _, p in sorted(self._partitions.items()))

    def release(self) -> None:
        """See LedgerReader."""
        if self._group:
            self._group.close()
        self._consumer.close()

    @property
    def _bounded(self) -> bool:
        return bool(self._address.get("end"))

    def _settings(self) -> dict[str, Any]:
        return {
            **self._address.client(),
            # librdkafka asks for a group's name, even where there is no group.
            "group.id": self._address.get("group") or "beamrec",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": _QUEUE_KIB,
            # A broker that answers with each record that comes has twice the work: 45 against 27 % of a core
            # at 2,800 events/s. What comes slowly is 20 ms late.
            "fetch.min.bytes": 100_000,
            "fetch.wait.max.ms": 20,
            "fetch.error.backoff.ms": 100,
            "error_cb": self._heard,
        }

    def _commit_offsets(self) -> GroupOffsets:
        return GroupOffsets(self._consumer, self._store, self._address.topic, lambda: list(self._partitions))

    def _resume(self, source: str) -> int:
        found = self._progress.get(source)
        return found.resume if found else 0

    def _owed(self) -> set[int]:
        """Partitions of which sealed records are still to be handed out."""
        begun = self._partitions | self._adrift
        return {n for n, p in begun.items() if p.owed} | (self._places.owed - begun.keys())

    def _unplaced(self, seal_new: bool) -> list[int]:
        """Partitions that are to be read and have no place yet."""
        owed = self._owed()
        # A bounded read takes no partitions that were added after it began.
        new = seal_new and not (self._bounded and self._partitions)
        mine = (n for n in self._watch.partitions if self._owns(n) and n not in self._partitions)
        return [n for n in mine if n in owed or new or (seal_new and self._places.knows(n))]

    def _place(self, seal_new: bool) -> None:
        wanted = self._unplaced(seal_new)
        if not wanted or self._watch.topic_id is None:
            return
        found = self._places.find(wanted, self._watch.partitions, self._watch.topic_id, self._adrift)
        for number, partition in found.items():
            self._partitions[number] = partition
            self._adrift.pop(number, None)
            self._consumer.incremental_assign([TopicPartition(self._address.topic, number, partition.base)])

    def _fetch(self) -> None:
        """Takes what the client has fetched by now."""
        size = rows = 0
        while self._partitions and size < _FETCH_BYTES and rows < _FETCH_ROWS:
            messages = self._consumer.consume(_FETCH_MESSAGES, 0)
            for message in messages:
                self._take(message)
                size += len(message)
            rows += len(messages)
            if len(messages) < _FETCH_MESSAGES:
                break
        self._release_finished()

    def _release_finished(self) -> None:
        """What lies beyond the end of a bounded read is not fetched."""
        finished = {n for n, p in self._partitions.items() if p.finished} - self._released
        if finished:
            self._consumer.incremental_unassign([TopicPartition(self._address.topic, n) for n in finished])
            self._released |= finished

    def _take(self, message: Message) -> None:
        number, error = message.partition(), message.error()
        partition = self._partitions.get(-1 if number is None else number)
        if error is not None:
            self._heed(error, number, partition, message.offset())
        elif partition is not None:
            kind, millis = message.timestamp()
            stamp_us = -1 if kind == TIMESTAMP_NOT_AVAILABLE else millis * 1000
            partition.take(Record(message.offset() + 1, stamp_us, message.value() or b""))

    def _heed(self, error: KafkaError, number: int, partition: Partition | None, offset: int) -> None:
        if partition is not None and error.code() == KafkaError._PARTITION_EOF:
            partition.reached = max(partition.reached, offset)
        elif partition is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
            # Its offset is out of range: find out why, and go on or fail with the reason.
            self._consumer.incremental_unassign([TopicPartition(self._address.topic, number)])
            self._adrift[number] = self._partitions.pop(number)
        elif not may_pass(error):
            raise explain(self._address.where, error)
        else:
            self._heard(error)

    def _seal(self, seal_new: bool) -> None:
        now_us = time.time_ns() // 1000
        parts: dict[int, Part] = {}
        for number, partition in self._partitions.items():
            if not seal_new:
                partition.drop_new()
            elif part := partition.new_part(now_us):
                parts[number] = part
        if parts:
            # Another reader may have been here first, and gone on: what it sealed is read as it is sealed.
            self._see_sealed(self.log.seal_on(list(parts.values())))

    def _see_sealed(self, parts: Collection[Part]) -> None:
        """Takes what the log has more, of whichever partition."""
        for part in parts:
            number = partition_of(part.source, self._address.topic)
            if number is None:
                continue
            partition = self._partitions.get(number) or self._adrift.get(number)
            if partition is None:
                self._places.remember([part])
            else:
                partition.add_sealed(part)

    def _ask_ends(self) -> Any:
        latest = {"end": OffsetSpec.latest()}
        return ask_offsets(self._admin, self._address.topic, list(self._partitions), latest)

    def _follow_ends(self) -> None:
        """Learns which partitions were read to their end."""
        if not self._partitions or time.monotonic() < self._next_ends:
            return
        answer = self._ends.answer()
        if answer is None:
            return
        self._next_ends = time.monotonic() + _ENDS_SECONDS
        for (_, number), found in answer.items():
            if number in self._partitions:
                self._partitions[number].see_end(found.offset, int(self._ends.answered * 1e6))

    def _advance_watermark(self, seal_new: bool) -> None:
        if self._watch.topic_id is None or self._unplaced(seal_new):
            return
        fronts = [p.front_us for p in self._partitions.values() if not p.finished]
        known = [front for front in fronts if front is not None]
        if len(known) == len(fronts):
            self.advance_watermark(min(known, default=self._watch.answered * 1e6) / 1e6)

    def _to_batches(self, found: Sequence[_Whole]) -> Iterator[pa.RecordBatch]:
        """Batches of RAW_EVENTS, without the events that already have a fate."""
        rows: list[Row] = []
        fronts: dict[str, int] = {}
        for _, part, begin, records in found:
            after = begin
            for record in records:
                arrival = min(record.stamp_us, part.arrival_us) if record.stamp_us >= 0 else part.arrival_us
                fronts[part.source] = max(fronts.get(part.source, arrival), arrival)
                if not self.fated(part.source, record.position):
                    rows.append((part.source, after, record.position, arrival, record.value))
                after = record.position
                if len(rows) == self.options.batch_rows:
                    yield raw_events(rows)
                    rows = []
        if rows:
            yield raw_events(rows)
        for partition, *_ in found:
            partition.see_arrival(fronts.get(partition.source))
