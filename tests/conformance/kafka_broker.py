"""Kafka as a broker of the consumer's suite: a SQLite store, and what copies its events to topics.

The real relay has tests of its own; this one is there at once, and gives each test topics of its own.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from retold import EventStore
from retold.brokers.kafka import KafkaPublisher
from retold.brokers.kafka_consumer import KafkaConsumer
from retold.brokers.published import topic_name
from retold.relay.source import Row
from retold.relay.wire import records
from tests.consuming.publishing import OnItsOwn

_admin: Any = import_module("confluent_kafka.admin")

PARTITIONS = 16
LONGEST_S = 300.0
"""No test waits for so long; more would have to be allowed in other settings too."""
_LOOK_S = 0.005
_EVENTS = (
    "SELECT position, event_id, event_type, event_data, entity_type, entity_id, metadata, NULL"
    " FROM events WHERE position > ? ORDER BY position"
)


class KafkaBroker:
    """See Broker. prefix: of this test's topics."""

    def __init__(self, path: Path, bootstrap: str, wanted: Sequence[str], prefix: str = "") -> None:
        self.path, self.bootstrap, self.wanted = path, bootstrap, wanted
        self.prefix = prefix or f"test-{secrets.token_hex(4)}."

    def store(self) -> EventStore:
        return EventStore(f"sqlite:///{self.path}")

    def member(
        self, name: str, topics: Sequence[str], lease_s: float | None, **settings: str
    ) -> KafkaConsumer:
        lease_ms = int(1000 * (lease_s or LONGEST_S))
        quick = {
            "session.timeout.ms": str(lease_ms),
            "heartbeat.interval.ms": "100",
            "topic.metadata.refresh.interval.ms": "200",
            "fetch.wait.max.ms": "20",
        }
        # Groups, too, are each test's own.
        return OnItsOwn(
            self.store().driver,
            self.bootstrap,
            self.prefix + name,
            topics,
            self.wanted,
            "beginning",
            quick | settings,
            topic_of=partial(_topic, self.prefix),
        )

    def topic(self, entity_type: str) -> str:
        return _topic(self.prefix, entity_type)


def _topic(prefix: str, entity_type: str) -> str:
    return prefix + topic_name(entity_type)


@contextmanager
def topics_of(bootstrap: str, counts: dict[str, int]) -> Generator[None]:
    """Topics with their numbers of partitions, for a while."""
    admin = _admin.AdminClient({"bootstrap.servers": bootstrap})
    new = [_admin.NewTopic(topic, count, 1) for topic, count in counts.items()]
    for made in admin.create_topics(new).values():
        made.result()
    yield
    for gone in admin.delete_topics(list(counts)).values():
        gone.result()


@contextmanager
def copying(broker: KafkaBroker, publisher: KafkaPublisher) -> Generator[None]:
    """Publishes what the store's processes commit, each look's events in one transaction."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def copy() -> None:
        position = 0
        with closing(sqlite3.connect(broker.path)) as database:
            while not ended.wait(_LOOK_S):
                found = database.execute(_EVENTS, (position,)).fetchall()
                if not found:
                    continue
                rows: list[Row] = [tuple(row[1:]) for row in found]
                made = [
                    record._replace(topic=broker.prefix + record.topic) for record in records(rows)
                ]
                publisher.publish(made, b"-")
                position = found[-1][0]

    def work() -> None:
        try:
            copy()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert failures == []
