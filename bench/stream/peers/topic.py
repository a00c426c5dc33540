"""The topic, read from its beginning, and its offsets committed behind what was written."""

import contextlib
import time
import uuid
from types import TracebackType

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from shop_events import Message

__all__ = ["Topic"]

_COMMIT_SECONDS = 1.0


class Topic:
    """All partitions of a topic, in one consumer."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"peer-{uuid.uuid4().hex[:12]}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self._committed = time.monotonic()
        found = self._consumer.list_topics(topic, timeout=30).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in found.partitions])

    def __enter__(self) -> "Topic":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(KafkaException):  # nothing was read, or the broker is away
            self._consumer.commit(asynchronous=False)
        self._consumer.close()

    def read(self, most: int, seconds: float) -> list[Message]:
        """Up to `most` messages, those that have come when the time is up."""
        messages = []
        for record in self._consumer.consume(most, seconds):
            if record.error() is not None:
                raise KafkaException(record.error())
            place = f"{record.topic()}/{record.partition()}/{record.offset()}"
            messages.append(Message(record.value() or b"", place, record.timestamp()[1]))
        return messages

    def commit(self) -> None:
        """Says that what was read was served; committed once a second, without waiting for the answer."""
        if time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self._consumer.commit(asynchronous=True)
            self._committed = time.monotonic()
