"""The Kafka broker that the tests use: a private one, or a running one given by `host:port`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.rig.databases import PASSWORD
from tests.rig.process import free_port, run
from tests.rig.servers import CACHE, Given, NotPrivate, Private

_CLUSTER = "cmV0b2xkLXRlc3QtcmlnLQ"
_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": (
        "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT"
    ),
    # Whoever comes without a password is the administrator; other users may do what ACLs say.
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
    "sasl.enabled.mechanisms": "PLAIN",
    # On, as it is by default, with a number of partitions that nobody would ask for.
    "auto.create.topics.enable": "true",
    "num.partitions": "2",
    "group.initial.rebalance.delay.ms": "0",
    # Members may be missed soon.
    "group.min.session.timeout.ms": "100",
    # How long a killed broker is taken to be alive, and may not start again.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    # One node; and fewer internal partitions start faster.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
}


# One collector thread: the tests have few cores, and the broker little to do.
_SMALL_JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
ORDINARY_JVM = ("-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20")
"""As Kafka's own scripts start it: for measuring."""


def _ask(bootstrap: str) -> None:
    AdminClient({"bootstrap.servers": bootstrap, "log_level": 0}).list_topics(timeout=2)


class GivenKafka(Given):
    """A running broker, on which the tests may make topics."""

    def start(self) -> None:
        _ask(self.url)

    def login(self, name: str) -> tuple[str, dict[str, str]]:
        """Where a user who may do nothing yet logs in, and with what settings."""
        raise NotPrivate(f"the users of the broker at {self.url} are not the tests' own")


class Kafka(Private):
    """One node, broker and controller in one; `url` is its `host:port`.

    A second listener asks for a password: `login`.
    """

    name = "kafka"
    users = ("relay", "reader", "stranger")
    _silence = (KafkaException,)

    def __init__(self, *options: str, jvm: Sequence[str] = _SMALL_JVM) -> None:
        self._jvm = jvm
        super().__init__(*(part for option in options for part in ("--override", option)))
        self.url = f"127.0.0.1:{self.port}"
        self._login_port = free_port()
        self._controller_port = free_port()

    def login(self, name: str) -> tuple[str, dict[str, str]]:
        """Where a user who may do nothing yet logs in, and with what settings."""
        assert name in self.users
        return f"127.0.0.1:{self._login_port}", {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": name,
            "sasl.password": PASSWORD,
        }

    @property
    def _binary(self) -> Path:
        return CACHE / "kafka"

    def _java(self, *arguments: str) -> list[str]:
        java = shutil.which("java") or "/usr/bin/java"
        quiet = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        return [java, *self._jvm, *quiet, "-cp", f"{self._binary}/*", *arguments]

    def _prepare(self, folder: Path) -> None:
        listeners = {
            "PLAINTEXT": self.port,
            "SASL_PLAINTEXT": self._login_port,
            "CONTROLLER": self._controller_port,
        }
        addresses = [f"{name}://127.0.0.1:{port}" for name, port in listeners.items()]
        logins = " ".join(f'user_{name}="{PASSWORD}"' for name in self.users)
        settings = _SETTINGS | {
            "log.dirs": str(folder / "data"),
            "listeners": ",".join(addresses),
            "advertised.listeners": ",".join(addresses[:2]),
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
                f"org.apache.kafka.common.security.plain.PlainLoginModule required {logins};"
            ),
        }
        properties = folder / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        tool = self._java("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c")
        run([*tool, str(properties)], folder=folder)

    def _command(self, folder: Path) -> list[str]:
        return self._java("kafka.Kafka", str(folder / "server.properties"))

    def _ask(self) -> None:
        _ask(self.url)
