"""Offsets of a consumer group, for monitors of lag: committed only behind what has a fate.

Nothing is ever read from them. A thread of its own reads the fates, so that the reader does not wait for
them, and a commit that fails is tried again with the next.
"""

import logging
import threading
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException, TopicPartition

from beamrec.io.kafka_places import source_of
from beamrec.io.ledger import Progress
from beamrec.io.store import Store
from beamrec.schemas.errors import BeamrecError

__all__ = ["GroupOffsets"]

COMMIT_SECONDS = 30.0
_LOGGER = logging.getLogger(__name__)


class GroupOffsets:
    """Commits where the partitions of one reader stand, now and then, until it is closed.

    Args:
      consumer: of the group; its owner closes it, after this.
      store: the output folder.
      partitions: the numbers of the partitions that the reader reads now.
    """

    def __init__(
        self, consumer: Consumer, store: Store, topic: str, partitions: Callable[[], list[int]]
    ) -> None:
        self._consumer, self._store, self._topic, self._partitions = consumer, store, topic, partitions
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-group-offsets", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def commit(self) -> None:
        """Commits up to the last position of each partition before which everything has a fate."""
        progress = Progress.load(self._store)
        places = []
        for number in self._partitions():
            found = progress.get(source_of(self._topic, number))
            if found is not None and found.resume:
                places.append(TopicPartition(self._topic, number, found.resume))
        if places:
            self._consumer.commit(offsets=places, asynchronous=True)

    def _run(self) -> None:
        while True:
            try:
                self.commit()
            except (KafkaException, BeamrecError) as error:
                _LOGGER.warning("the offsets of the group were not committed: %s", error)
            if self._closed.wait(COMMIT_SECONDS):
                return
