"""What is published: one Kafka record for each event, as Java Eventuate's subscribers expect it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from retold.brokers.base import Record
from retold.brokers.published import PublishedEvent, topic_name
from retold.relay.source import Row

IGNORED = "CDC-IGNORED"
"""The entity type of rows that Eventuate's own migrations leave behind; never published."""


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
