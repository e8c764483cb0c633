"""An events table beside its topics, compared without any of the project's code.

Raw SQL, a plain consumer that reads committed records, and `json`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition, murmur2

from tests.conformance.raw import rows

_PATIENCE_S = 30.0
_SILENCE_S = 3.0
_COLUMNS = "event_id, event_type, event_data, entity_type, entity_id, metadata"


class Stored(NamedTuple):
    """A row of the table."""

    id: str
    type: str
    data: str
    entity_type: str
    entity_id: str
    metadata: str | None


class Found(NamedTuple):
    """A record of a topic; partitions: how many the topic has."""

    topic: str
    partition: int
    partitions: int
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]


@dataclass
class Differences:
    """What is wrong, in words: empty lists when all is well."""

    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    invented: list[str] = field(default_factory=list[str])
    reordered: list[str] = field(default_factory=list[str])
    altered: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        parts: list[str] = []
        for kind in fields(self):
            found: list[str] = getattr(self, kind.name)
            parts.append(f"{len(found)} {kind.name}" + "".join(f"\n  {one}" for one in found[:5]))
        return "\n".join(parts)

    def counts(self) -> dict[str, int]:
        """How many there are of each kind that there is."""
        return {kind.name: n for kind in fields(self) if (n := len(getattr(self, kind.name)))}

    def __bool__(self) -> bool:
        return any(getattr(self, kind.name) for kind in fields(self))


def compare(url: str, bootstrap: str) -> tuple[int, Differences]:
    """How many events the table has, and what is wrong with its topics."""
    table = read_table(url)
    topics = {row.entity_type for row in table}
    return len(table), differences(table, read_topics(bootstrap, topics))


def wrong(url: str, bootstrap: str) -> Differences:
    """What is wrong with the topics of a table. Nobody may be writing meanwhile."""
    return compare(url, bootstrap)[1]


def read_table(url: str) -> list[Stored]:
    """Every event, each entity's in the order of its versions."""
    found = rows(url, f"SELECT {_COLUMNS} FROM events ORDER BY event_id")
    return [Stored(*(None if text is None else str(text) for text in row)) for row in found]  # type: ignore[arg-type]


def read_topics(bootstrap: str, topics: Iterable[str]) -> list[Found]:
    """Every committed record, each partition's in order. A topic that is not there holds none."""
    wanted = set(topics)
    until = time.monotonic() + _PATIENCE_S
    while (found := _read_topics(bootstrap, wanted)) is None:
        assert time.monotonic() < until, "the topics have no end"
    return found


def _read_topics(bootstrap: str, topics: Collection[str]) -> list[Found] | None:
    """None where it takes too long, as it may for a topic that is being made."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": secrets.token_hex(8),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    found: list[Found] = []
    with closing(consumer):
        known = consumer.list_topics(timeout=_PATIENCE_S).topics
        counts = {topic: len(known[topic].partitions) for topic in topics if topic in known}
        open_ = {(topic, number) for topic, count in counts.items() for number in range(count)}
        consumer.assign([TopicPartition(topic, number, 0) for topic, number in open_])
        heard = time.monotonic()
        while open_ and time.monotonic() < heard + _SILENCE_S:
            for message in consumer.consume(1000, 0.02):
                heard = time.monotonic()
                topic, partition = message.topic() or "", message.partition() or 0
                error = message.error()
                if error is None:
                    headers: Any = message.headers() or ()
                    key, value = message.key() or b"", message.value() or b""
                    found.append(Found(topic, partition, counts[topic], key, value, dict(headers)))
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_.discard((topic, partition))
    return None if open_ else found


def differences(table: Iterable[Stored], records: Iterable[Found]) -> Differences:
    found = Differences()
    stored = {row.id: row for row in table}
    wanted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in stored.values():
        wanted[row.entity_type, row.entity_id].append(row.id)
    published: dict[tuple[str, str], list[str]] = defaultdict(list)
    seen: set[str] = set()
    for record in records:
        event = json.loads(record.value)
        id = event["id"]
        if id in seen:
            found.doubled.append(id)
            continue
        seen.add(id)
        if id not in stored:
            found.invented.append(id)
            continue
        row = stored[id]
        published[row.entity_type, row.entity_id].append(id)
        if problem := _altered(record, event, row):
            found.altered.append(f"{id}: {problem}")
    found.lost += sorted(stored.keys() - seen)
    for entity, ids in published.items():
        if ids != [id for id in wanted[entity] if id in seen]:
            found.reordered.append(f"{entity}: {', '.join(ids)}")
    return found


def _altered(record: Found, event: dict[str, Any], row: Stored) -> str:
    """What of a record is not as the row says."""
    event.pop("binlogFileOffset", None)
    value = {
        "id": row.id,
        "entityId": row.entity_id,
        "entityType": row.entity_type,
        "eventData": row.data,
        "eventType": row.type,
    }
    if row.metadata is not None:
        value["metadata"] = row.metadata
    if event != value:
        return f"{event} and not {value}"
    if record.topic != row.entity_type or record.key != row.entity_id.encode():
        return f"in {record.topic} under {record.key!r}"
    if record.partition != murmur2(record.key, record.partitions):
        return f"in partition {record.partition} of {record.partitions}"
    headers = {
        "id": row.id.encode(),
        "type": row.type.encode(),
        "time": b"%d" % int(row.id.partition("-")[0], 16),
    }
    return "" if record.headers == headers else f"{record.headers}"
