"""What a relay would publish, without one: events of the suite's account, and foreign records."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from confluent_kafka import Producer

from retold import EventStore
from retold.brokers.base import Message
from retold.brokers.kafka_consumer import KafkaConsumer
from retold.errors import AssignmentLost, BrokerUnavailable
from retold.ids import EventIds

_admin: Any = import_module("confluent_kafka.admin")

ENTITY_TYPE = "consuming.Account"
CREDITED, OTHER = "consuming.Credited", "consuming.Other"
PATIENCE_S = 40.0
QUICK = {
    "heartbeat.interval.ms": "100",
    "topic.metadata.refresh.interval.ms": "200",
    "fetch.wait.max.ms": "20",
}
_BATCH = "a8c79db675e14c4cbf1eb77d0d6d0f00"
_ids = EventIds()


def event(key: str, number: int, kind: str = CREDITED) -> dict[str, str]:
    """The value of a record, before it is JSON."""
    return {
        "id": _ids.mint(1)[0][0],
        "entityId": key,
        "entityType": ENTITY_TYPE,
        "eventData": json.dumps({"amount": number}),
        "eventType": kind,
    }


def batch(events: Sequence[dict[str, str]]) -> bytes:
    """Several events as Java's relay puts them into one record."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(4, "little") + value

    none = bytes(4)
    inner = b"".join(
        none + text(one["entityId"].encode()) + text(json.dumps(one).encode()) for one in events
    )
    header = _BATCH.encode() + bytes((0, 0, 1, 0, 1, 0, 0, 0))
    return header + none + b"\0\0" + len(events).to_bytes(2, "little") + inner


class OnItsOwn(KafkaConsumer):
    """Closes its store with itself."""

    def close(self) -> None:
        super().close()
        self._driver.close()


class Topic:
    """A topic of a test's own, and the database of those who consume it."""

    def __init__(
        self, bootstrap: str, partitions: int, *, exists: bool = True, database: str = ""
    ) -> None:
        if not database:
            folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            database = f"sqlite:///{folder}/store.db"
        self.database = database
        self.bootstrap, self.name, self.partitions = (
            bootstrap,
            f"t-{secrets.token_hex(6)}",
            partitions,
        )
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        if exists:
            self.make()

    def make(self) -> None:
        admin = _admin.AdminClient({"bootstrap.servers": self.bootstrap})
        admin.create_topics([_admin.NewTopic(self.name, self.partitions, 1)])[self.name].result(30)

    def publish(
        self, *numbers: int, key: str = "a", kind: str = CREDITED, partition: int = 0
    ) -> None:
        for number in numbers:
            self.put(json.dumps(event(key, number, kind)).encode(), key, partition)
        self.flush()

    def put(
        self,
        value: bytes,
        key: str = "a",
        partition: int = 0,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp: int = 0,
    ) -> None:
        self._producer.produce(
            self.name, value, key.encode(), partition, headers=list(headers), timestamp=timestamp
        )

    def flush(self) -> None:
        assert self._producer.flush(30) == 0

    def member(
        self, name: str = "letters", start: Any = "beginning", **options: Any
    ) -> KafkaConsumer:
        settings = QUICK | options.pop("settings", {})
        return OnItsOwn(
            EventStore(self.database).driver,
            options.pop("bootstrap", self.bootstrap),
            f"{self.name}.{name}",
            [ENTITY_TYPE],
            [CREDITED],
            start,
            settings,
            topic_of=lambda _: self.name,
            **options,
        )


def take(consumer: KafkaConsumer, count: int, limit: int = 100) -> list[Message]:
    """The next messages, however many polls they take."""
    taken = list[Message]()
    deadline = time.monotonic() + PATIENCE_S
    while len(taken) < count:
        assert time.monotonic() < deadline, f"{len(taken)} of {count} messages"
        taken += consumer.poll(limit, 0.5)
    return taken


def amounts(messages: Sequence[Message]) -> list[int]:
    return [json.loads(message.data)["amount"] for message in messages]


def behind(messages: Sequence[Message]) -> dict[int, int]:
    return {message.partition: message.position for message in messages}


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Working(threading.Thread):
    """A member at work until it is told to stop; each message is committed when it is handled."""

    def __init__(self, consumer: KafkaConsumer, handle: Callable[[Message], None]) -> None:
        super().__init__(daemon=True)
        self._consumer, self._handle = consumer, handle
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                try:
                    for message in self._consumer.poll(10, 0.1):
                        self._handle(message)
                        self._consumer.commit(behind([message]))
                except (AssignmentLost, BrokerUnavailable):
                    continue
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        self.ended.set()
        self.join(PATIENCE_S)
        self._consumer.close()
        assert self.failure is None
