"""Looks at everything a relay needs, one thing after the other, and goes on past what is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retold.brokers.published import topic_name
from retold.errors import (
    AccessDenied,
    BrokerRefused,
    BrokerUnavailable,
    RelayStopped,
    RetoldError,
    StoreError,
)
from retold.relay.checks import (
    Check,
    clock_checks,
    direct_check,
    failed,
    ok,
    require,
    table_checks,
    warning,
)
from retold.relay.kafka_checks import (
    brokers_check,
    events_topic_checks,
    missing_topic_check,
    positions_topic_checks,
    transactions_check,
)
from retold.relay.sources import binlog_checks, wal_checks
from retold.relay.table import Table
from retold.relay.wire import IGNORED

if TYPE_CHECKING:
    from retold.brokers.kafka_facts import KafkaFacts
    from retold.store.connections import BlockingDriver
    from retold.store.driver import Plan
    from retold.store.url import DatabaseURL


@dataclass(frozen=True, slots=True)
class Doctor:
    """What is looked at. kind: binlog, wal or polling. kafka: None leaves Kafka out."""

    url: DatabaseURL
    driver: BlockingDriver
    kind: str
    name: str
    kafka: KafkaFacts | None
    partitions: int = 12

    def checks(self) -> Iterator[Check]:
        """One after the other. Raises MissingExtra."""
        topics: list[str] | None = None
        reached = self._reach()
        yield reached
        if reached.outcome == "ok":
            tables = self._run("events", table_checks(self.driver.dialect, polling=self.polling))
            yield from tables
            yield from self._run("clock", clock_checks(self.driver.dialect))
            readable = tables[0].outcome == "ok"
            yield from self._log(readable)
            if readable:
                topics = topics_of(Table(self.driver))
        yield from self._kafka_checks(topics)

    @property
    def polling(self) -> bool:
        return self.kind == "polling"

    def _reach(self) -> Check:
        url = self.url
        if url.database_kind == "sqlite" and not Path(url.database).exists():
            return failed("database", f"{url.database} does not exist", "correct the URL")
        try:
            self.driver.open()
        except StoreError as error:
            mend = "look whether it runs, and at host, user and password in the URL"
            return failed("database", f"cannot be reached: {error.reason}", mend)
        return ok("database", f"answers ({url})")

    def _run(self, name: str, plan: Plan[list[Check]]) -> list[Check]:
        try:
            return self.driver.run(plan)
        except StoreError as error:
            return [_unexpected(name, error)]

    # --- the log ---------------------------------------------------------------------------------

    def _log(self, readable: bool) -> Iterator[Check]:
        """readable: the events table is there."""
        checks = self._run("log", log_checks(self.url, self.kind, direct=is_direct(self.driver)))
        yield from checks
        if self.kind == "wal":
            standby = self._run("server", wal_checks.standby_checks())
            yield from standby
            checks += standby
        if not readable or any(check.outcome == "failed" for check in checks):
            return
        if self.kind == "binlog":
            yield self._dump()
        elif self.kind == "wal":
            yield from self._slot()

    def _dump(self) -> Check:
        """Whether the server sends its log: asked for from its end on, as another replica."""
        from retold.relay.positions import BinlogPosition
        from retold.relay.sources.binlog import BinlogSource
        from retold.relay.sources.binlog_server import Server

        try:
            with (
                closing(Server(self.url)) as server,
                closing(BinlogSource(self.url, 0x8000_0000 | secrets.randbits(31))) as source,
            ):
                facts = server.facts()
                *_, (file, size) = server.files().items()
                source.start(BinlogPosition(facts.flavour, facts.server, "", file, size))
        except AccessDenied as error:
            grant = (
                "grant this user REPLICATION SLAVE, REPLICATION CLIENT (MariaDB: BINLOG MONITOR)"
            )
            return failed("replication", f"is refused: {error.reason}", f"{grant} ON *.*")
        except (StoreError, RelayStopped) as error:
            return _unexpected("replication", error)
        return ok("replication", f"is allowed to {self.url.user}")

    def _slot(self) -> Iterator[Check]:
        from retold.relay.sources.wal_database import WalDatabase

        with closing(WalDatabase(self.url, self.name)) as database:
            try:
                yield from database.checks()
            except (StoreError, RelayStopped) as error:
                yield _unexpected("replication", error)

    # --- Kafka -----------------------------------------------------------------------------------

    def _kafka_checks(self, topics: Iterable[str] | None) -> Iterator[Check]:
        kafka = self.kafka
        if kafka is None:
            yield warning("Kafka", "was not looked at", "name it with --kafka HOST:PORT")
            return
        try:
            yield brokers_check(kafka.brokers())
            yield transactions_check(self.name, self._why_no_transactions(kafka))
            yield from self._topics(kafka, topics or ())
        except (BrokerUnavailable, BrokerRefused) as error:
            kind = "refused" if isinstance(error, BrokerRefused) else "cannot be reached"
            mend = "look at the address, the security settings and the permissions"
            yield failed("Kafka", f"{kind}: {error.reason}", mend)

    def _why_no_transactions(self, kafka: KafkaFacts) -> str:
        # An id of its own: with the relay's it would fence the relay.
        return kafka.why_no_transactions(f"retold-doctor-{self.name}")

    def _topics(self, kafka: KafkaFacts, topics: Iterable[str]) -> Iterator[Check]:
        from retold.brokers.kafka import EVENTS_TOPIC, POSITIONS_TOPIC, positions_topic

        positions = positions_topic(self.name)
        wanted = {positions: (1, POSITIONS_TOPIC)}
        wanted |= dict.fromkeys(topics, (self.partitions, EVENTS_TOPIC))
        for topic, (partitions, config) in wanted.items():
            try:
                found = kafka.topics([topic]).get(topic)
            except BrokerRefused as error:
                grant = "allow Describe, Read, Write and DescribeConfigs on it, and Create"
                yield failed(f"topic {topic}", f"may not be looked at: {error.reason}", grant)
                continue
            if found is None:
                why = kafka.why_not_made(topic, partitions, config)
                yield missing_topic_check(topic, partitions, why)
            elif topic == positions:
                yield from positions_topic_checks(topic, found)
            else:
                yield from events_topic_checks(topic, found)


def topics_of(table: Table) -> list[str]:
    """The topics of what the table holds."""
    return [topic_name(kind) for kind in table.entity_types() if kind != IGNORED]


def is_direct(driver: BlockingDriver) -> bool:
    """Whether no pooler shares the server's sessions out."""
    with driver.connection() as connection:
        return bool(getattr(connection, "direct", True))


def log_checks(url: DatabaseURL, kind: str, *, direct: bool) -> Plan[list[Check]]:
    """What a server says of its log."""
    if kind == "binlog":
        return (
            yield from binlog_checks.log_checks(url.schema or url.database, f"{url.prefix}events")
        )
    if kind == "wal":
        return (yield from wal_checks.settings_checks(direct=direct))
    return [direct_check(direct)]


def refuse(
    url: DatabaseURL, driver: BlockingDriver, kind: str, kafka: KafkaFacts, name: str
) -> None:
    """Look before a relay begins, also before one that will stand by.

    What is away now the relay itself will wait for. Raises LogUnsuitable for a log that cannot be
    followed, and BrokerRefused for a topic with which events or positions would be lost.
    """
    from retold.brokers.kafka import positions_topic

    positions = positions_topic(name)
    try:
        require(driver.run(log_checks(url, kind, direct=is_direct(driver))))
        found = kafka.topics([positions, *topics_of(Table(driver))])
    except RetoldError as error:
        if error.retriable:
            return
        raise
    for topic, facts in found.items():
        look = positions_topic_checks if topic == positions else events_topic_checks
        require(look(topic, facts), BrokerRefused)


def _unexpected(name: str, error: StoreError | RelayStopped) -> Check:
    return failed(name, f"failed: {error.reason}", "look at the server's own log")
