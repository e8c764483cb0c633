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
    for event_id, event_type, data, entity_type, entity_id, metadata, place in rows:
        if entity_type == IGNORED:
            continue
        value = _encode(
            PublishedEvent(event_id, entity_id, entity_type, data, event_type, place, metadata)
        )
        headers = [
            ("id", event_id.encode()),
            ("type", event_type.encode()),
            ("time", _time(event_id)),
        ]
        made.append(Record(topic_name(entity_type), entity_id.encode(), value, headers))
    return made


def _time(event_id: str) -> bytes:
    """The time in an id, as text; empty for an id of another making."""
    try:
        return b"%d" % int(event_id[:16], 16)
    except ValueError:
        return b""
