"""An events table beside its topics, compared without any of the project's code.

Raw SQL, a plain consumer that reads committed records, and `json`.
"""

from __future__ import annotations

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition, murmur2

from tests.conformance.raw import rows

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

    def __bool__(self) -> bool:
        return any(getattr(self, kind.name) for kind in fields(self))


def compare(url: str, bootstrap: str) -> tuple[int, Differences]:
    """How many events the table has, and what is wrong with its topics."""
    table = read_table(url)
    topics = {row.entity_type for row in table}
    return len(table), differences(table, read_topics(bootstrap, topics))


def read_table(url: str) -> list[Stored]:
    """Every event, each entity's in the order of its versions."""
    found = rows(url, f"SELECT {_COLUMNS} FROM events ORDER BY event_id")
    return [Stored(*(None if text is None else str(text) for text in row)) for row in found]  # type: ignore[arg-type]


def read_topics(bootstrap: str, topics: Iterable[str]) -> list[Found]:
    """Every committed record, each partition's in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": secrets.token_hex(8),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    counts: dict[str, int] = {}
    for topic in topics:
        # None where there is no such topic yet.
        counts[topic] = len(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
    open_ = {(topic, number) for topic, count in counts.items() for number in range(count)}
    consumer.assign([TopicPartition(topic, number, 0) for topic, number in open_])
    found: list[Found] = []
    while open_:
        for message in consumer.consume(1000, 0.02):
            topic, partition = message.topic() or "", message.partition() or 0
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                open_.discard((topic, partition))
                continue
            headers: Any = message.headers() or ()
            key, value = message.key() or b"", message.value() or b""
            found.append(Found(topic, partition, counts[topic], key, value, dict(headers)))
    consumer.close()
    return found


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
