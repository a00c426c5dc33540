"""The Kafka source on a real broker that expires records, loses topics, or is away: never a silent gap."""

import dataclasses
import time

import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from kafka_reader_fixtures import numbers, payloads, place

from beamrec.io import kafka as kafka_source
from beamrec.io import kafka_requests
from beamrec.io.gaps import read_gaps
from beamrec.io.ledger import account
from beamrec.schemas.errors import BeamrecError


def test_records_that_expired_before_they_were_read_are_an_error(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    kafka_job.fate(kafka_job.all_of(kafka_job.reader(kafka.uri(topic))))
    kafka.send(topic, numbers(5, 3))
    kafka.delete_records(topic, 0, before=6)
    with pytest.raises(BeamrecError, match=r"offsets 3 to 5 are gone before they were read .* add lost=skip"):
        kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    rows = kafka_job.all_of(kafka_job.reader(kafka.uri(topic, lost="skip")))
    assert payloads(rows) == [b"6", b"7"]
    assert [place(row) for row in rows] == [(3, 7), (7, 8)]
    assert kafka_job.all_of(kafka_job.reader(kafka.uri(topic))) == rows
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled
    (gap,) = read_gaps(kafka_job.store)
    assert (gap.source, gap.after, gap.at_most) == (f"kafka:{topic}/0", 3, 3)


def test_what_expired_in_an_added_partition_before_it_was_found_is_an_error(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    kafka_job.fate(kafka_job.all_of(kafka_job.reader(kafka.uri(topic, start="latest"))))
    kafka.add_partitions(topic, 2)
    kafka.send(topic, numbers(5), partition=1)
    kafka.delete_records(topic, 1, before=3)
    with pytest.raises(BeamrecError, match=r"/1: the records at offsets 0 to 2 are gone before they were"):
        kafka_job.all_of(kafka_job.reader(kafka.uri(topic, start="latest")))
    rows = kafka_job.all_of(kafka_job.reader(kafka.uri(topic, start="latest", lost="skip")))
    assert payloads(rows) == [b"3", b"4"]
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled
    assert [(gap.source, gap.at_most) for gap in read_gaps(kafka_job.store)] == [(f"kafka:{topic}/1", 3)]


def test_records_that_expired_before_they_had_a_fate_are_an_error(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(5))
    kafka_job.fate(kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))[:2])
    kafka.delete_records(topic, 0, before=2)
    rows = kafka_job.all_of(kafka_job.reader(kafka.uri(topic)))
    assert payloads(rows) == numbers(3, 2), "what has a fate is not needed again"
    kafka.delete_records(topic, 0, before=4)
    with pytest.raises(BeamrecError, match=r"offsets 2 to 3 are gone .* counted and have no fate"):
        kafka_job.all_of(kafka_job.reader(kafka.uri(topic, lost="skip")))


@pytest.mark.parametrize("lost", ["error", "skip"])
def test_records_that_expire_while_they_are_read_are_an_error_or_counted(kafka_job, kafka, lost):
    topic = kafka.create_topic()
    reader = kafka_job.reader(kafka.uri(topic, lost=lost))
    assert kafka_job.all_of(reader) == []
    # More than the client fetches ahead of us.
    kafka.send(topic, [b"x" * 900_000] * 40)
    kafka.delete_records(topic, 0, before=40)
    kafka.send(topic, [b"last"])
    if lost == "error":
        with pytest.raises(BeamrecError, match="are gone before they were read"):
            kafka_job.all_of(reader)
        return
    rows = kafka_job.all_of(reader)
    assert payloads(rows)[-1] == b"last"
    assert len(rows) < 41
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled


def test_a_topic_that_was_made_again_is_an_error(kafka_job, kafka):
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    reader = kafka_job.reader(kafka.uri(topic))
    kafka_job.fate(kafka_job.all_of(reader))
    kafka.delete_topic(topic)
    kafka.make_topic(topic)
    kafka.send(topic, numbers(9))
    for each in (reader, kafka_job.reader(kafka.uri(topic))):
        with pytest.raises(BeamrecError, match="the topic was deleted and made again, or this is another"):
            kafka_job.read(each, lambda _: False)


def test_a_topic_that_is_gone_is_an_error_in_the_end(kafka_job, kafka, monkeypatch):
    monkeypatch.setattr(kafka_requests, "_GONE_SECONDS", 2.0)
    topic = kafka.create_topic()
    reader = kafka_job.reader(kafka.uri(topic))
    assert kafka_job.all_of(reader) == []
    kafka.delete_topic(topic)
    with pytest.raises(BeamrecError, match="the topic was deleted"):
        kafka_job.read(reader, lambda _: False)


def test_a_broker_that_is_away_is_waited_for(kafka_job, kafka, monkeypatch):
    """Neither an error, nor the end of an idle source, nor time that passes."""
    monkeypatch.setattr(kafka_source, "_STALE_SECONDS", 1.0)
    topic = kafka.create_topic()
    kafka.send(topic, numbers(3))
    reader = kafka_job.reader(kafka.uri(topic), max_delay_seconds=0)
    rows = kafka_job.all_of(reader)
    kafka.kill()
    down_since = time.time()
    assert kafka_job.read(reader, lambda _: reader.busy(True)) == []
    reader.options = dataclasses.replace(reader.options, stop_when_idle_seconds=2)
    away = kafka_job.read(reader, lambda _: time.time() > down_since + 5)
    assert away == []
    assert float(reader.get_watermark()) < down_since + 0.5
    kafka.start()
    kafka.send(topic, numbers(3, 3))
    rows += kafka_job.read(reader, lambda rows: len(rows) >= 3)
    assert payloads(rows) == numbers(6)
    kafka_job.read(reader, lambda _: reader.get_watermark() == MAX_TIMESTAMP)
    kafka_job.fate(rows)
    assert account(kafka_job.store).reconciled
