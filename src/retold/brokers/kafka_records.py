"""The messages in a Kafka record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from retold.brokers.base import Message
from retold.brokers.kafka_places import Share, place
from retold.brokers.published import events_in
from retold.brokers.unreadable import UNREADABLE, Unreadable, made_up_id

_EVENT_ID = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}").fullmatch


class Records:
    """Knows which events a subscription wants. entity_types: of each topic."""

    def __init__(
        self, entity_types: Mapping[str, Sequence[str]], event_types: Sequence[str]
    ) -> None:
        self._entity_types = frozenset(kind for kinds in entity_types.values() for kind in kinds)
        self._of_topic = entity_types
        self._types = frozenset(event_types)
        self._type_headers = frozenset(kind.encode() for kind in event_types)

    def messages(self, record: Any, partition: int, share: Share) -> Sequence[Message]:
        """What a record holds for this subscription, but for what is handled already.

        partition: its number. A record that is no event, or is one no more, is a message, too.
        """
        offset, value = record.offset(), record.value() or b""
        for name, text in record.headers() or ():
            if name == "type" and text not in self._type_headers:
                return ()
        try:
            events = events_in(value)
        except ValueError:
            return [self._unreadable(record, partition)]
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

    def _unreadable(self, record: Any, partition: int) -> Message:
        """In the queue of the entity that the key names, under the event id that a header names:
        our relay writes both."""
        headers = [(name, text or b"") for name, text in record.headers() or ()]
        id = dict(headers).get("id", b"").decode("ascii", "replace")
        whole = Unreadable.of(
            record.topic(),
            record.partition(),
            record.offset(),
            record.key(),
            record.value(),
            headers,
        )
        return Message(
            self._of_topic[record.topic()][0],
            whole.entity_id,
            id if _EVENT_ID(id) else made_up_id(partition, record.offset()),
            UNREADABLE,
            whole.text(),
            None,
            partition,
            place(record.offset() + 1),
        )
