"""Kafka topics by URI: addresses without passwords, TLS and SASL, and errors that say what to do.

`kafka://[user@]host:port,host:port/topic`, with the parameters that source and sink name. Off the loopback
the servers' certificates and names are verified unless the URI says `security=plaintext`.
"""

import dataclasses
import logging
import os
import re
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, TopicDescription

from beamrec.io.registry import reject_password
from beamrec.schemas.errors import BeamrecError, UnavailableError, UsageError
from beamrec.schemas.hosts import is_loopback

__all__ = [
    "CONNECTION",
    "PASSWORD_VARIABLE",
    "Address",
    "Heard",
    "check_topic",
    "explain",
    "may_pass",
    "parse_address",
]

PASSWORD_VARIABLE = "BEAMREC_KAFKA_PASSWORD"  # noqa: S105
CONNECTION = frozenset({"security", "sasl", "ca", "cert", "key", "secret"})
"""Parameters that say how the brokers are reached."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:,@\[\]/]+)(:\d{1,5})?")
_PROTOCOLS = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_CONTACT_SECONDS = 20.0
_LOG_SECONDS = 30.0
_LOGGER = logging.getLogger(__name__)
# Waiting does not mend these; everything else (no leader, a broker that is away, a timeout) may pass.
_REFUSALS = {
    KafkaError._AUTHENTICATION: f"check the user and the password in {PASSWORD_VARIABLE}",
    KafkaError.SASL_AUTHENTICATION_FAILED: f"check the user and the password in {PASSWORD_VARIABLE}",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "say sasl=PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 in the URI",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant the user READ (sink: WRITE) and DESCRIBE on the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "grant the user READ on the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant the user IDEMPOTENT_WRITE on the cluster",
    KafkaError._SSL: "check ca=, cert= and key=, or say security=plaintext if the network is trusted",
}


@dataclasses.dataclass(frozen=True)
class Address:
    """A topic and how its brokers are reached; holds no secret, only where one is.

    Attributes:
      brokers: host:port, separated by commas.
      option: the flag that it came from, for messages.
      parameters: of the URI.
    """

    brokers: str
    topic: str
    user: str
    option: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str = "") -> str:
        """A parameter of the URI."""
        return dict(self.parameters).get(name, default)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.option} kafka://{self.brokers}/{self.topic}"

    def client(self) -> dict[str, Any]:
        """librdkafka's settings of a connection, with the password: made where they are used, never kept."""
        settings: dict[str, Any] = {
            "bootstrap.servers": self.brokers,
            "client.id": "beamrec",
            "security.protocol": self._protocol(),
            "reconnect.backoff.max.ms": 2000,
            "log_level": 2,  # what it logs on the standard error it also tells `Heard`
        }
        files = {"ca": "ssl.ca.location", "cert": "ssl.certificate.location", "key": "ssl.key.location"}
        settings |= {setting: self.get(name) for name, setting in files.items() if self.get(name)}
        if self.user:
            settings["sasl.mechanism"] = self.get("sasl", "PLAIN")
            settings["sasl.username"] = self.user
            settings["sasl.password"] = self._password()
        return settings

    def _protocol(self) -> str:
        hosts = (broker.rpartition(":")[0] or broker for broker in self.brokers.split(","))
        trusted = all(is_loopback(host.strip("[]")) for host in hosts)
        default = ("sasl_" if self.user else "") + ("plaintext" if trusted else "ssl")
        return self.get("security", default)

    def _password(self) -> str:
        secret = self.get("secret")
        if not secret:
            return os.environ.get(PASSWORD_VARIABLE, "")
        from beamrec.io.secrets import read_secret  # cloud libraries, only where they are asked for

        return read_secret(secret, f"{self.option} secret=")


def parse_address(uri: str, option: str, parameters: Iterable[str] = ()) -> Address:
    """Takes a URI apart.

    Args:
      uri: `kafka://[user@]host:port,…/topic?…`.
      option: the flag that it came from.
      parameters: what the URI may say beside `CONNECTION`.

    Raises:
      UsageError: it is malformed, or carries a password.
    """
    reject_password(uri, option, PASSWORD_VARIABLE)
    parts = urlsplit(uri)
    user, _, brokers = parts.netloc.rpartition("@")
    topic = unquote(parts.path.removeprefix("/"))
    brokers_fit = brokers and all(_BROKER.fullmatch(broker) for broker in brokers.split(","))
    if not brokers_fit or not _TOPIC.fullmatch(topic):
        raise UsageError(f"{option}: expected kafka://host:port,host:port/topic, got {uri!r}")
    given = parse_qsl(parts.query, keep_blank_values=True)
    known = CONNECTION | set(parameters)
    for name, _ in given:
        if name not in known:
            raise UsageError(f"{option}: kafka:// takes {', '.join(sorted(known))}; got {name!r}")
    address = Address(brokers, topic, unquote(user), option, tuple(given))
    _check(address)
    return address


def _check(address: Address) -> None:
    for name, allowed in (("security", _PROTOCOLS), ("sasl", _MECHANISMS)):
        value = address.get(name, allowed[0])
        if value not in allowed:
            raise UsageError(f"{address.option}: {name}: expected {', '.join(allowed)}, got {value!r}")
    security = address.get("security")
    if security and security.startswith("sasl") != bool(address.user):
        raise UsageError(f"{address.option}: security={security} and a user, kafka://user@…, go together")
    if address.get("secret"):
        from beamrec.io.secrets import check_secret

        check_secret(address.get("secret"), f"{address.option} secret=")


def may_pass(error: KafkaError) -> bool:
    """Whether waiting may help: an outage is waited out, a refusal is not."""
    return error.code() not in _REFUSALS and not error.fatal()


def explain(where: str, error: KafkaError) -> BeamrecError:
    """A refusal as ours."""
    return UnavailableError(f"{where}: {error.str()}; {_REFUSALS.get(error.code(), 'see the brokers’ log')}")


class Heard:
    """Is told a client's errors, of which most are news of an outage that it deals with by itself.

    Attributes:
      first: the first error.
      refused: the last error that waiting does not mend.
    """

    def __init__(self, where: str) -> None:
        self.first: KafkaError | None = None
        self.refused: KafkaError | None = None
        self._where = where
        self._logged: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        """For `error_cb`; logs an error of a kind at most twice a minute."""
        self.first = self.first or error
        if not may_pass(error):
            self.refused = error
        if time.monotonic() - self._logged.get(error.code(), float("-inf")) > _LOG_SECONDS:
            self._logged[error.code()] = time.monotonic()
            _LOGGER.warning("%s: %s", self._where, error.str())


def check_topic(address: Address) -> TopicDescription:
    """What the brokers say of the topic, asked once and waited for: before anything is started.

    Raises:
      UsageError: there is no such topic.
      UnavailableError: nobody answers, or the login or TLS fails.
    """
    heard = Heard(address.where)
    admin = AdminClient({**address.client(), "error_cb": heard})
    topics = TopicCollection([address.topic])
    future = admin.describe_topics(topics, request_timeout=_CONTACT_SECONDS)[address.topic]
    deadline = time.monotonic() + _CONTACT_SECONDS
    while not future.done() and time.monotonic() < deadline:
        admin.poll(0.1)
        if heard.refused is not None:
            raise explain(address.where, heard.refused)
    try:
        return future.result(timeout=1)
    except (KafkaException, TimeoutError) as error:
        raise _unreachable(address, error, heard) from None


def _unreachable(address: Address, error: Exception, heard: Heard) -> BeamrecError:
    found = error.args[0] if isinstance(error, KafkaException) else None
    if found is not None and found.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        return UsageError(f"{address.where}: there is no such topic; create it first")
    if found is not None and not may_pass(found):
        return explain(address.where, found)
    reason = heard.first.str() if heard.first else "no answer"
    hint = "check hosts and ports, and that the brokers run"
    if address.client()["security.protocol"].endswith("ssl"):
        hint += "; if they speak no TLS and the network is trusted, say security=plaintext"
    return UnavailableError(f"{address.where}: {reason}; {hint}")
