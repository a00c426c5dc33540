"""Recommendations out to a Kafka topic: at least once, under their event ids.

The producer is idempotent: what it sends again by itself, after an outage, comes once. A batch that is
processed again (a retry, a restart) is sent again, and duplicates that the files take out are sent too: a
consumer that minds tells them by `event_id`, which is the key as well, so that all copies of a record go to
one partition, and to the same one that Java's clients would choose.
"""

import dataclasses
import logging
import threading
from collections.abc import Iterable, Sequence

import apache_beam as beam
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from beamrec.io.kafka_client import Address, Heard, check_topic, explain, parse_address
from beamrec.io.sinks import SendLinesDoFn
from beamrec.schemas.errors import BeamrecError

__all__ = ["LineProducer", "WriteKafka", "open_sink"]

_OPTION = "--also"
_MAX_BYTES = 100 << 20  # of a record; the broker's and the topic's own limits are lower
_QUEUE_KIB = 32 << 10
_UNKNOWN_SECONDS = 30.0  # that a topic may be unknown to a broker that has just started
_LOGGER = logging.getLogger(__name__)


def open_sink(uri: str) -> "WriteKafka":
    """A transform that writes to the topic.

    Raises:
      UsageError: the URI is not of the form, or there is no such topic.
      UnavailableError: the brokers do not answer, or refuse.
    """
    address = parse_address(uri, _OPTION)
    check_topic(address)
    return WriteKafka(address)


class LineProducer:
    """Sends lines to a topic and waits until the brokers have them.

    Args:
      stopped: makes it give up.
    """

    def __init__(self, address: Address, stopped: threading.Event) -> None:
        self._address, self._stopped = address, stopped
        self._open = 0
        self._too_large: list[tuple[str, bytes]] = []
        self._refused: KafkaError | None = None
        self._producer = Producer(
            {
                **address.client(),
                "enable.idempotence": True,
                "message.timeout.ms": 0,  # an outage is waited out
                "message.max.bytes": _MAX_BYTES,
                "queue.buffering.max.kbytes": _QUEUE_KIB,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "topic.metadata.propagation.max.ms": int(_UNKNOWN_SECONDS * 1000),
                "linger.ms": 5,
                "error_cb": Heard(address.where),
            }
        )

    def send(self, lines: Sequence[tuple[str, bytes]]) -> int:
        """Sends lines, each under its key; returns how many were too large for the topic.

        Raises:
          UnavailableError: the brokers refuse.
          BeamrecError: `stopped` was set.
        """
        # Lines travel together, and are refused together for one that is too large: each again, alone.
        again = self._send(lines)
        return sum(len(self._send([line])) for line in again)

    def _send(self, lines: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Returns the lines that were refused for their size."""
        self._refused, self._too_large = None, []
        for key, line in lines:
            while not self._produce(key, line):
                self._wait()
        while self._open or self._refused:
            self._wait()
        return self._too_large

    def _produce(self, key: str, line: bytes) -> bool:
        """False if there is no room for the line now."""

        def delivered(error: KafkaError | None, _: Message) -> None:
            self._open -= 1
            if error is not None:
                self._failed(error, key, line)

        try:
            self._producer.produce(self._address.topic, line, key, on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException as error:
            self._failed(error.args[0], key, line)
        else:
            self._open += 1
        return True

    def _wait(self) -> None:
        """Lets deliveries be reported for a moment."""
        self._producer.poll(0.1)
        if self._refused is not None:
            raise explain(self._address.where, self._refused)
        if self._stopped.is_set():
            raise BeamrecError(f"{self._address.where}: stopped with {self._open} records under way")

    def _failed(self, error: KafkaError, key: str, line: bytes) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._too_large.append((key, line))
        else:
            self._refused = error

    def close(self) -> None:
        """Forgets what is under way."""
        self._producer.purge()
        self._producer.poll(0)


class _SendDoFn(SendLinesDoFn):
    def __init__(self, address: Address) -> None:
        super().__init__(address.where, "kafka", "the topic")
        self._address = address

    def setup(self) -> None:
        self._stopped = threading.Event()
        self._producer = LineProducer(self._address, self._stopped)

    def teardown(self) -> None:
        self._stopped.set()
        self._producer.close()

    def send(self, lines: Sequence[tuple[str, bytes]]) -> int:
        return self._producer.send(lines)


@dataclasses.dataclass(eq=False)
class WriteKafka(beam.PTransform):  # type: ignore[misc]
    """Writes the lines of visible outcomes to a topic, at least once, under their event ids."""

    address: Address

    def expand(self, outcomes: beam.PCollection) -> beam.PCollection:
        """[OUTCOMES] -> how many records were sent, a number a batch."""
        return outcomes | "Send" >> beam.ParDo(_SendDoFn(self.address)).with_output_types(int)
