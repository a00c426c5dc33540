"""Questions to Kafka's brokers that nobody waits for: which partitions there are, and where they end.

Readers must not block: a question is put, and its answer is taken when it is there. One that fails for a
reason that may pass is put again; one that is refused is an error.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from beamrec.io.kafka_client import Address, explain, may_pass
from beamrec.schemas.errors import BeamrecError

__all__ = ["Question", "TopicWatch", "another_topic", "ask_offsets", "identity_of"]

_DESCRIBE_SECONDS = 3.0
# A broker that has just started knows no topics for a moment; one that is unknown for longer was deleted.
_GONE_SECONDS = 30.0
_TIMEOUT_SECONDS = 10.0
_LOGGER = logging.getLogger(__name__)
_Futures = Mapping[Any, "Future[Any]"]


class Question:
    """Futures on their way, asked again as a whole when one of them failed for a reason that may pass.

    Args:
      where: for messages.
      ask: puts the question; returns a future for each key of the answer.

    Attributes:
      answered: when the last question was put that has an answer (seconds since the epoch).
    """

    def __init__(self, where: str, ask: Callable[[], _Futures]) -> None:
        self._where, self._ask = where, ask
        self._futures: _Futures | None = None
        self._asked_at = self.answered = 0.0

    def answer(self) -> dict[Any, Any] | None:
        """The answers by key, once; None as long as they are not all here.

        Raises:
          UnavailableError: the brokers refuse to answer.
        """
        if self._futures is None:
            self._asked_at, self._futures = time.time(), self._ask()
        if not all(future.done() for future in self._futures.values()):
            return None
        futures, self._futures = self._futures, None
        try:
            answer = {key: future.result() for key, future in futures.items()}
        except KafkaException as error:
            if not may_pass(error.args[0]):
                raise explain(self._where, error.args[0]) from None
            self.failed(error.args[0])
            return None
        self.answered = self._asked_at
        return answer

    def failed(self, error: KafkaError) -> None:
        """Called when the question has to be put again."""
        _LOGGER.info("%s: %s; asking again", self._where, error.str())


def ask_offsets(
    admin: AdminClient, topic: str, partitions: Collection[int], specs: Mapping[str, OffsetSpec]
) -> dict[tuple[str, int], Future[Any]]:
    """Asks for several places of several partitions; keys are (name of the spec, partition).

    The end of a partition is where its first open transaction begins.
    """
    futures: dict[tuple[str, int], Future[Any]] = {}
    for name, spec in specs.items():
        asked = admin.list_offsets(
            {TopicPartition(topic, partition): spec for partition in partitions},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_TIMEOUT_SECONDS,
        )
        futures |= {(name, place.partition): future for place, future in asked.items()}
    return futures


def identity_of(description: Any) -> str:
    """The topic's id, which another topic of the same name does not have; "" if the broker knows none."""
    text = str(description.topic_id)
    return "" if set(text) <= {"A"} else text


class TopicWatch(Question):
    """Which partitions a topic has, asked every few seconds.

    Attributes:
      topic_id: None until the first answer.
      partitions: their numbers.
    """

    def __init__(self, address: Address, admin: AdminClient) -> None:
        topic = TopicCollection([address.topic])
        super().__init__(
            address.where, lambda: admin.describe_topics(topic, request_timeout=_TIMEOUT_SECONDS)
        )
        self.topic_id: str | None = None
        self.partitions: tuple[int, ...] = ()
        self._next = 0.0
        self._unknown_since: float | None = None

    def poll(self) -> None:
        """Takes the answer that is there and puts the next question when it is time.

        Raises:
          BeamrecError: the topic was deleted, or made again under its name.
        """
        if time.monotonic() < self._next:
            return
        answer = self.answer()
        if answer is None:
            return
        (description,) = answer.values()
        self._next = time.monotonic() + _DESCRIBE_SECONDS
        self._unknown_since = None
        found = identity_of(description)
        if self.topic_id is not None and found != self.topic_id:
            raise another_topic(self._where)
        self.topic_id = found
        self.partitions = tuple(sorted(partition.id for partition in description.partitions))

    def failed(self, error: KafkaError) -> None:
        """See Question; raises BeamrecError if the topic stays unknown."""
        super().failed(error)
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            return
        self._next = time.monotonic() + 1
        self._unknown_since = self._unknown_since or time.monotonic()
        if time.monotonic() - self._unknown_since > _GONE_SECONDS:
            raise BeamrecError(
                f"{self._where}: the topic was deleted; what was read of it and has no fate yet is lost. "
                "To go on with another topic, start a new output folder"
            )


def another_topic(where: str) -> BeamrecError:
    """The error of offsets that belong to a topic that is no more."""
    return BeamrecError(
        f"{where}: the topic was deleted and made again, or this is another cluster: the positions in the "
        "ledger mean nothing in it. Start a new output folder, or give the topic that was read before"
    )
