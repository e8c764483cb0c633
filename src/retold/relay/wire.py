"""What is published: one Kafka record for each event, as Java Eventuate's subscribers expect it.

The value is the JSON of `PublishedEvent` (eventuate-common): the event's own JSON and its metadata
are texts inside. The key is the entity's id, the topic its type; `$`, which Kafka does not allow in
a topic's name, is spelt `_DLR_`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from retold.brokers.base import Record
from retold.relay.source import BinlogFileOffset, Row

IGNORED = "CDC-IGNORED"
"""The entity type of rows that Eventuate's own migrations leave behind; never published."""


class PublishedEvent(msgspec.Struct, omit_defaults=True):
    """The value of a record; the names and their order are Eventuate's."""

    id: str
    entityId: str
    entityType: str
    eventData: str
    eventType: str
    binlogFileOffset: BinlogFileOffset | None = None
    metadata: str | None = None


def topic_name(entity_type: str) -> str:
    """The topic of an entity type."""
    return entity_type.replace("$", "_DLR_")


_encode = msgspec.json.Encoder().encode


def records(rows: Iterable[Row]) -> list[Record]:
    """The records of some rows, in their order.

    Headers carry the event's id, type and time (text of milliseconds since the epoch, from the id),
    so that a reader can pass over an event without parsing it.
    """
    made: list[Record] = []
    topics, types = _Topics(), _Types()
    high, time = "", ("time", b"")
    make, append = Record._make, made.append  # faster than Record(…), and this is every event
    for event_id, event_type, data, entity_type, entity_id, metadata, place in rows:
        topic = topics[entity_type]
        if topic is None:
            continue
        if event_id[:16] != high:
            high, time = event_id[:16], ("time", _time(event_id))
        value = _encode(
            PublishedEvent(event_id, entity_id, entity_type, data, event_type, place, metadata)
        )
        headers = [("id", event_id.encode()), types[event_type], time]
        append(make((topic, entity_id.encode(), value, headers)))
    return made


class _Topics(dict[str, str | None]):
    """Entity type → topic, None for what is not published."""

    def __missing__(self, entity_type: str) -> str | None:
        topic = None if entity_type == IGNORED else topic_name(entity_type)
        self[entity_type] = topic
        return topic


class _Types(dict[str, tuple[str, bytes]]):
    """Event type → header."""

    def __missing__(self, event_type: str) -> tuple[str, bytes]:
        header = self[event_type] = ("type", event_type.encode())
        return header


def _time(event_id: str) -> bytes:
    """The time in an id, as text; empty for an id of another making."""
    try:
        return b"%d" % int(event_id[:16], 16)
    except ValueError:
        return b""


_decode = msgspec.json.Decoder(PublishedEvent).decode

_BATCH = b"a8c79db675e14c4cbf1eb77d0d6d0f00"


def events_in(value: bytes) -> list[PublishedEvent]:
    """The events of a record: one, or several in the binary batch that Java's relay may write.

    Raises ValueError for anything else.
    """
    try:
        if value.startswith(_BATCH):
            return [_decode(inner) for inner in _batched(value)]
        return [_decode(value)]
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _batched(value: bytes) -> list[bytes]:
    """The values in an EventuateKafkaMultiMessage (SBE, little endian): after the header of 40
    bytes a group of headers, then a group of messages, each with headers, a key and a value."""
    at = 40

    def number(size: int) -> int:
        nonlocal at
        part = value[at : at + size]
        if len(part) < size:
            raise ValueError("a batch of events ends too soon")
        at += size
        return int.from_bytes(part, "little")

    def text() -> bytes:
        nonlocal at
        size = number(4)
        part = value[at : at + size]
        if len(part) < size:
            raise ValueError("a batch of events ends too soon")
        at += size
        return part

    def headers() -> None:
        number(2)
        for _ in range(number(2)):
            text()
            text()

    headers()
    number(2)
    found: list[bytes] = []
    for _ in range(number(2)):
        headers()
        text()
        found.append(text())
    return found
