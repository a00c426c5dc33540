"""Logins and TLS of Kafka on a real broker; passwords stand in no message."""

import threading
from pathlib import Path
from typing import Any

import pytest

from beamrec.io import kafka_client
from beamrec.io.events import SourceOptions
from beamrec.io.kafka import open_sources
from beamrec.io.kafka_client import parse_address
from beamrec.io.kafka_sink import LineProducer
from beamrec.schemas.errors import UnavailableError


@pytest.mark.parametrize(("user", "mechanism"), [("shop", "PLAIN"), ("scram", "SCRAM-SHA-512")])
def test_a_login_over_verified_tls_reads_and_writes(secure_kafka, monkeypatch, tmp_path, user, mechanism):
    broker, password, authority = secure_kafka
    monkeypatch.setenv("BEAMREC_KAFKA_PASSWORD", password)
    topic = broker.create_topic()
    uri = broker.secure_uri(topic, user, security="sasl_ssl", sasl=mechanism, ca=str(authority))
    sink = LineProducer(parse_address(uri, "--also"), threading.Event())
    assert sink.send([("e1", b"1")]) == 0
    sink.close()
    (source,) = open_sources(uri, SourceOptions(str(tmp_path), "run"))
    reader = source.create_reader(None, None)
    while not reader.advance():
        pass
    assert reader.get_current().column("payload").to_pylist() == [b"1"]
    reader.close()


def refusal(uri: str, folder: Path) -> str:
    with pytest.raises(UnavailableError) as caught:
        open_sources(uri, SourceOptions(str(folder), "run"))
    return str(caught.value)


def test_a_wrong_password_is_refused_at_once_and_not_repeated(secure_kafka, monkeypatch, tmp_path):
    broker, _, authority = secure_kafka
    monkeypatch.setenv("BEAMREC_KAFKA_PASSWORD", "hunter2")
    uri = broker.secure_uri("t", "shop", security="sasl_ssl", ca=str(authority))
    message = refusal(uri, tmp_path)
    assert "check the user and the password in BEAMREC_KAFKA_PASSWORD" in message
    assert "hunter2" not in message


def test_a_server_that_nobody_vouches_for_is_refused(secure_kafka, monkeypatch, tmp_path):
    broker, password, _ = secure_kafka
    monkeypatch.setenv("BEAMREC_KAFKA_PASSWORD", password)
    message = refusal(broker.secure_uri("t", "shop", security="sasl_ssl"), tmp_path)
    assert "certificate" in message
    assert "check ca=" in message


def test_a_broker_without_tls_is_not_spoken_to_by_mistake(kafka: Any, monkeypatch, tmp_path):
    """As for every host off the loopback, where TLS is the default."""
    monkeypatch.setattr(kafka_client, "_CONTACT_SECONDS", 3.0)
    message = refusal(kafka.uri("t", security="ssl"), tmp_path)
    assert "if they speak no TLS and the network is trusted, say security=plaintext" in message
