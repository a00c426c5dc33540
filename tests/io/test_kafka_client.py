"""URIs of Kafka topics: what they say, what they must not say, and where the password comes from."""

import pickle
from pathlib import Path

import pytest

from beamrec.io.kafka_client import Address, check_topic, parse_address
from beamrec.schemas.errors import UnavailableError, UsageError


def parse(rest: str, *parameters: str) -> Address:
    return parse_address(f"kafka://{rest}", "--input", parameters)


def test_a_uri_names_brokers_topic_and_user():
    address = parse("shop%40x@b1:9092,b2,[::1]:9093/click.stream_1-a?start=latest&security=sasl_ssl", "start")
    assert (address.brokers, address.topic, address.user) == (
        "b1:9092,b2,[::1]:9093",
        "click.stream_1-a",
        "shop@x",
    )
    assert (address.get("start"), address.get("end", "never")) == ("latest", "never")
    assert address.where == "--input kafka://b1:9092,b2,[::1]:9093/click.stream_1-a"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("b1:9092", "expected kafka://host:port"),
        ("/topic", "expected kafka://host:port"),
        ("b1:9092,/topic", "expected kafka://host:port"),
        ("b1:port/topic", "expected kafka://host:port"),
        ("b1/to pic", "expected kafka://host:port"),
        ("b1/a/b", "expected kafka://host:port"),
        ("b1/t?starts=latest", "got 'starts'"),
        ("b1/t?security=tls", "security: expected plaintext, ssl, sasl_plaintext, sasl_ssl, got 'tls'"),
        ("u@b1/t?sasl=GSSAPI", "sasl: expected PLAIN"),
        ("b1/t?security=sasl_ssl", "and a user, kafka://user@…, go together"),
        ("u@b1/t?security=ssl", "and a user, kafka://user@…, go together"),
        ("u@b1/t?secret=hunter2", "expected the URI of a secret"),
    ],
)
def test_a_malformed_uri_says_what_is_expected(rest, message):
    with pytest.raises(UsageError, match=message):
        parse(rest, "start")


@pytest.mark.parametrize("rest", ["u:hunter2@b1:9092/t", "b1:9092/t?password=hunter2"])
def test_a_password_in_a_uri_is_refused_and_not_repeated(rest):
    with pytest.raises(UsageError, match="BEAMREC_KAFKA_PASSWORD") as caught:
        parse(rest)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "protocol"),
    [
        ("localhost:9092,127.0.0.1,[::1]:1/t", "plaintext"),
        ("u@localhost:9092/t", "sasl_plaintext"),
        ("localhost,b1/t", "ssl"),
        ("u@b1/t", "sasl_ssl"),
        ("b1/t?security=plaintext", "plaintext"),
    ],
)
def test_connections_off_the_loopback_use_tls_unless_told_not_to(rest, protocol):
    assert parse(rest).client()["security.protocol"] == protocol


def test_the_password_is_read_where_it_is_used_and_travels_nowhere(monkeypatch, tmp_path: Path):
    (tmp_path / "secret").write_text("from-the-file\n")
    monkeypatch.setenv("BEAMREC_KAFKA_PASSWORD", "from-the-environment")
    addresses = [parse("u@b1/t"), parse(f"u@b1/t?secret=file://{tmp_path}/secret&sasl=SCRAM-SHA-512")]
    for address, password in zip(addresses, ("from-the-environment", "from-the-file"), strict=True):
        assert address.client()["sasl.password"] == password
        assert b"from-the" not in pickle.dumps(address)
        assert "from-the" not in f"{address} {address.where}"
    assert addresses[1].client()["sasl.mechanism"] == "SCRAM-SHA-512"


def test_nobody_at_the_address_is_an_unavailable_system(monkeypatch):
    monkeypatch.setattr("beamrec.io.kafka_client._CONTACT_SECONDS", 2.0)
    with pytest.raises(UnavailableError, match=r"--input kafka://localhost:1/t: .*check hosts and ports"):
        check_topic(parse("localhost:1/t"))


def test_a_topic_that_is_not_there_is_wrong_usage(kafka):
    with pytest.raises(UsageError, match="there is no such topic"):
        check_topic(parse(f"{kafka.address}/missing"))
