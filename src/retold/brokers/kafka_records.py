"""The messages in a Kafka record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from retold.brokers.base import Message
from retold.brokers.kafka_places import Share, place
from retold.brokers.published import received_in
from retold.errors import RetoldError, UnreadableRecord


class Records:
    """Knows which events a subscription wants."""

    def __init__(self, entity_types: Sequence[str], event_types: Sequence[str]) -> None:
        self._entity_types = frozenset(entity_types)
        self._types = frozenset(event_types)
        self._type_headers = frozenset(kind.encode() for kind in event_types)

    def messages(
        self, record: Any, partition: int, share: Share
    ) -> Iterable[Message | RetoldError]:
        """What a record holds for this subscription, but for what is handled already."""
        offset, value = record.offset(), record.value() or b""
        try:
            events = received_in(value)
        except ValueError as error:
            # Building the list of headers takes longer than reading an event, so they are asked last.
            for name, text in record.headers() or ():
                if name == "type" and text not in self._type_headers:
                    return ()
            # It is never passed over: nothing behind it is handed out.
            return [UnreadableRecord(record.topic(), record.partition(), offset, str(error))]
        found: list[Message] = []
        for index, event in enumerate(events, 1):
            position = place(offset, index) if index < len(events) else place(offset + 1)
            if event.id < share.since:
                continue
            share.since = ""
            if (
                position > share.saved
                and event.eventType in self._types
                and event.entityType in self._entity_types
            ):
                found.append(
                    Message(
                        event.entityType,
                        event.entityId,
                        event.id,
                        event.eventType,
                        event.eventData,
                        event.metadata,
                        partition,
                        position,
                    )
                )
        return found
