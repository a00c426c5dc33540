"""A private Kafka broker (KRaft, one node) for the tests, of the jars that `kafka/pom.xml` names."""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    NewPartitions,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

_POM = Path(__file__).parent / "kafka" / "pom.xml"
_START_SECONDS = 300
_PASSWORD = "s€cret pass:word/@%"  # noqa: S105  (each character once broke some URL or encoding)


def _jars() -> Path:
    """Folder of the broker's jars, fetched with Maven once for a version."""
    found = re.search(r"<version>(\d+\.\d+\.\d+)</version>", _POM.read_text())
    assert found is not None, f"{_POM} names no version"
    folder = Path.home() / ".cache" / "beamrec" / f"kafka-{found.group(1)}"
    if not shutil.which("java"):
        _missing("no program java (Debian: default-jre-headless)")
    if not folder.is_dir():
        _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    if not shutil.which("mvn"):
        _missing("no program mvn to fetch it with (Debian: maven)")
    # Under another name until all are there: a fetch that was broken off must not look complete.
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"]
    done = subprocess.run([*command, f"-DoutputDirectory={partial}"], capture_output=True, check=False)
    if done.returncode:
        _missing(f"Maven did not fetch it: {done.stdout.decode(errors='replace')[-1000:]}")
    with contextlib.suppress(OSError):  # another session was faster
        partial.rename(folder)


def _missing(what: str) -> None:
    message = f"a real Kafka broker is needed: {what}"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(message)


@dataclasses.dataclass
class KafkaBroker:
    """A broker that can be killed and started again on its data; `port` stays the same.

    Attributes:
      folder: of its data and log.
      port: of the listener for clients.
      settings: further lines of its configuration.
      secure_port: of a listener with TLS and logins, if it has one.
    """

    folder: Path
    port: int
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secure_port: int | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"localhost:{self.port}"

    def uri(self, topic: str, **options: str) -> str:
        """What `--input` takes."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"kafka://{self.address}/{topic}" + (f"?{query}" if query else "")

    def secure_uri(self, topic: str, user: str, **options: str) -> str:
        """What `--input` takes, by the listener with TLS and logins."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"kafka://{user}@localhost:{self.secure_port}/{topic}?{query}"

    def start(self) -> None:
        """Starts the broker and waits until it answers; data that is there is kept."""
        if not (self.folder / "data").is_dir():
            self._format()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(self.folder / "server.properties")],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self._wait_until_up()

    def kill(self) -> None:
        """SIGKILL, as a machine that fails."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def create_topic(self, partitions: int = 1, **config: str) -> str:
        """Makes a topic with a name of its own."""
        topic = f"events-{uuid.uuid4().hex[:12]}"
        self.make_topic(topic, partitions, **config)
        return topic

    def make_topic(self, topic: str, partitions: int = 1, **config: str) -> None:
        """Makes a topic; the configuration is given with underscores for dots."""
        settings = {name.replace("_", "."): value for name, value in config.items()}
        admin = self.admin
        new = NewTopic(topic, partitions, 1, config=settings)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                admin.create_topics([new])[topic].result(30)
                break
            except KafkaException as error:
                # A topic that was just deleted takes a moment to go.
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        while topic not in admin.list_topics(timeout=30).topics:
            time.sleep(0.05)

    def delete_topic(self, topic: str) -> None:
        """Deletes a topic with all that it holds."""
        self.admin.delete_topics([topic])[topic].result(30)

    def add_partitions(self, topic: str, total: int) -> None:
        """Raises the number of partitions of a topic, and waits until each has a leader."""
        self.admin.create_partitions([NewPartitions(topic, total)])[topic].result(30)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            partitions = self.admin.list_topics(topic, timeout=30).topics[topic].partitions.values()
            if len(partitions) == total and all(partition.leader >= 0 for partition in partitions):
                return
            assert time.monotonic() < deadline, "the partitions have no leaders"
            time.sleep(0.05)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Moves the beginning of a partition, as retention does."""
        place = TopicPartition(topic, partition, before)
        self.admin.delete_records([place])[place].result(30)

    def send(
        self,
        topic: str,
        values: Sequence[bytes | None],
        partition: int = 0,
        keys: Sequence[str] = (),
        timestamp: int = 0,
    ) -> None:
        """Sends records to one partition and waits until the broker has them all; `timestamp` in ms."""
        producer, failed = self.producer(), []

        def delivered(error: KafkaError | None, _: Message) -> None:
            failed.extend([] if error is None else [error.str()])

        for value, key in itertools.zip_longest(values, keys):
            producer.produce(
                topic, value, key, partition=partition, timestamp=timestamp, on_delivery=delivered
            )
            producer.poll(0)
        assert (producer.flush(60), failed) == (0, []), "the broker has not taken the records"

    def records(self, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
        """Partition, key and value of all committed records of a topic, by partition and offset."""
        found = {}
        settings = {"bootstrap.servers": self.address, "group.id": "tests", "log_level": 2}
        consumer = Consumer(settings | {"enable.partition.eof": True, "enable.auto.commit": False})
        partitions = list(self.admin.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        ended = 0
        while ended < len(partitions):
            for message in consumer.consume(1000, 1):
                if message.error() is None:
                    found[message.partition(), message.offset()] = (message.key(), message.value())
                ended += message.error() is not None
        consumer.close()
        return [(place[0], *found[place]) for place in sorted(found)]

    def group_offsets(self, group: str, topic: str) -> dict[int, int]:
        """Committed offset of each partition that has one."""
        request = ConsumerGroupTopicPartitions(group)
        with contextlib.suppress(KafkaException):  # no such group yet
            answer = self.admin.list_consumer_group_offsets([request])[group].result(30)
            places = [place for place in answer.topic_partitions if place.topic == topic]
            return {place.partition: place.offset for place in places if place.offset >= 0}
        return {}

    def producer(self, **settings: str) -> Producer:
        """A producer of another client's defaults than those under test."""
        config = {"bootstrap.servers": self.address, "reconnect.backoff.max.ms": "500", "log_level": 2}
        return Producer(config | {name.replace("_", "."): value for name, value in settings.items()})

    @functools.cached_property
    def admin(self) -> AdminClient:
        """A client that changes topics; what it was asked is answered as long as it lives."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 2})

    def _format(self) -> None:
        # Here, since modules of fixtures are loaded in any order.
        from ports_fixtures import free_port

        controller = free_port()
        secure = f",SECURE://localhost:{self.secure_port}" if self.secure_port else ""
        lines = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@localhost:{controller}",
            "listeners": f"PLAINTEXT://localhost:{self.port},CONTROLLER://localhost:{controller}{secure}",
            "advertised.listeners": f"PLAINTEXT://localhost:{self.port}{secure}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "auto.create.topics.enable": "false",
            "log.cleaner.backoff.ms": "200",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "num.network.threads": "1",
            "num.io.threads": "2",
            **self.settings,
        }
        path = self.folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items()), encoding="utf-8")
        command = [*self._java(), "kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk"]
        subprocess.run([*command, "-c", str(path)], check=True, capture_output=True, cwd=self.folder)

    def _java(self) -> list[str]:
        return ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{_jars()}/*"]

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            # A client before there is a listener would only fill the log with refusals.
            with (
                contextlib.suppress(OSError, KafkaException),
                socket.create_connection(("localhost", self.port), 1),
            ):
                if self.admin.list_topics(timeout=5).brokers:
                    return
            time.sleep(0.1)
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Kafka did not start:\n{(self.folder / 'log').read_text()[-3000:]}")


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker that all tests share; each takes topics of its own."""
    # Here, since modules of fixtures are loaded in any order.
    from ports_fixtures import free_port

    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), free_port())
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def kafka(kafka_server: KafkaBroker) -> KafkaBroker:
    """The shared broker, up again if the test before has left it down."""
    if kafka_server.process is None:
        kafka_server.start()
    return kafka_server


@pytest.fixture(scope="session")
def secure_kafka(
    tmp_path_factory: pytest.TempPathFactory, certificates: Path
) -> Iterator[tuple[KafkaBroker, str, Path]]:
    """A second broker with TLS and logins: its password of `shop`, and its authority's certificate.

    `shop` may log in by PLAIN, `scram` by SCRAM-SHA-512.
    """
    # Here, since modules of fixtures are loaded in any order.
    from ports_fixtures import free_port

    folder = tmp_path_factory.mktemp("kafka-secure")
    pair = folder / "pair.pem"
    pair.write_bytes((certificates / "key.pem").read_bytes() + (certificates / "cert.pem").read_bytes())
    login = f'required user_shop="{_PASSWORD}";'.encode("unicode_escape").decode()
    packages = "org.apache.kafka.common.security"
    settings = {
        "listener.name.secure.ssl.keystore.type": "PEM",
        "listener.name.secure.ssl.keystore.location": str(pair),
        "listener.name.secure.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.secure.plain.sasl.jaas.config": f"{packages}.plain.PlainLoginModule {login}",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{packages}.scram.ScramLoginModule required;",
    }
    broker = KafkaBroker(folder, free_port(), settings, secure_port=free_port())
    broker.start()
    try:
        mechanism = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        new = UserScramCredentialUpsertion("scram", mechanism, _PASSWORD.encode())
        broker.admin.alter_user_scram_credentials([new])["scram"].result(30)
        yield broker, _PASSWORD, certificates / "ca.pem"
    finally:
        broker.kill()
