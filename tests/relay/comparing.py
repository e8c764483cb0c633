"""What a table holds and what its topics hold, read without the project's code, and compared."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql
from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.conformance.raw import path_of, rows

_PATIENCE_S = 30.0


class Seen(NamedTuple):
    """A record, as whoever reads committed sees it."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.value)
        return found


def seen(bootstrap: str, *topics: str) -> list[Seen]:
    """All records of some topics, each partition in its order."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = _seen(bootstrap, topics)
        if found is not None:
            return found
        assert time.monotonic() < deadline, "the topics have no end"


def _seen(bootstrap: str, topics: Sequence[str]) -> list[Seen] | None:
    """None where it takes too long, as it may for a topic that is being made."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"compare-{secrets.token_hex(8)}",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    found: list[Seen] = []
    heard = time.monotonic()
    with closing(consumer):
        known = consumer.list_topics(timeout=_PATIENCE_S).topics
        left = {(name, p) for name in topics if name in known for p in known[name].partitions}
        consumer.assign([TopicPartition(*place, 0) for place in left])
        while left and time.monotonic() < heard + 3:
            for message in consumer.consume(1000, 0.1):
                heard = time.monotonic()
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                assert topic is not None
                assert partition is not None
                assert offset is not None
                error = message.error()
                if error is None:
                    key, value = message.key() or b"", message.value() or b""
                    found.append(Seen(topic, partition, offset, key.decode(), value))
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard((topic, partition))
    return None if left else found


@dataclass(frozen=True)
class Difference:
    """Numbers of events."""

    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    altered: int = 0
    strange: int = 0


NONE = Difference()


def difference(url: str, bootstrap: str) -> Difference:
    """Between the table and the topics of its entity types. Nobody may be writing meanwhile."""
    stored = {
        str(row[0]): row
        for row in rows(
            url,
            "SELECT event_id, entity_type, entity_id, event_type, event_data, metadata FROM events",
        )
    }
    found = seen(bootstrap, *{str(row[1]) for row in stored.values()})
    count = Counter(record.event["id"] for record in found)
    order = defaultdict[tuple[str, str], list[tuple[int, str]]](list)
    altered = 0
    for record in found:
        event = record.event
        order[record.topic, event["entityId"]].append((record.partition, event["id"]))
        wanted = stored.get(event["id"])
        fields = ("id", "entityType", "entityId", "eventType", "eventData")
        altered += wanted is not None and (
            tuple(wanted) != (*(event[name] for name in fields), event.get("metadata"))
            or record.key != wanted[2]
            or record.topic != wanted[1]
        )
    return Difference(
        lost=len(stored.keys() - count.keys()),
        doubled=sum(count.values()) - len(count),
        out_of_order=sum(a > b for ids in order.values() for a, b in pairwise(ids)),
        altered=altered,
        strange=len(count.keys() - stored.keys()),
    )


# --- writing -------------------------------------------------------------------------------------

_INSERT = (
    "INSERT INTO events (event_id, event_type, event_data, entity_type, entity_id, metadata, "
    "published) VALUES ({0}, {0}, {0}, {0}, {0}, {0}, 0)"
)
_DATA = json.dumps({"text": 'ä "quoted" \\ 🙂 </', "n": 1})


@contextmanager
def connected(url: str) -> Generator[Callable[[str, Sequence[Sequence[object]]], None]]:
    """Gives a function that runs a statement with each set of parameters, in one transaction."""
    parts = urlsplit(url)
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of(url), timeout=30)) as file:

            def run(sql: str, many: Sequence[Sequence[object]]) -> None:
                with file:
                    file.execute("BEGIN IMMEDIATE")
                    file.executemany(sql.format("?"), many)

            file.isolation_level = None
            file.execute("PRAGMA synchronous = NORMAL")
            yield run
    elif url.startswith("postgres"):
        with psycopg.connect(url) as link:

            def run_postgres(sql: str, many: Sequence[Sequence[object]]) -> None:
                with link.transaction():
                    link.cursor().executemany(sql.format("%s").encode(), many)

            yield run_postgres
    else:
        with pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=parts.path[1:],
            charset="utf8mb4",
        ) as client:

            def run_mysql(sql: str, many: Sequence[Sequence[object]]) -> None:
                client.cursor().executemany(sql.format("%s"), many)
                client.commit()

            yield run_mysql


class Writer:
    """Writes events of an entity type of its own, which is its topic, by plain SQL.

    Ids rise for each entity, as the store's do. An entity belongs to one writer.
    """

    def __init__(self, url: str, topic: str = "") -> None:
        self.url = url
        self.topic = topic or f"test.{secrets.token_hex(6)}"
        self._name = secrets.token_hex(3)
        self._made = 0

    def rows(self, count: int, entities: int = 7, data: str = _DATA) -> list[tuple[object, ...]]:
        made: list[tuple[object, ...]] = []
        for _ in range(count):
            self._made += 1
            id = f"{time.time_ns() // 1_000_000:016x}-{self._made:016x}"
            event_id = f"{id[:16]}-{self._name}{id[-10:]}"
            metadata = None if self._made % 3 else '{"user":"ann"}'
            entity = f"{self._name}-{self._made % entities}"
            made.append((event_id, "test.Written", data, self.topic, entity, metadata))
        return made

    def write(self, count: int = 1, *, each: int = 1000, entities: int = 7) -> None:
        """In transactions of `each` events."""
        with connected(self.url) as run:
            for first in range(0, count, each):
                run(_INSERT, self.rows(min(each, count - first), entities))

    def insert(self, *made: tuple[object, ...]) -> None:
        with connected(self.url) as run:
            run(_INSERT, made)


@contextmanager
def writing(url: str, topic: str, *, writers: int = 2, pause: float = 0.02) -> Generator[None]:
    """Several writers at work for the time of a block, with small and large transactions."""
    stop = threading.Event()
    failed = list[BaseException]()

    def work() -> None:
        writer = Writer(url, topic)
        try:
            with connected(url) as run:
                while not stop.wait(pause):
                    run(_INSERT, writer.rows(secrets.choice((1, 1, 1, 2, 5, 30))))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed
