"""The grants in docs/operations/relay.md: enough for everything, and for nothing more."""

from __future__ import annotations

import argparse
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from confluent_kafka import KafkaException, Producer

from retold import Aggregate, Event, EventStore, Transaction, applies, every
from retold.brokers.kafka import KafkaPublisher, KafkaTopics
from retold.cli import main
from retold.cli.relay import add_to, assemble
from retold.cli.settings import Settings
from retold.errors import AccessDenied, BrokerRefused, RetoldError
from tests.rig import GivenKafka, Kafka, Rig
from tests.rig.databases import query, with_parts

# Its types are incomplete.
_admin: Any = import_module("confluent_kafka.admin")

_PAGE = (Path(__file__).parents[2] / "docs/operations/relay.md").read_text("utf-8")
_DATABASES = ["postgres15", "postgres18", "mysql8", "mariadb"]
_PATIENCE_S = 30.0


def blocks(heading: str, language: str) -> list[str]:
    """The code of a section of the page."""
    section = re.split(r"^##+ ", _PAGE.partition(f"\n### {heading}\n")[2], flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def aggregate(name: str) -> tuple[type[Aggregate], Callable[..., None]]:
    """An aggregate whose topic begins with `name`, and its command."""

    class Counted(Event, name=f"{name}.Counted"):
        by: int

    class Counter(Aggregate, name=f"{name}.Counter", snapshots=every(2)):
        total: int = 0

        def count(self, by: int) -> None:
            self.emit(Counted(by))

        @applies(Counted)
        def _counted(self, event: Counted) -> None:
            self.total += event.by

    return Counter, Counter.count


def publish(url: str, kafka: str, events: int, **options: Any) -> None:
    """Run a relay until it has published so many events and follows the log."""
    parser = argparse.ArgumentParser()
    add_to(parser.add_subparsers())
    given = ["relay", "--database", url, "--kafka", kafka]
    chosen = parser.parse_args(given)
    vars(chosen).update(options)
    stop = threading.Event()
    stopped: list[BaseException] = []
    with ExitStack() as stack:
        relay, progress = assemble(Settings(chosen), stop, stack)

        def run() -> None:
            try:
                relay.run(stop)
            except RetoldError as error:
                stopped.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        until = time.monotonic() + _PATIENCE_S
        while progress.counts["events"] < events or progress.role != "leading":
            assert not stopped, stopped[0]
            assert time.monotonic() < until, progress.error
            time.sleep(0.01)


@dataclass
class Roles:
    """A database made as the page says. url: of each role, by its last word."""

    kind: str
    name: str
    admin: str
    polling: str

    def url(self, role: str) -> str:
        return with_parts(
            self.admin, user=f"{self.name}_{role}", password="secret", database=self.name
        )


def run_sql(url: str, text: str) -> None:
    query(url, *(part for part in re.split(r";\s*", text) if part.strip()))


@pytest.fixture(scope="module", params=_DATABASES)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def roles(kind: str, servers: Rig) -> Iterator[Roles]:
    postgres = kind.startswith("postgres")
    name = f"bank_{secrets.token_hex(6)}"
    admin = servers[kind].url
    found = [
        block.replace("bank", name)
        for block in blocks("PostgreSQL" if postgres else "MySQL and MariaDB", "sql")
    ]
    made = Roles(kind, name, admin, found[-1])
    everyone = [f"{name}_{role}" for role in ("owner", "app", "relay", "verify")]
    try:
        run_sql(admin, found[0])
        assert main(["migrate", "--database", made.url("owner"), "--polling"]) == 0
        for block in found[1:-1]:
            if "LOCK TABLES" in block and kind != "mysql8":
                continue  # of those servers here, the one without GTIDs
            run_sql(made.url("owner") if postgres else admin, block)
        if postgres:
            query(made.url("owner"), "CREATE SCHEMA other")
            query(made.url("owner"), "CREATE TABLE other.secrets (n int)")
        else:
            query(
                admin, f"CREATE DATABASE {name}_other", f"CREATE TABLE {name}_other.secrets (n int)"
            )
        yield made
    finally:
        if postgres:
            slots = f"FROM pg_replication_slots WHERE database = '{name}'"
            query(admin, f"SELECT pg_drop_replication_slot(slot_name) {slots}")
            query(admin, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            query(admin, *(f"DROP ROLE IF EXISTS {role}" for role in everyone))
        else:
            query(admin, f"DROP DATABASE {name}", f"DROP DATABASE IF EXISTS {name}_other")
            query(admin, *(f"DROP USER {role}" for role in everyone))


def use(url: str, name: str) -> int:
    """Everything an application does; how many events it wrote."""
    kind, count = aggregate(name)
    with EventStore(url) as store:
        counters = store.repository(kind)
        entity: Any = counters.create(count, 1)
        for _ in range(4):
            counters.update(entity.id, count, 1)
        counters.once("key").update(entity.id, count, 1)
        counters.once("key").update(entity.id, count, 1)
        counters.with_id("other").create(count, 1)

        def both(transaction: Transaction) -> None:
            here = transaction.repository(kind)
            here.update(entity.id, count, 1)
            here.update("other", count, 1)

        store.transact(both)
        state: Any = counters.find(entity.id).state
        assert state.total == 7
        assert len(list(counters.history(entity.id))) == 7
        assert store.prune_handled() == 0
    return 9


def test_application_relay_doctor_and_verify_run_under_the_grants(
    roles: Roles,
    kafka: Kafka | GivenKafka,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    written = use(roles.url("app"), f"{roles.name}.log")
    assert not caplog.records  # a snapshot that may not be written is only warned of
    where = ["--database", roles.url("relay"), "--kafka", kafka.url]
    assert main(["doctor", *where]) == 0, capsys.readouterr().out
    publish(roles.url("relay"), kafka.url, written, resync=True)
    assert main(["verify", "--database", roles.url("verify"), "--kafka", kafka.url]) == 0


def test_a_relay_that_polls_runs_under_the_grants(
    roles: Roles, kafka: Kafka | GivenKafka, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres = roles.kind.startswith("postgres")
    run_sql(roles.url("owner") if postgres else roles.admin, roles.polling)
    name = f"{roles.name}_polling"
    where = ["--database", roles.url("relay"), "--kafka", kafka.url, "--name", name]
    assert main(["doctor", *where, "--source", "polling"]) == 0, capsys.readouterr().out
    for topic, resync in (("first", True), ("second", False)):
        written = use(roles.url("app"), f"{roles.name}.{topic}")
        publish(roles.url("relay"), kafka.url, written, source="polling", name=name, resync=resync)
    assert query(roles.url("relay"), "SELECT event_id FROM events WHERE published = 1")


_WRITES = (
    "INSERT INTO events SELECT * FROM events",
    "UPDATE events SET event_data = ''",
    "DELETE FROM events",
    "DELETE FROM entities",
    "DROP TABLE events",
    "TRUNCATE TABLE events",
    "ALTER TABLE events ADD COLUMN more int",
    "CREATE TABLE more (n int)",
    "SELECT * FROM {other}.secrets",
)
_READS = ("SELECT * FROM entities", "SELECT * FROM snapshots", "SELECT * FROM handled")
_REFUSED: dict[str, tuple[str, ...]] = {
    "owner": (),  # of the tables, and no more
    "app": (*_WRITES[1:], "UPDATE entities SET entity_id = ''", "SELECT * FROM retold_migrations"),
    "relay": (*_WRITES, *_READS),
    "verify": (*_WRITES, *_READS, "UPDATE events SET published = 1"),
}
_OF_THE_LOG = {
    "postgres": "SELECT pg_create_logical_replication_slot('x', 'pgoutput')",
    "mysql": "SHOW BINLOG EVENTS",
}


@pytest.mark.parametrize("role", list(_REFUSED))
def test_no_role_may_do_more(roles: Roles, role: str) -> None:
    postgres = roles.kind.startswith("postgres")
    other = "other" if postgres else f"{roles.name}_other"
    statements = [statement.format(other=other) for statement in _REFUSED[role]]
    if role != "relay":
        statements.append(_OF_THE_LOG["postgres" if postgres else "mysql"])
    for statement in statements:
        with pytest.raises((psycopg.errors.InsufficientPrivilege, pymysql.OperationalError)) as why:
            query(roles.url(role), statement)
        # access denied: to a database, to a table, to a column, for want of a global privilege
        assert postgres or why.value.args[0] in (1044, 1142, 1143, 1227), statement


def test_the_store_says_that_a_user_may_not_write(roles: Roles) -> None:
    kind, count = aggregate(f"{roles.name}.denied")
    with EventStore(roles.url("verify")) as store, pytest.raises(AccessDenied):
        store.repository(kind).create(count, 1)


# --- Kafka ---------------------------------------------------------------------------------------


def acls(name: str) -> list[Any]:
    """The commands of the page as what they say, for a relay of this name."""
    found: list[Any] = []
    parser = argparse.ArgumentParser()
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--allow-principal")
    parser.add_argument("--operation", action="append")
    parser.add_argument("--topic", action="append", default=[])
    parser.add_argument("--transactional-id", action="append", default=[])
    parser.add_argument("--resource-pattern-type", default="literal")
    (block,) = blocks("Kafka", "sh")
    for line in block.replace("bank", name).splitlines():
        command, *options = shlex.split(line)
        assert command == "kafka-acls"
        said = parser.parse_args(options)
        resources = [(_admin.ResourceType.TOPIC, topic) for topic in said.topic]
        resources += [(_admin.ResourceType.TRANSACTIONAL_ID, id) for id in said.transactional_id]
        for kind, resource in resources:
            for operation in said.operation:
                word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()
                found.append(
                    _admin.AclBinding(
                        kind,
                        resource,
                        _admin.ResourcePatternType[said.resource_pattern_type.upper()],
                        said.allow_principal,
                        "*",
                        _admin.AclOperation[word],
                        _admin.AclPermissionType.ALLOW,
                    )
                )
    return found


@pytest.fixture
def name(kafka: Kafka | GivenKafka) -> Iterator[str]:
    """The name of a relay for which Kafka has been told what the page says."""
    name = f"bank{secrets.token_hex(6)}"
    kafka.login("relay")  # skips the test on a broker that is not ours
    admin = _admin.AdminClient({"bootstrap.servers": kafka.url})
    bindings = acls(name)
    for future in admin.create_acls(bindings).values():
        future.result()
    yield name
    filters = [
        _admin.AclBindingFilter(
            acl.restype,
            acl.name,
            acl.resource_pattern_type,
            acl.principal,
            acl.host,
            acl.operation,
            acl.permission_type,
        )
        for acl in bindings
    ]
    for future in admin.delete_acls(filters).values():
        future.result()


def test_relay_doctor_and_verify_run_under_the_acls(
    name: str,
    kafka: Kafka | GivenKafka,
    fresh_database: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = fresh_database("sqlite")
    written = use(url, name)
    assert main(["migrate", "--database", url, "--polling"]) == 0

    address, login = kafka.login("relay")
    settings = [f"{key}={value}" for key, value in login.items()]
    where = ["--database", url, "--name", name, "--kafka", address]
    logged_in = [part for setting in settings for part in ("--kafka-setting", setting)]
    for _ in range(2):  # before the topics are there, and when they are
        assert main(["doctor", *where, *logged_in]) == 0, capsys.readouterr().out
        assert "DescribeConfigs" not in capsys.readouterr().out
        publish(url, address, written, name=name, kafka_setting=settings)
        written = 0

    address, login = kafka.login("reader")
    logged_in = [f"--kafka-setting={key}={value}" for key, value in login.items()]
    assert main(["verify", "--database", url, "--kafka", address, *logged_in]) == 0


def test_with_the_acls_nobody_may_do_more(name: str, kafka: Kafka | GivenKafka) -> None:
    positions = f"retold.relay.{name}"
    address, login = kafka.login("relay")
    with pytest.raises(BrokerRefused):
        KafkaPublisher("other", address, login).begin()
    publisher = KafkaPublisher(name, address, login)
    publisher.begin()
    with pytest.raises(BrokerRefused):
        publisher.partitions(["other.Topic"])
    publisher.close()

    address, login = kafka.login("reader")
    with pytest.raises(BrokerRefused):
        KafkaTopics(address, login).partitions([positions])
    failures: list[Any] = []
    producer = Producer({"bootstrap.servers": address, **login})
    producer.produce(
        f"{name}.Counter", b"", on_delivery=lambda error, message: failures.append(error)
    )
    try:
        producer.flush(10)
    except KafkaException as error:
        failures.append(error.args[0])
    assert failures[0] is not None
