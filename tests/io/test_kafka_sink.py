"""The Kafka sink on a real broker: every visible line, under its id, whatever happens to the broker."""

import collections
import os
import threading

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from beamrec.io import kafka_sink
from beamrec.io.kafka_client import parse_address
from beamrec.io.kafka_sink import LineProducer, open_sink
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError
from beamrec.schemas.events import OUTCOMES


def outcomes(*rows: tuple[str, str, bytes]) -> pa.RecordBatch:
    """(event id, fate, line) as OUTCOMES."""
    common = {"source": "kafka:t/0", "after": 0, "position": 1, "folder": "recommendations", "hour": 0}
    return pa.RecordBatch.from_pylist(
        [common | {"event_id": event_id, "fate": fate, "line": line} for event_id, fate, line in rows],
        schema=OUTCOMES,
    )


@pytest.fixture
def producer(kafka):
    made = []

    def make(topic: str) -> LineProducer:
        address = parse_address(kafka.uri(topic), "--also")
        made.append(LineProducer(address, threading.Event()))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_visible_lines_come_under_their_ids_and_nothing_else(kafka):
    topic = kafka.create_topic(3)
    batches = [
        outcomes(("e1", "visible", b'{"n":1}'), ("e2", "dead_letter", b"{}"), ("é3", "visible", b'{"n":3}')),
        outcomes(("e4", "expired", b"{}")),
    ]
    with beam.Pipeline("FnApiRunner") as pipeline:
        sent = pipeline | beam.Create(batches, reshuffle=False) | open_sink(kafka.uri(topic))
        assert_that(sent, equal_to([2, 0]))
    found = sorted(record[1:] for record in kafka.records(topic))
    assert found == [(b"e1", b'{"n":1}'), ("é3".encode(), b'{"n":3}')]


def test_all_copies_of_a_record_go_to_one_partition(kafka, producer):
    topic = kafka.create_topic(4)
    for _ in range(3):
        producer(topic).send([(f"e{i}", b"%d" % i) for i in range(40)])
    partitions = collections.defaultdict(list)
    for partition, key, _ in kafka.records(topic):
        partitions[key].append(partition)
    assert len(partitions) == 40
    assert all(len(found) == 3 and len(set(found)) == 1 for found in partitions.values())
    assert {found[0] for found in partitions.values()} == {0, 1, 2, 3}


def test_a_line_that_is_too_large_is_counted_and_stops_no_other(kafka, producer):
    topic = kafka.create_topic(max_message_bytes="20000")
    # Random, or compression would make it fit; the third is too large for the client itself.
    lines = [("e1", b"1"), ("e2", os.urandom(50_000)), ("e3", bytes(101 << 20)), ("e4", b"4")]
    assert producer(topic).send(lines) == 2
    assert [record[1:] for record in kafka.records(topic)] == [(b"e1", b"1"), (b"e4", b"4")]


def test_a_broker_that_is_away_is_waited_for_and_every_line_comes_once(kafka, producer):
    topic = kafka.create_topic()
    sink = producer(topic)
    assert sink.send([("e0", b"0")]) == 0
    kafka.kill()
    thread = threading.Thread(target=sink.send, args=([(f"e{i}", b"%d" % i) for i in range(1, 200)],))
    thread.start()
    thread.join(3)
    assert thread.is_alive(), "it does not return before the broker has the lines"
    kafka.start()
    thread.join(120)
    assert not thread.is_alive()
    assert [value for *_, value in kafka.records(topic)] == [b"%d" % i for i in range(200)]


def test_a_sink_that_is_stopped_gives_up_waiting(kafka):
    stopped = threading.Event()
    topic = kafka.create_topic()
    sink = LineProducer(parse_address(kafka.uri(topic), "--also"), stopped)
    kafka.kill()
    stopped.set()
    with pytest.raises(BeamrecError, match="stopped with 1 records under way"):
        sink.send([("e1", b"1")])
    sink.close()


def test_a_topic_that_is_deleted_is_an_error(kafka, producer, monkeypatch):
    monkeypatch.setattr(kafka_sink, "_UNKNOWN_SECONDS", 1.0)
    topic = kafka.create_topic()
    sink = producer(topic)
    sink.send([("e1", b"1")])
    kafka.delete_topic(topic)
    with pytest.raises(UnavailableError, match=topic):
        sink.send([("e2", b"2")])


def test_a_sink_has_no_start(kafka):
    with pytest.raises(UsageError, match="--also: kafka:// takes ca, cert, key, sasl, secret, security"):
        open_sink(kafka.uri("t", start="latest"))
