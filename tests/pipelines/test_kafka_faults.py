"""The streaming job on a real Kafka broker, both killed, partitions added: nothing lost, nothing twice."""

import collections
import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from progress_fixtures import wait_for_more

from beamrec.io.ledger import account, missing_segments
from beamrec.io.store import LocalStore

pytestmark = pytest.mark.faults

SHORT = os.environ.get("BEAMREC_FAULTS") == "short"
KILLS = 2 if SHORT else 5
RECORDS = 3_000 if SHORT else 100_000
A_SECOND = 200 if SHORT else 1_000
PAUSE = 2 if SHORT else 4


class Clicks(threading.Thread):
    """Sends events at a steady rate to a random partition of those that there are, through every outage.

    When as many were sent as belong to the test they become few, until it is stopped.
    """

    def __init__(self, kafka: Any, topic: str, partitions: int) -> None:
        super().__init__(daemon=True)
        self._kafka, self._topic, self.partitions = kafka, topic, partitions
        self._random = random.Random(5)
        self._stopped = threading.Event()
        self.sent = 0

    def run(self) -> None:
        producer = self._kafka.producer(
            # Idempotent: a producer's own retry would be a duplicate, which is another test's business.
            enable_idempotence="true",
            message_timeout_ms="0",
            topic_metadata_refresh_interval_ms="500",
        )
        while self.sent < RECORDS or not self._stopped.is_set():
            # Until the kills are over there is always something on its way, however slow the machine.
            for _ in range(A_SECOND // 20 if self.sent < RECORDS else 1):
                self._send(producer)
            producer.poll(0)
            time.sleep(0.05)  # not in `poll`, which returns at the first answer
        assert producer.flush(300) == 0

    def _send(self, producer: Any) -> None:
        try:
            partition = self._random.randrange(self.partitions)
            producer.produce(self._topic, self._event(), partition=partition)
        except KafkaException as error:
            # A partition that was just added, which the client has not heard of.
            if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                raise
        else:
            self.sent += 1

    def stop(self) -> None:
        """Returns when as many were sent as belong to the test."""
        self._stopped.set()
        self.join()

    def _event(self) -> bytes:
        event = {
            "session_id": f"s{self.sent}",
            "event_id": f"e{self.sent}",
            "customer_number": self._random.choice([103, 112, 999_999]),
            "city": "Nantes",
            "country": "France",
            "credit_limit": 21000,
            "browse_history": [],
        }
        return json.dumps(event).encode()


def test_killed_jobs_and_brokers_and_new_partitions_lose_and_double_nothing(
    stream_job: Callable[..., Any], kafka: Any, figures: Callable[..., None]
) -> None:
    topic, out = kafka.create_topic(3), kafka.create_topic(2)
    job = stream_job("--window-seconds=2", "--max-delay=1", "--splits=2", f"--also={kafka.uri(out)}")
    job.input = kafka.uri(topic, group=f"lag-{topic}")
    clicks = Clicks(kafka, topic, partitions=3)
    clicks.start()
    draw = random.Random(7)
    for kill in range(KILLS):
        job.start()
        if kill % 2 == 0:
            wait_for_more(job)
        kafka.add_partitions(topic, 3 + 2 * (kill + 1))
        clicks.partitions = 3 + 2 * (kill + 1)
        time.sleep(draw.uniform(0, PAUSE))
        if kill % 2 == 0:
            kafka.kill()
            time.sleep(draw.uniform(0, 2))
            kafka.start()
        time.sleep(draw.uniform(0, PAUSE))
        job.kill()
    job.start("--stop-when-idle=3")
    clicks.stop()
    result = job.finish(timeout=900)
    assert result["ok"], result
    counted = collections.Counter(record["event_id"] for _, record in job.visible())
    lost = [f"e{n}" for n in range(clicks.sent) if f"e{n}" not in counted]
    twice = [event for event, times in counted.items() if times != 1]
    assert (lost, twice) == ([], [])
    store = LocalStore(job.output)
    found = account(store)
    assert found.reconciled, found
    assert found.counts.out == found.counts.records_in == clicks.sent >= RECORDS
    assert missing_segments(store) == []
    sent = {key.decode() for _, key, _ in kafka.records(out)}
    assert [event for event in counted if event not in sent] == [], "out to Kafka it goes at least once"
    behind_fates(kafka, topic)
    figures(
        records=clicks.sent,
        kills_of_the_job=KILLS,
        kills_of_the_broker=(KILLS + 1) // 2,
        partitions=f"3 to {clicks.partitions}",
        lost=len(lost),
        visible_twice=len(twice),
        counts=found.counts.to_dict(),
    )


def behind_fates(kafka: Any, topic: str) -> None:
    """What was committed for monitors of lag is never beyond the end; in half a minute something was."""
    committed = kafka.group_offsets(f"lag-{topic}", topic)
    ends = collections.Counter(partition for partition, *_ in kafka.records(topic))
    assert committed or SHORT
    assert all(offset <= ends[partition] for partition, offset in committed.items())
